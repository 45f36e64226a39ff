"""`verify` sees every change of every sealed byte, and claims that do not follow from their evidence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from end_to_end import world

from pennyweight.errors import VerificationFailed
from pennyweight.flow import artifact as artifacts
from pennyweight.flow.delivery import Outcome
from pennyweight.flow.verify import verify
from pennyweight.numerics.hashing import canonical, of_file, of_value


def test_untouched(outcome: Outcome, for_vllm: Outcome, by_bits: Outcome, from_gguf: Outcome) -> None:
    for made in (outcome, for_vllm, by_bits, from_gguf):
        result = verify(made.out)
        assert result.files == len(world.hashes(made.out)) - 1, "all but the seal itself"
        assert result.certificate == made.certificate
        assert result.units == made.certificate.claims[0].scored


def test_a_copy_elsewhere(artifact: Path) -> None:
    verify(artifact)
    moved = shutil.move(artifact, artifact.with_name("another name"))
    (Path(moved) / "report.html").write_text("a page")
    (Path(moved) / "pennyweight" / "timing.json").write_text("nothing")
    verify(moved)


def test_any_flipped_byte(artifact: Path) -> None:
    names = list(world.hashes(artifact))
    assert "pennyweight/seal.json" in names
    undetected = []
    for name in names:
        path = artifact / name
        whole = path.read_bytes()
        for position in sorted({0, 1, len(whole) // 3, len(whole) // 2, 2 * len(whole) // 3, len(whole) - 1}):
            for mask in (1, 0x20, 0x80):  # a digit, the case of a letter, and no ASCII any more
                damaged = bytearray(whole)
                damaged[position] ^= mask
                path.write_bytes(damaged)
                try:
                    verify(artifact)
                    undetected.append((name, position, mask))
                except VerificationFailed:
                    pass
        path.write_bytes(whole)
    assert not undetected
    verify(artifact)


def test_every_byte_of_the_seal_and_the_certificate(artifact: Path) -> None:
    for name in ("seal.json", "certificate.json"):
        path = artifact / "pennyweight" / name
        whole = path.read_bytes()
        for position in range(0, len(whole), 3):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 2]) + whole[position + 1 :])
            with pytest.raises(VerificationFailed):
                verify(artifact)
        path.write_bytes(whole)


@pytest.mark.parametrize("change", ["cut", "longer", "empty", "removed"])
def test_files_of_another_length(change: str, artifact: Path) -> None:
    for name in world.hashes(artifact):
        path = artifact / name
        whole = path.read_bytes()
        if change == "removed":
            path.unlink()
        else:
            path.write_bytes({"cut": whole[:-1], "longer": whole + b"\n", "empty": b""}[change])
        with pytest.raises(VerificationFailed):
            verify(artifact)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["added.txt", "model-00002.safetensors", "pennyweight/extra.json", "deep/er/file"])
def test_an_added_file(name: str, artifact: Path) -> None:
    (artifact / name).parent.mkdir(parents=True, exist_ok=True)
    (artifact / name).write_text("x")
    with pytest.raises(VerificationFailed, match="not sealed"):
        verify(artifact)


def test_a_link_instead_of_a_file(artifact: Path) -> None:
    (artifact / "tokenizer.json").rename(artifact.parent / "tokenizer.json")
    (artifact / "tokenizer.json").symlink_to(artifact.parent / "gone.json")
    with pytest.raises(VerificationFailed):
        verify(artifact)


# Every edit gets the certificate and the evidence as values; `first` and `text_of` are what most of them change.


def first(c: dict[str, Any]) -> dict[str, Any]:
    claim: dict[str, Any] = c["claims"][0]
    return claim


def text_of(e: dict[str, Any], split: str = "certification") -> dict[str, Any]:
    scores: dict[str, Any] = e["populations"][0][split]
    return scores


def bound(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["bound"] *= 0.5


def bound_slightly(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["bound"] -= 1e-6


def statement(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["statement"] = c["statement"].replace("5,", "9,", 1) + " "


def statement_of_a_claim(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["statement"] = first(c)["statement"].replace("95", "99") + " "


def verdict(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["verdict"] = "exact"


def holds(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["holds"] = not c["holds"]


def holds_of_a_claim(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["holds"] = not first(c)["holds"]


def estimate(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["estimate"] *= 1 - 1e-6


def rule(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["rule"] = "hedged-capital"


def anytime(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["anytime"] = not first(c)["anytime"]


def counted(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["counted"] = "questions"


def metric(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["metric"] = "kl"


def log_wealth(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["log_wealth"] += 1


def tail(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["tail_bound"] *= 0.5


def above_cap(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["above_cap"] += 1


def margin(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["budget"]["at_most"] = 0.02


def margin_and_terms(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["budget"]["at_most"] = 0.02
    first(c)["terms"]["margin"] = 0.0198026


def margin_everywhere(c: dict[str, Any], e: dict[str, Any]) -> None:
    margin_and_terms(c, e)
    e["budgets"][0]["at_most"] = 0.02


def margin_of_the_evidence(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["budgets"][0]["at_most"] = 0.02


def confidence(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["budget"]["confidence"] = 0.999


def population(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["terms"]["population"] -= 1


def size(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["populations"][0]["size"] -= 1


def most(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["terms"]["n_max"] += 1


def cap(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["terms"]["cap"] *= 2


def alpha(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["terms"]["alpha"] *= 0.5


def scope(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["scope"] = first(c)["scope"].replace("text.txt", "WikiText-2")


def scored(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["scored"] += 100


def no_claims(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["claims"] = []


def a_claim_too_many(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["claims"].append(first(c))


def a_slice(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["slices"] = [
        {"group": "x", "holds": True, "scored": 5, "population": 9, "estimate": 0.0, "bound": 0.0, "alone": 0.0}
    ]


def opening_number(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["opening"]["number"] = 2


def opening_alpha(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["opening"]["alpha"] *= 0.5


def opening_spent(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["opening"]["spent"] *= 0.5


def noise(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["noise_floor"]["perplexity"] = 0.0


def noise_above_the_margin(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["noise_floor"]["perplexity"] = e["rules"]["noise_floor"]["perplexity"] = 0.5


def a_score(c: dict[str, Any], e: dict[str, Any]) -> None:
    text_of(e)["metrics"]["perplexity"]["compressed"][5] -= 0.01


def all_scores(c: dict[str, Any], e: dict[str, Any]) -> None:
    columns = text_of(e)["metrics"]["perplexity"]
    columns["compressed"] = [value - 0.001 for value in columns["compressed"]]


def a_pilot_score(c: dict[str, Any], e: dict[str, Any]) -> None:
    text_of(e, "selection")["metrics"]["perplexity"]["compressed"][0] += 0.5


def no_pilot(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["populations"][0]["selection"] = None


def pilot_of_another_text(c: dict[str, Any], e: dict[str, Any]) -> None:
    text_of(e, "selection")["fingerprint"] = "0" * 64


def reordered(c: dict[str, Any], e: dict[str, Any]) -> None:
    certification = text_of(e)
    for columns in [certification, *certification["metrics"].values()]:
        for name, values in columns.items():
            if isinstance(values, list):
                columns[name] = values[1::-1] + values[2:]


def left_out(c: dict[str, Any], e: dict[str, Any]) -> None:
    certification = text_of(e)
    for columns in [certification, *certification["metrics"].values()]:
        for name, values in columns.items():
            if isinstance(values, list):
                columns[name] = values[:-1]


def without_the_worst(c: dict[str, Any], e: dict[str, Any]) -> None:
    certification = text_of(e)
    loss = certification["metrics"]["perplexity"]
    lost = [after - before for before, after in zip(loss["reference"], loss["compressed"], strict=True)]
    worst = lost.index(max(lost))
    for columns in [certification, *certification["metrics"].values()]:
        for values in columns.values():
            if isinstance(values, list):
                del values[worst]


def repeated(c: dict[str, Any], e: dict[str, Any]) -> None:
    text_of(e)["drawn"][1] = text_of(e)["drawn"][0]


def of_another_document(c: dict[str, Any], e: dict[str, Any]) -> None:
    """Every window a document of its own makes the clustered bound of the uncapped mean smaller."""
    text_of(e)["documents"] = list(range(len(text_of(e)["documents"])))


def no_population(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["populations"] = []


def population_twice(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["populations"].append(e["populations"][0])


def population_words(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["populations"][0]["words"] = "WikiText-2 ("


def population_counted(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["populations"][0]["counted"] = "documents"


def population_labels(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["populations"][0]["labels"] = ["a"] * e["populations"][0]["size"]


def salted(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["rules"]["salt"] += "another"


def no_salt(c: dict[str, Any], e: dict[str, Any]) -> None:
    del e["rules"]["salt"]


def other_engine(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["rules"]["engine"] = "hedged-capital"


def other_engine_in_both(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["rules"]["engine"] = first(c)["rule"] = "hedged-capital"


def no_engine(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["rules"]["engine"] = "wishful"


def other_scope(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["rules"]["scope"] = "source"


def no_scope(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["rules"]["scope"] = "everything"


def other_alpha(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["rules"]["opening"]["alpha"] *= 2


def other_alpha_in_both(c: dict[str, Any], e: dict[str, Any]) -> None:
    for opening in (c["opening"], e["rules"]["opening"]):
        opening["alpha"] *= 0.5


def other_opening(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["rules"]["opening"]["number"] = 2


def another_ledger(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["rules"]["ledgers"] = {"": "0" * 64}


def no_ledger(c: dict[str, Any], e: dict[str, Any]) -> None:
    del e["rules"]["ledgers"]


def other_most(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["rules"]["most"] = 25


def other_noise(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["rules"]["noise_floor"]["perplexity"] *= 0.5


def grouped(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["rules"]["groups"] = "language"


def another_budget(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["budgets"].append({**e["budgets"][0], "metric": "kl", "unit": "absolute"})


def no_budget(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["budgets"] = []


def budget_on_a_task(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["budgets"][0]["on"] = "quiz.jsonl"


def other_artifact(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["artifact"] = "0" * 64


def other_weights(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["weights"] = e["weights"] = "0" * 64


def other_plan(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["plan"] = "0" * 64


def other_text(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["certification"] = text_of(e)["fingerprint"] = e["populations"][0]["fingerprint"] = "0" * 64


def scores_of_another_text(c: dict[str, Any], e: dict[str, Any]) -> None:
    text_of(e)["fingerprint"] = "0" * 64


def other_selection(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["selection"] = "0" * 64


def other_calibration(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["calibration"] = "0" * 64


def one_fingerprint_less(c: dict[str, Any], e: dict[str, Any]) -> None:
    del c["fingerprints"]["calibration"]


def one_fingerprint_more(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["auditor"] = "0" * 64


def other_model(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["model"] = "0" * 64


def other_code(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["code"] = "0" * 64


def not_a_number(c: dict[str, Any], e: dict[str, Any]) -> None:
    text_of(e)["metrics"]["perplexity"]["compressed"][3] = None


def no_perplexity(c: dict[str, Any], e: dict[str, Any]) -> None:
    del text_of(e)["metrics"]["perplexity"]


def no_metrics(c: dict[str, Any], e: dict[str, Any]) -> None:
    text_of(e)["metrics"] = {}


def other_kl(c: dict[str, Any], e: dict[str, Any]) -> None:
    columns = text_of(e)["metrics"]["kl"]
    columns["compressed"] = [value / 2 for value in columns["compressed"]]


def a_field_nobody_knows(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["approved"] = True


def a_field_of_a_claim_nobody_knows(c: dict[str, Any], e: dict[str, Any]) -> None:
    first(c)["note"] = "lossless"


def nothing(c: dict[str, Any], e: dict[str, Any]) -> None:
    e.clear()


Edit = Callable[[dict[str, Any], dict[str, Any]], None]
EDITS: list[Edit] = [
    bound, bound_slightly, statement, statement_of_a_claim, verdict, holds, holds_of_a_claim, estimate, rule,
    anytime, counted, metric, log_wealth, tail, above_cap, margin, margin_and_terms, margin_everywhere,
    margin_of_the_evidence, confidence, population, size, most, cap, alpha, scope, scored, no_claims,
    a_claim_too_many, a_slice, opening_number, opening_alpha, opening_spent, noise, noise_above_the_margin, a_score,
    all_scores, a_pilot_score, no_pilot, pilot_of_another_text, reordered, left_out, without_the_worst, repeated,
    of_another_document, no_population, population_twice, population_words, population_counted, population_labels,
    salted, no_salt, other_engine, other_engine_in_both, no_engine, other_scope, no_scope, other_alpha,
    other_alpha_in_both, other_opening, other_most, other_noise, grouped, another_budget, no_budget,
    budget_on_a_task, other_artifact, other_weights, other_plan, other_text, scores_of_another_text,
    another_ledger, no_ledger, other_selection, other_calibration, one_fingerprint_less,
    one_fingerprint_more, other_model, other_code, not_a_number, no_perplexity,
    no_metrics, other_kl, a_field_nobody_knows, a_field_of_a_claim_nobody_knows, nothing,
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_edited_and_sealed_again(edit: Edit, artifact: Path) -> None:
    records = [artifacts.read_record(artifact, name) for name in ("certificate.json", "evidence.json")]
    before = json.dumps(records)
    edit(*records)
    assert json.dumps(records) != before
    for name, value in zip(("certificate.json", "evidence.json"), records, strict=True):
        artifacts.write_record(artifact, name, value)
    artifacts.seal(artifact)
    with pytest.raises(VerificationFailed):
        verify(artifact)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where every number, text and null of a record stands; of long lists the first and the last element."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} & set(range(len(value)))):
            yield from leaves(value[index], (*path, index))
    else:
        yield path


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) else 0.9 * value - 1e-3
    return f"{value}x" if isinstance(value, str) else 7


def idle(path: tuple[str | int, ...]) -> bool:
    """What no word of a claim about perplexity in the scope corpus depends on: other metrics, and where a pilot lay."""
    match path:
        case ("populations", 0, "selection", "drawn" | "documents" | "tokens", *_):
            return True
        case ("populations", 0, _, "metrics", name, *rest):
            return name != "perplexity" or (rest == ["unit"] and path[2] == "selection")
        case ("populations", 0, "certification", "tokens"):
            return True
        case ("populations", 0, "certification", "documents", _):
            return True  # one alone may vanish in the rounding of the sentence; `of_another_document` moves them all
    return False


@pytest.mark.parametrize("name", ["certificate.json", "evidence.json"])
def test_every_value_counts(name: str, artifact: Path) -> None:
    record, undetected = artifacts.read_record(artifact, name), []
    places = list(leaves(record))
    assert len(places) > 40
    for path in places:
        edited = json.loads(json.dumps(record))
        inner = edited
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = other(inner[path[-1]])
        artifacts.write_record(artifact, name, edited)
        artifacts.seal(artifact)
        try:
            verify(artifact)
            undetected.append(path)
        except VerificationFailed:
            pass
    assert not [path for path in undetected if not idle(path)]


def test_sealing_again_changes_nothing_by_itself(artifact: Path) -> None:
    before = of_file(artifact / "pennyweight" / "seal.json")
    artifacts.seal(artifact)
    assert of_file(artifact / "pennyweight" / "seal.json") == before
    verify(artifact)


def test_another_model_under_the_certificate(artifact: Path, outcome: Outcome) -> None:
    """The weights are changed, and everything that names their hash is changed along."""
    path = artifact / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    certificate = artifacts.read_record(artifact, "certificate.json")
    certificate["fingerprints"]["artifact"] = artifacts.model_hash(artifact)
    evidence = artifacts.read_record(artifact, "evidence.json")
    evidence["weights"] = certificate["fingerprints"]["weights"] = artifacts.weights_hash(artifact)
    artifacts.write_record(artifact, "certificate.json", certificate)
    artifacts.write_record(artifact, "evidence.json", evidence)
    artifacts.seal(artifact)
    with pytest.raises(VerificationFailed, match="order"):
        verify(artifact)


def test_other_weights_under_the_old_hash(artifact: Path) -> None:
    """The certificate and its evidence agree with each other; the weights beside them are not theirs."""
    path = artifact / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    certificate = artifacts.read_record(artifact, "certificate.json")
    certificate["fingerprints"]["artifact"] = artifacts.model_hash(artifact)
    artifacts.write_record(artifact, "certificate.json", certificate)
    artifacts.seal(artifact)
    with pytest.raises(VerificationFailed, match="weights hash"):
        verify(artifact)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("summary.json", "holds", False), ("summary.json", "bytes_after", 10), ("summary.json", "bound", 0.001),
        ("summary.json", "statement", "Nothing was lost."), ("summary.json", "rise", 0.0),
        ("summary.json", "perplexity_after", 2.0), ("summary.json", "agreement", 1.0), ("summary.json", "kl", 0.0),
        ("run.json", "model", "0" * 64), ("run.json", "code", "0" * 64),
    ],
)  # fmt: skip
def test_what_the_report_shows_agrees_with_the_certificate(name: str, field: str, value: Any, artifact: Path) -> None:
    """The table and the page are made of these: they may not say anything else than the certificate."""
    record = artifacts.read_record(artifact, name)
    assert record[field] != value
    artifacts.write_record(artifact, name, {**record, field: value})
    artifacts.seal(artifact)
    with pytest.raises(VerificationFailed):
        verify(artifact)


@pytest.mark.parametrize(
    "seal", [b"{}", b"[]", b"null", b'{"sha256":[]}', b'{"sha256":{}}', b'{"sha256":null}', b"\xff"]
)
def test_a_seal_that_is_none(seal: bytes, artifact: Path) -> None:
    (artifact / "pennyweight" / "seal.json").write_bytes(seal)
    with pytest.raises(VerificationFailed):
        verify(artifact)


@pytest.mark.parametrize(
    "content",
    [
        [],
        None,
        5,
        "x",
        {"populations": 1},
        {"populations": [5]},
        {"weights": "x", "budgets": [], "rules": {}, "populations": []},
    ],
)
def test_evidence_that_is_none(content: Any, artifact: Path) -> None:
    artifacts.write_record(artifact, "evidence.json", content)
    artifacts.seal(artifact)
    with pytest.raises(VerificationFailed):
        verify(artifact)


def test_a_plan_that_is_none(artifact: Path) -> None:
    (artifact / "pennyweight" / "plan.toml").write_bytes(b"\xff\xfe not a plan")
    artifacts.seal(artifact)
    with pytest.raises(VerificationFailed):
        verify(artifact)


@pytest.mark.parametrize("name", ["certificate.json", "evidence.json", "plan.toml"])
def test_a_record_that_is_missing(name: str, artifact: Path) -> None:
    (artifact / "pennyweight" / name).unlink()
    artifacts.seal(artifact)
    with pytest.raises(VerificationFailed):
        verify(artifact)


def test_hashes_are_what_they_say(outcome: Outcome) -> None:
    certificate = msgspec.json.decode((outcome.out / "pennyweight/certificate.json").read_bytes())
    plan = (outcome.out / "pennyweight/plan.toml").read_text()
    assert certificate["fingerprints"]["plan"] == of_value(plan)
    raw = (outcome.out / "pennyweight/evidence.json").read_bytes()
    assert canonical(msgspec.json.decode(raw)) == raw
