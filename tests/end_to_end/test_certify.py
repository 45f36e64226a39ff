"""Certificates for models that others compressed: any claim, any scope, any bound, killed and resumed, opened again."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from end_to_end import world
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from pennyweight.budget import Budget, Claim, Measurement, Opening
from pennyweight.cli import main
from pennyweight.errors import InfeasibleBudget, VerificationFailed
from pennyweight.flow import artifact as artifacts
from pennyweight.flow.certifying import pair as pair
from pennyweight.flow.certifying import record as records
from pennyweight.flow.certifying.claims import resolve, usual_engine
from pennyweight.flow.certifying.judge import Judged, claims, fingerprints_of, judge_evidence, judge_population
from pennyweight.flow.certifying.pair import Judging, certify_pair
from pennyweight.flow.certifying.populations import Text
from pennyweight.flow.certifying.rules import Rules
from pennyweight.flow.delivery import Outcome
from pennyweight.flow.journal import Journal
from pennyweight.flow.load import load
from pennyweight.flow.measure import measure
from pennyweight.flow.progress import Advance
from pennyweight.flow.verify import verify

LENGTH = ["--length", "32", "--quiet"]
TEXT_CLAIMS = ["kl 0.2", "tv 25%", "js 0.1", "agreement 35%", "top-5 35%"]

Certify = Callable[..., Outcome]


def judging(**changes: Any) -> Judging:
    return Judging(**{"length": 32, "selection_windows": 24, "threads": 1, **changes})


def budgets(lose: Sequence[str]) -> list[Budget]:
    return [Budget.lose(limit) for limit in lose]


def rounded(model: Path, out: Path, bits: int, rows: dict[str, list[int]] | None = None) -> Path:
    """A copy of a model, its matrices rounded by nobody's tool; only some rows of some, if they are named."""
    shutil.copytree(model, out)
    tensors = load_file(out / "model.safetensors")
    for name, weight in tensors.items():
        chosen = (rows or {}).get(name)
        if (rows is None and "layers" not in name) or (rows is not None and chosen is None) or weight.dim() < 2:
            continue
        part = weight if chosen is None else weight[chosen]
        scale = part.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        coarse = (part / scale).round() * scale
        tensors[name] = coarse if chosen is None else weight.index_copy(0, torch.tensor(chosen), coarse)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def by_hand(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The model with its linear layers at so many bits, made once."""
    made: dict[int, Path] = {}

    def get(bits: int) -> Path:
        if bits not in made:
            made[bits] = rounded(llama, tmp_path_factory.mktemp("rounded") / f"int{bits}", bits)
        return made[bits]

    return get


@pytest.fixture(scope="module")
def novel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text in two languages, one of them in capitals, small enough for a full pass."""
    lines = []
    for number, part in enumerate(world.documents(30, 1, seed=21)):
        loud = number % 3 == 0
        lines.append({"text": part.upper() if loud else part, "language": "loud" if loud else "calm"})
    path = tmp_path_factory.mktemp("novel") / "novel.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def quiz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_quiz(tmp_path_factory.mktemp("quiz") / "quiz.jsonl", 40)


@pytest.fixture(scope="module")
def large_quiz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_quiz(tmp_path_factory.mktemp("quiz") / "large.jsonl", 260)


@pytest.fixture
def certified(llama: Path, by_hand: Callable[[int], Path], novel: Path, tmp_path: Path) -> Certify:
    """Certify a model rounded by hand, on the novel unless told otherwise, and verify what came of it."""

    def call(
        *lose: str, bits: int = 4, on: Path | None = novel, name: str = "small", compressed: Path | None = None,
        model: Path = llama, **changes: Any,
    ) -> Outcome:  # fmt: skip
        made = certify_pair(
            model, compressed or by_hand(bits), tmp_path / name, budgets=budgets(lose), on=on,
            judging=judging(**changes),
        )  # fmt: skip
        assert verify(made.out).certificate == made.certificate
        assert not (tmp_path / f"{name}.run").exists()
        return made

    return call


@dataclass(frozen=True)
class Truth:
    """Everything about two models on a certification split."""

    text: Text
    selection: dict[str, Measurement]
    scores: dict[str, Measurement]

    def mean(self, metric: str, where: NDArray[np.bool_] | None = None) -> float:
        x = self.scores[metric].degradation
        return float(x.mean() if where is None else x[where].mean())


def full_pass(model: Path, compressed: Path, on: Path) -> Truth:
    """Score every window there is."""
    before, after = load(model), load(compressed)
    selection, certification = pair._texts(before, on, None, judging())
    return Truth(
        certification, measure(before, after, selection.windows), measure(before, after, certification.windows)
    )


@pytest.fixture(scope="module")
def truth(llama: Path, by_hand: Callable[[int], Path], novel: Path) -> Truth:
    return full_pass(llama, by_hand(4), novel)


# Who made the model does not matter


def test_our_own_artifact(certified: Certify, llama: Path, outcome: Outcome, novel: Path) -> None:
    """How much a model loses that was trained here depends on the processor: the limits follow from the truth."""
    lost = full_pass(llama, outcome.out, novel)
    kl = f"kl {2 * lost.mean('kl'):.2g}"
    rise = f"{100 * max(0.03, math.expm1(2 * lost.mean('perplexity'))):.2g}%"
    made = certified(kl, rise, compressed=outcome.out)
    assert made.holds
    assert [claim.budget.label for claim in made.certificate.claims] == [kl, f"perplexity {rise}"]
    assert sorted(p.name for p in made.out.iterdir()) == ["pennyweight"], "a certificate and nothing else"


def test_rounded_by_hand(certified: Certify, truth: Truth) -> None:
    made = certified(*TEXT_CLAIMS)
    assert made.holds
    assert [claim.metric for claim in made.certificate.claims] == ["kl", "tv", "js", "disagreement", "top-k"]
    for claim in made.certificate.claims:
        assert claim.verdict == "certified"
        assert truth.mean(claim.metric) <= claim.bound
        assert claim.terms.population == len(truth.text)
        assert claim.statement.partition(":")[2] in made.certificate.statement
    assert f"All {len(TEXT_CLAIMS)} limits are certified" in made.certificate.statement
    assert "95 % confidence" in made.certificate.statement


def test_a_gguf_file(certified: Certify, from_gguf: Outcome, gguf_file: Path) -> None:
    made = certified("kl 0.5", compressed=gguf_file, model=from_gguf.out)
    assert made.holds
    assert made.summary["compressed"] == gguf_file.name
    assert made.certificate.claims[0].estimate > 0


def test_text_and_quiz_together(certified: Certify, large_quiz: Path) -> None:
    limits = ["kl 0.3", f"accuracy:{large_quiz} 25pt", f"flips:{large_quiz} 30%", f"accuracy_norm:{large_quiz} 25pt"]
    made = certified(*limits)
    assert made.holds, made.certificate.statement
    text, *asked = made.certificate.claims
    assert (text.counted, text.metric, text.budget.on) == ("windows", "kl", "")
    assert [claim.metric for claim in asked] == ["accuracy", "flips", "accuracy_norm"]
    assert {claim.counted for claim in asked} == {"questions"}
    assert {claim.terms.population for claim in asked} == {221}, (
        "15 % of the questions plan, the others carry the claim"
    )
    assert "points" in asked[0].statement
    populations = artifacts.read_record(made.out, "evidence.json")["populations"]
    assert [part["on"] for part in populations] == ["", str(large_quiz)]
    assert len(populations[1]["selection"]["drawn"]) == 39


def test_all_of_a_small_quiz(certified: Certify, quiz: Path) -> None:
    made = certified(f"accuracy:{quiz} 2pt", f"answer_changes:{quiz} 6%", on=None, bits=5)
    for claim in made.certificate.claims:
        assert (claim.verdict, claim.scored, claim.terms.population) == ("exact", 40, 40)
        assert "exactly (all 40 questions)" in claim.statement
        assert claim.bound == pytest.approx(claim.estimate, abs=1e-12)
        assert round(40 * claim.estimate) == pytest.approx(40 * claim.estimate), "a number of questions"
        assert claim.holds is (claim.estimate < claim.terms.margin)
    assert made.holds is all(claim.holds for claim in made.certificate.claims)


# Scopes and bounds


def test_source_counts_every_document_that_holds_a_window(llama: Path, tmp_path: Path) -> None:
    """Documents of one to two windows: cut from the joined text, about half of them would have none of their own."""
    parts = [part[: 180 + 7 * (i % 9)] for i, part in enumerate(world.documents(120, 1, seed=3))]
    network, on = load(llama), world.write_text(tmp_path / "short.txt", parts)
    tokenizer = Tokenizer.from_file(str(llama / "tokenizer.json"))
    length = min(len(tokenizer.encode(part, add_special_tokens=False).ids) for part in parts)
    _, whole = pair._texts(network, on, None, judging(length=length, scope="source"))
    assert len(set(whole.independent.tolist())) == len(whole.windows.names)
    assert (whole.independent >= 0).all()
    _, joined = pair._texts(network, on, None, judging(length=length))
    assert len(set(joined.independent[joined.independent >= 0].tolist())) < len(joined.windows.names)


def test_source_draws_one_window_a_document(certified: Certify, text: Path) -> None:
    made = certified("kl 0.3", "tv 30%", on=text, scope="source")
    (part,) = artifacts.read_record(made.out, "evidence.json")["populations"]
    documents = part["certification"]["documents"]
    assert len(set(documents)) == len(documents) == made.certificate.claims[0].scored
    assert len(documents) <= len(set(part["documents"]))
    for claim in made.certificate.claims:
        assert (claim.terms.scope, claim.terms.population) == ("source", None)
        assert "drawn independently" in claim.statement
        assert "(documents that hold a whole window)" in claim.statement
    assert made.holds


@pytest.mark.parametrize("engine", [None, "bootstrap"])
def test_asymptotic_scores_everything(engine: str | None, certified: Certify, truth: Truth) -> None:
    made = certified("kl 0.2", "tv 30%", scope="asymptotic", bound=engine)
    for claim in made.certificate.claims:
        assert claim.scored == len(truth.text)
        assert claim.rule == (engine or "clustered-t")
        assert not claim.anytime
        assert claim.estimate == pytest.approx(truth.mean(claim.metric), rel=1e-5)
        assert claim.estimate < claim.bound < claim.terms.margin
        assert "asymptotic" in claim.statement
        assert claim.verdict == "certified"


@pytest.mark.parametrize(
    ("engine", "scope"),
    [("hedged-capital", "corpus"), ("predictable-plug-in", "corpus"), ("hoeffding", "corpus"),
     ("maurer-pontil", "source"), ("planned-mixture", "corpus")],
)  # fmt: skip
def test_other_engines(engine: str, scope: str, certified: Certify, truth: Truth) -> None:
    made = certified("tv 60%", scope=scope, bound=engine, most=300)
    (claim,) = made.certificate.claims
    assert claim.rule == engine
    assert claim.bound >= truth.mean("tv")
    assert artifacts.read_record(made.out, "evidence.json")["rules"]["engine"] == engine
    assert engine in claim.statement or claim.anytime


def test_questions_counted(certified: Certify, large_quiz: Path) -> None:
    made = certified(f"answer_changes:{large_quiz} 30%", on=None, bound="clopper-pearson")
    (claim,) = made.certificate.claims
    assert (claim.rule, claim.scored) == ("clopper-pearson", 221)


# Groups


@pytest.fixture(scope="module")
def one_language_worse(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for capitals is rounded to two bits: whoever writes in them suffers."""
    ids = Tokenizer.from_file(str(llama / "tokenizer.json")).encode("ABCDEFGHIJKLMNOPQRSTUVWXYZ").ids
    rows = {"model.embed_tokens.weight": ids, "lm_head.weight": ids}
    return rounded(llama, tmp_path_factory.mktemp("worse") / "worse", 2, rows)


def test_groups(certified: Certify, llama: Path, novel: Path, one_language_worse: Path) -> None:
    truth = full_pass(llama, one_language_worse, novel)
    labels = np.array(truth.text.labels("language"))
    means = {name: truth.mean("kl", labels == name) for name in set(labels.tolist())}
    assert means["loud"] > 4 * means["calm"], "or there is nothing to find"
    limit = (truth.mean("kl") + means["loud"]) / 2
    assert truth.mean("kl") < limit < means["loud"]
    made = certified(f"kl {limit:.4g}", compressed=one_language_worse, groups="language")
    (claim,) = made.certificate.claims
    found = {part.group: part for part in claim.slices}
    assert set(found) == set(means) == {"loud", "calm", "(mixed)"}
    for name, part in found.items():
        assert part.population == int((labels == name).sum())
        assert part.bound >= part.alone >= means[name] - 1e-9
    assert not found["loud"].holds
    assert found["calm"].holds
    assert claim.slices[0].bound == max(part.bound for part in claim.slices)
    assert f"the weakest bound is that of {claim.slices[0].group}" in claim.statement
    worst = max(means, key=lambda name: means[name])
    assert worst in {part.group for part in claim.slices if not part.holds}


def test_groups_of_questions(certified: Certify, large_quiz: Path) -> None:
    made = certified(f"answer_changes:{large_quiz} 30%", on=None, groups="topic")
    assert {part.group for part in made.certificate.claims[0].slices} == {"a", "b"}
    assert sum(part.scored for part in made.certificate.claims[0].slices) == made.certificate.claims[0].scored


def test_edited_labels_and_slices(certified: Certify) -> None:
    made = certified("kl 0.2", groups="language")
    names = ("certificate.json", "evidence.json")

    def swap(c: Any, e: Any) -> None:
        e["populations"][0]["labels"].reverse()

    def shorten(c: Any, e: Any) -> None:
        del e["populations"][0]["labels"][-1]

    def rename(c: Any, e: Any) -> None:
        labels = e["populations"][0]["labels"]
        e["populations"][0]["labels"] = ["calm" if label == "loud" else label for label in labels]

    def hold(c: Any, e: Any) -> None:
        c["claims"][0]["slices"][0]["holds"] ^= True

    def lower(c: Any, e: Any) -> None:
        c["claims"][0]["slices"][0]["bound"] *= 0.9

    def leave_out(c: Any, e: Any) -> None:
        del c["claims"][0]["slices"][0]

    def ungroup(c: Any, e: Any) -> None:
        e["rules"]["groups"], e["populations"][0]["labels"] = None, []

    kept = [artifacts.read_record(made.out, name) for name in names]
    for edit in (swap, shorten, rename, hold, lower, leave_out, ungroup):
        records = json.loads(json.dumps(kept))
        edit(*records)
        assert records != kept
        for name, record in zip(names, records, strict=True):
            artifacts.write_record(made.out, name, record)
        artifacts.seal(made.out)
        with pytest.raises(VerificationFailed):
            verify(made.out)


def test_edited_claims_and_populations(certified: Certify, quiz: Path) -> None:
    made = certified("kl 0.2", "tv 30%", f"accuracy:{quiz} 20pt")
    names = ("certificate.json", "evidence.json")

    def drop_claim(c: Any, e: Any) -> None:
        del c["claims"][1]

    def drop_budget(c: Any, e: Any) -> None:
        del e["budgets"][1]

    def drop_both(c: Any, e: Any) -> None:
        del c["claims"][1], e["budgets"][1]

    def drop_population(c: Any, e: Any) -> None:
        del e["populations"][1]

    def drop_task(c: Any, e: Any) -> None:
        del e["populations"][1], e["budgets"][2], c["claims"][2]

    def swap_claims(c: Any, e: Any) -> None:
        c["claims"][:2] = c["claims"][1::-1]

    def swap_populations(c: Any, e: Any) -> None:
        e["populations"].reverse()

    def rename_task(c: Any, e: Any) -> None:
        e["populations"][1]["on"] = "other.jsonl"

    def text_as_questions(c: Any, e: Any) -> None:
        e["populations"][0]["discrete"] = True

    kept = [artifacts.read_record(made.out, name) for name in names]
    edits = [drop_claim, drop_budget, drop_both, drop_population, drop_task, swap_claims, swap_populations,
             rename_task, text_as_questions]  # fmt: skip
    undetected = []
    for edit in edits:
        records = json.loads(json.dumps(kept))
        edit(*records)
        for name, record in zip(names, records, strict=True):
            artifacts.write_record(made.out, name, record)
        artifacts.seal(made.out)
        try:
            verify(made.out)
            undetected.append(edit.__name__)
        except VerificationFailed:
            pass
    assert not undetected


# How much is scored


def test_most(certified: Certify) -> None:
    made = certified("kl 0.05", most=40)
    assert made.certificate.claims[0].scored <= 40


def test_far_too_bad(certified: Certify, truth: Truth) -> None:
    made = certified("kl 0.001", bits=3)
    (claim,) = made.certificate.claims
    assert (claim.verdict, claim.holds, made.holds) == ("futile", False, False)
    assert claim.scored < len(truth.text), "hopeless: no more is scored"
    assert made.certificate.statement.startswith("Not certified: the loss lies above the limit of 0.001")


@dataclass(frozen=True)
class Remembered:
    """Scores that were taken before, handed out in any order."""

    scores: dict[str, Measurement]
    batch: int = 16

    def score(self, order: NDArray[np.int64], advance: Advance | None = None) -> dict[str, Measurement]:
        return {name: scores.take(order) for name, scores in self.scores.items()}


class Recalled(Text):
    """The windows of a text whose full pass is known."""

    def scorer(self, *_: Any, **__: Any) -> Any:
        return Remembered(TRUTHS[self.fingerprint])


TRUTHS: dict[str, dict[str, Measurement]] = {}


def test_the_bound_is_above_the_truth(truth: Truth, llama: Path, tmp_path: Path) -> None:
    """Forty orders, five claims each: a bound that is wrong 5 % of the time would fail with near certainty."""
    TRUTHS[truth.text.fingerprint] = truth.scores
    network, text = load(llama), Recalled(truth.text.windows)
    names = ("kl", "tv", "js", "disagreement", "top-k")
    asked = resolve([Budget.lose(f"{name} {1.6 * truth.mean(name):.6g}") for name in names])
    opening, found = Opening(number=1, alpha=0.05, spent=0.05), list[Claim]()
    for salt in range(40):
        rules = Rules(engine=usual_engine("corpus", None), opening=opening, salt=str(salt))
        part = judge_population(
            "pieces", asked, text, truth.selection, network, network, Journal(tmp_path / str(salt)), rules,
            weights="w", claims=len(asked),
        )  # fmt: skip
        found += judge_evidence(asked, [part], rules, fingerprints_of([part]), "w").claims
    assert all(claim.bound >= truth.mean(claim.metric) for claim in found)
    assert sum(claim.holds for claim in found) > 20, "and some of it is certified"
    assert len({claim.scored for claim in found}) > 3, "after as many windows as it takes"


# The command line


@pytest.fixture
def command(llama: Path, by_hand: Callable[[int], Path], novel: Path, tmp_path: Path) -> list[str]:
    return ["certify", str(llama), str(by_hand(4)), "--on", str(novel), "--out", str(tmp_path / "small"), *LENGTH]


def certificate(out: Path) -> Any:
    return artifacts.read_record(out, "certificate.json")


def test_command_line(command: list[str], quiz: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    limits = ["--lose", "kl 0.2", "--lose", f"accuracy:{quiz} 30pt", "--groups", "topic", "--max-units", "200"]
    capfd.readouterr()
    # questions have topics and windows have not, so only the questions can be grouped
    assert main([*command, *limits]) == 2
    assert "topic" in capfd.readouterr().err
    limits[limits.index("--groups") : limits.index("--max-units")] = ["--engine", "planned-mixture", "--salt", "pepper"]
    assert main([*command, *limits, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["holds"] is True
    assert told["statement"] == certificate(tmp_path / "small")["statement"]
    assert Path(told["report"]).is_file()
    assert artifacts.read_record(tmp_path / "small", "evidence.json")["rules"]["salt"] == "pepper"
    assert main(["verify", str(tmp_path / "small")]) == 0
    assert told["statement"] in capfd.readouterr().out


def test_a_loss_too_large_exits_1(
    command: list[str], by_hand: Callable[[int], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command[2] = str(by_hand(3))
    capfd.readouterr()
    assert main([*command, "--lose", "kl 0.001"]) == 1
    out, err = capfd.readouterr()
    assert err == ""
    assert "NOT certified" in out
    assert certificate(tmp_path / "small")["claims"][0]["verdict"] == "futile"
    assert main(["verify", str(tmp_path / "small")]) == 0


def test_an_opened_text_is_remembered(command: list[str], tmp_path: Path) -> None:
    """The same command is the same opening; another claim on the same text is the second, at a quarter of the level."""
    out = tmp_path / "small"
    assert main([*command, "--lose", "kl 0.2"]) == 0
    before = world.hashes(out)
    assert certificate(out)["opening"] == {"number": 1, "alpha": pytest.approx(0.05), "spent": pytest.approx(0.05)}
    shutil.rmtree(out)
    assert main([*command, "--lose", "kl 0.2"]) == 0
    assert world.hashes(out) == before
    shutil.rmtree(out)
    assert main([*command, "--lose", "tv 30%"]) == 0
    opening = certificate(out)["opening"]
    assert opening == {"number": 2, "alpha": pytest.approx(0.0125), "spent": pytest.approx(0.0625)}
    assert "opened 1 time before" in certificate(out)["statement"]
    assert "6.25 %" in certificate(out)["statement"]
    assert certificate(out)["claims"][0]["terms"]["alpha"] <= 0.0125
    verify(out)


def test_reserve(command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--lose", "kl 0.2", "--reserve"]) == 0
    opening = certificate(tmp_path / "small")["opening"]
    assert opening["alpha"] == pytest.approx(0.05 * 6 / np.pi**2)
    assert opening["number"] == 1


def forged(made: Outcome, out: Path, opening: Opening, numbers: dict[str, int] | None = None) -> Path:
    """A certificate judged again as if it rested on another opening, with every record and the seal made to agree."""
    shutil.copytree(made.out, out)
    asked, parts, rules, weights = records.read_evidence(out)
    rules = replace(rules, opening=opening, numbers=rules.numbers if numbers is None else numbers)
    again = judge_evidence(asked, parts, rules, made.certificate.fingerprints, weights)
    records.write(out, Judged(again, parts), rules, asked, weights)
    told = {**artifacts.read_record(out, "summary.json"), **msgspec.to_builtins(claims(again, parts[0].scored))}
    artifacts.write_record(out, "summary.json", told)
    artifacts.seal(out)
    return out


def test_an_opening_is_what_its_number_says(certified: Certify, tmp_path: Path) -> None:
    """All records agree with each other, so only the ledger's own rule can tell."""
    first, second = certified("kl 0.2"), certified("kl 0.25", name="second")
    honest = second.certificate.opening
    assert honest.number == 2
    assert honest.alpha == pytest.approx(0.0125)
    verify(forged(second, tmp_path / "as it was", honest))
    forgeries: list[tuple[Outcome, Opening, dict[str, int] | None]] = [
        (second, Opening(number=1, alpha=0.05, spent=0.05), None),
        (second, Opening(number=1, alpha=0.0125, spent=0.0125), None),
        (second, Opening(number=2, alpha=0.05, spent=0.1), None),
        (second, Opening(number=2, alpha=0.0125, spent=0.0125), None),
        (second, Opening(number=2, alpha=0.0125, spent=1e-9), None),
        (second, Opening(number=7, alpha=0.0125, spent=0.0625), None),
        (first, Opening(number=1, alpha=0.04, spent=0.04), None),
        (first, Opening(number=1, alpha=0.05, spent=0.01), None),
        (first, Opening(number=2, alpha=0.0125, spent=0.0625), None),
    ]
    for number, (made, opening, numbers) in enumerate(forgeries):
        with pytest.raises(VerificationFailed, match="not one that the ledger gives"):
            verify(forged(made, tmp_path / str(number), opening, numbers))
    with pytest.raises(VerificationFailed, match="order"):  # where the numbers agree, the order of the units does not
        verify(forged(second, tmp_path / "order", Opening(number=1, alpha=0.05, spent=0.05), {"": 1}))


def test_a_reference_that_was_saved_again_is_the_same(certified: Certify, llama: Path, tmp_path: Path) -> None:
    """Other bytes, the same values: the text stays opened, and what is scored next is drawn in another order."""
    again = Path(shutil.copytree(llama, tmp_path / "again"))
    with (again / "config.json").open("a") as config:
        config.write("\n")
    tensors = {name: weight.double() for name, weight in load_file(again / "model.safetensors").items()}
    save_file(tensors, again / "model.safetensors", metadata={"format": "pt"})
    first, second = certified("kl 0.2"), certified("kl 0.2", model=again, name="second")
    assert first.certificate.fingerprints["model"] != second.certificate.fingerprints["model"]  # a hash of files
    assert (first.certificate.opening.number, second.certificate.opening.number) == (1, 2)


def test_a_lost_ledger_does_not_give_a_known_order_back(
    certified: Certify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[int]] = {}
    for name, limit in (("first", "kl 0.2"), ("same", "kl 0.2"), ("other", "kl 0.21")):
        monkeypatch.setenv("PENNYWEIGHT_STATE", str(tmp_path / f"state {name}"))
        made = certified(limit, name=name)
        assert made.certificate.opening.number == 1
        (part,) = artifacts.read_record(made.out, "evidence.json")["populations"]
        drawn[name] = part["certification"]["drawn"]
    assert drawn["first"] == drawn["same"]
    assert drawn["first"][:16] != drawn["other"][:16]


def test_another_text_to_plan_with_is_another_opening(
    llama: Path, by_hand: Callable[[int], Path], novel: Path, tmp_path: Path
) -> None:
    """The pilot sets cap and bets, so whoever changes it after the scores has another chance."""
    numbers = []
    for seed in (31, 32):
        pilot = world.write_text(tmp_path / f"pilot{seed}.txt", world.documents(8, 2, seed=seed))
        made = certify_pair(
            llama, by_hand(4), tmp_path / str(seed), budgets=budgets(["kl 0.2"]), on=novel, pilot=pilot,
            judging=judging(),
        )  # fmt: skip
        numbers.append(made.certificate.opening.number)
    assert numbers == [1, 2]


def test_killed_and_resumed(command: list[str], nursery: world.Nursery, tmp_path: Path) -> None:
    arguments = [*command, "--lose", "kl 0.2", "--lose", "tv 40%", "--groups", "language"]
    ended = nursery.run(arguments, count=1)
    assert ended.code == 0, ended.stderr
    changes, quiet = ended.counts()[2], world.hashes(tmp_path / "small")
    for kill_at in sorted({5, changes // 3, changes // 2, ended.counts()[1] - 1, ended.counts()[1] + 1}):
        shutil.rmtree(tmp_path / "small", ignore_errors=True)
        killed = nursery.run(arguments, kill_at=kill_at)
        assert killed.code == -signal.SIGKILL, killed.stderr
        again = nursery.run(arguments)
        assert again.code == 0, again.stderr
        assert world.hashes(tmp_path / "small") == quiet
        assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


# Refused


def test_too_few_documents_for_the_source(certified: Certify, novel: Path, tmp_path: Path) -> None:
    """A margin that the documents cannot carry is refused, and the one that is offered can be carried."""
    with pytest.raises(InfeasibleBudget) as caught:
        certified("kl 0.012", scope="source")
    offered = re.search(r"a margin of ([\d.e+-]+)", caught.value.expected)
    assert offered, caught.value.expected
    assert 0.012 < float(offered[1]) < 5
    shutil.rmtree(tmp_path / "small.run")
    assert certified(f"kl {1.05 * float(offered[1]):.4g}", scope="source").certificate.claims[0].scored > 0
