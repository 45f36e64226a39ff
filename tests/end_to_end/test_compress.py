"""The main job, in process: every budget, engine and kind of input; what is claimed agrees with what is on disk."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from end_to_end import world
from safetensors import safe_open

from pennyweight.budget import Budget
from pennyweight.errors import InfeasibleBudget, InvalidBudget
from pennyweight.export.engines import find
from pennyweight.flow.certifying import evidence
from pennyweight.flow.compress import compress
from pennyweight.flow.delivery import Outcome
from pennyweight.flow.load import load
from pennyweight.flow.text import texts
from pennyweight.flow.verify import verify
from pennyweight.plan import Plan

OURS = {
    "accounting.json", "calibration.json", "certificate.json", "evidence.json", "explanation.json", "ladder.json",
    "ledger.json", "plan.toml", "run.json", "seal.json", "summary.json", "timing.json",
}  # fmt: skip
OUTCOMES = ["outcome", "for_vllm", "by_bits", "from_gguf"]


@pytest.fixture(params=OUTCOMES)
def each(request: pytest.FixtureRequest) -> Outcome:
    made: Outcome = request.getfixturevalue(request.param)
    return made


def record(outcome: Outcome, name: str) -> Any:
    return json.loads((outcome.out / "pennyweight" / name).read_text())


def scored_text(outcome: Outcome) -> Any:
    """Evidence on the certification split of the text."""
    return next(part for part in record(outcome, "evidence.json")["populations"] if part["on"] == "")["certification"]


def shipped(directory: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in directory.iterdir() if p.is_file() and p.name != "report.html"}


def data_bytes(file: Path) -> int:
    with file.open("rb") as stream:
        return file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")


def test_every_file_is_there_and_no_other(each: Outcome) -> None:
    assert {p.name for p in (each.out / "pennyweight").iterdir()} == OURS
    engine = set(shipped(each.out))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= engine
    assert not [name for name in engine if name.startswith(".") or name.endswith(".part")]
    assert [p.name for p in each.out.parent.iterdir()] == ["small"], "the run's directory is gone"


def test_sizes_are_those_on_disk(each: Outcome) -> None:
    summary, plan = each.summary, Plan.from_toml((each.out / "pennyweight/plan.toml").read_text())
    assert summary["bytes_after"] == sum(shipped(each.out).values())
    assert plan.bytes == data_bytes(each.out / "model.safetensors"), "the plan predicted the size exactly"
    accounting = record(each, "accounting.json")
    assert accounting["written"] == plan.bytes == sum(row["bytes_after"] for row in accounting["rows"])
    assert sorted(row["name"] for row in accounting["rows"]) == sorted(accounting["expected"])
    weights = summary["bytes_16_bit"] / 2
    assert summary["bits"] == pytest.approx(8 * plan.bytes / weights)


def test_size_before(outcome: Outcome, llama: Path, from_gguf: Outcome, gguf_file: Path) -> None:
    assert outcome.summary["bytes_before"] == (llama / "model.safetensors").stat().st_size
    assert outcome.summary["bytes_16_bit"] == data_bytes(llama / "model.safetensors") / 2  # it is float32
    assert from_gguf.summary["bytes_before"] == gguf_file.stat().st_size
    assert "rounded" in from_gguf.summary["source"]


def test_numbers_follow_from_the_evidence(each: Outcome) -> None:
    summary, certificate = each.summary, each.certificate
    (claim,) = certificate.claims
    scores = evidence.from_values(scored_text(each))
    loss = scores["perplexity"]
    assert summary["perplexity_before"] == pytest.approx(math.exp(loss.reference.mean()), rel=1e-9)
    assert summary["perplexity_after"] == pytest.approx(math.exp(loss.compressed.mean()), rel=1e-9)
    assert summary["rise"] == pytest.approx(loss.degradation.mean(), abs=1e-12)
    assert summary["kl"] == pytest.approx(scores["kl"].compressed.mean() - scores["kl"].reference.mean())
    assert summary["kl"] > 0
    assert summary["agreement"] == pytest.approx(1 - scores["disagreement"].degradation.mean())
    assert 0 < summary["agreement"] < 1
    assert summary["scored"] == claim.scored == len(loss.drawn) == len(set(loss.drawn.tolist()))
    assert loss.drawn.max() < summary["population"] == claim.terms.population
    assert claim.bound >= claim.estimate or claim.above_cap
    assert summary["statement"] == certificate.statement
    assert claim.statement in certificate.statement
    assert summary["verdict"] == claim.verdict
    assert summary["claims"][0]["bound"] == summary["bound"] == claim.bound
    assert certificate.opening.number == summary["opening"] == 1
    assert certificate.confidence == summary["confidence"] == pytest.approx(0.95)
    assert each.holds is summary["holds"] is True


def test_one_rung_is_chosen(each: Outcome) -> None:
    rungs = record(each, "ladder.json")
    (chosen,) = [rung for rung in rungs if rung["chosen"]]
    assert chosen["bytes"] == each.summary["bytes_after"]
    assert chosen["verdict"] == each.certificate.claims[0].verdict
    assert chosen["plan"] == each.certificate.fingerprints["plan"]
    sizes = [rung["bytes"] for rung in rungs]
    assert sizes == sorted(sizes, reverse=True), "each rung is smaller than the one before"
    assert len(set(sizes)) == len(sizes)
    if each.certificate.claims[0].budget.is_claim:
        after = rungs[rungs.index(chosen) + 1 :]
        assert all(rung["holds"] for rung in rungs[: rungs.index(chosen) + 1])
        assert not any(rung["holds"] for rung in after)
        assert [rung["verdict"] for rung in after[1:]] == ["not reached"] * len(after[1:])


def test_a_ladder_has_rungs(outcome: Outcome) -> None:
    assert len(record(outcome, "ladder.json")) > 1, "or most of these tests look at trivial ladders"


def test_every_site_has_a_row(each: Outcome) -> None:
    ledger, plan = record(each, "ledger.json"), Plan.from_toml((each.out / "pennyweight/plan.toml").read_text())
    rows = {row["site"]: row for row in ledger}
    assert len(rows) == len(ledger)
    assert set(rows) == {*plan.steps, *plan.kept}
    for name, step in plan.steps.items():
        assert rows[name]["intended"] == step.label()
        assert rows[name]["actual"] == step.label() or rows[name]["reason"]
        assert 0 < rows[name]["error"] < 1
    assert all(rows[name]["reason"] == why for name, why in plan.kept.items())


def test_reference_scores_are_those_of_transformers(outcome: Outcome, llama: Path, text: Path) -> None:
    from transformers import AutoModelForCausalLM

    words = texts(load(llama), text, None, length=world.LENGTH, count=32, selection=32)
    loss = evidence.from_values(scored_text(outcome))["perplexity"]
    assert loss.fingerprint == words.certification.fingerprint
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    ids = words.certification.ids[loss.drawn[:50].tolist()]
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
    expected = -log_p.gather(2, ids[:, 1:, None]).mean((1, 2))
    assert np.allclose(loss.reference[:50], expected.numpy(), rtol=1e-5)


def test_splits_share_no_document(llama: Path, text: Path, parts: list[str]) -> None:
    words = texts(load(llama), text, None, length=world.LENGTH, count=10**9, selection=10**9)
    splits = [words.calibration, words.selection, words.certification]
    names = [name for split in splits for name in split.names]
    assert len(names) == len(set(names)) == len(parts)
    assert sum(split.text_bytes for split in splits) == sum(len(part.encode()) for part in parts)


def test_vllm_contract(for_vllm: Outcome) -> None:
    engine: Any
    engine, config = find("vllm"), json.loads((for_vllm.out / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"].values()
    assert groups
    grids = engine.reads.contracts[0]
    assert {group["weights"]["num_bits"] for group in groups} <= grids.bits | grids.asymmetric_bits
    assert {group["weights"]["group_size"] for group in groups} <= {32, 64, 128, None}
    of = {name: i for i, group in enumerate(groups) for name in group["targets"]}
    for block in range(2):
        for fused in (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["mlp.gate_proj", "mlp.up_proj"]):
            assert len({of.get(f"model.layers.{block}.{name}") for name in fused}) == 1
    assert "lm_head" not in of
    assert "lm_head" in config["quantization_config"]["ignore"]
    kept = {row["site"]: row for row in record(for_vllm, "ledger.json") if row["intended"] == "dense"}
    assert "vllm" in kept["lm_head"]["reason"]


def test_fit_fits(for_vllm: Outcome) -> None:
    assert for_vllm.certificate.claims[0].verdict == "measured"
    size = sum(p.stat().st_size for p in for_vllm.out.iterdir() if p.is_file())
    assert size <= 400_000
    assert size > 250_000, "and what is allowed is used"


def test_bits_are_met(by_bits: Outcome, trained: Callable[[str], Path]) -> None:
    network = load(trained("tied"))
    rows = [row for row in record(by_bits, "ledger.json") if row["bits"]]
    elements = {row["site"]: network.by_name[row["site"]].elements for row in rows}
    assert len(rows) == 21, "every linear layer of three blocks"
    average = sum(row["bits"] * elements[row["site"]] for row in rows) / sum(elements.values())
    assert 4.5 < average <= 5.0


def test_tied_tensors_are_stored_once(by_bits: Outcome) -> None:
    with safe_open(by_bits.out / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert len(names & {"model.embed_tokens.weight", "lm_head.weight"}) == 1
    assert load(by_bits.out).tied


@pytest.mark.parametrize(
    ("budget", "option"),
    [
        (Budget.fit("20KB"), "--fit"),
        (Budget(metric="bits", at_most=0.5, unit="bits per weight"), "--bits"),
    ],
)
def test_the_nearest_feasible_budget_works(
    budget: Budget, option: str, llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "small"
    run = {"calibration": text, "settings": world.settings(selection_windows=8, certification_windows=20)}
    with monkeypatch.context() as patch:

        def work(*_: Any, **__: Any) -> None:
            raise AssertionError("a budget that nothing meets is refused before work")

        patch.setattr("pennyweight.flow.job.collect", work)
        with pytest.raises(InfeasibleBudget) as caught:
            compress(llama, out, budget=budget, **run)
    assert not list(tmp_path.iterdir()), "nothing is left that would be in the way of the next try"
    name, _, value = caught.value.mend.partition(" ")
    assert name == option
    nearest = Budget.fit(value) if option == "--fit" else Budget(metric="bits", at_most=float(value), unit=budget.unit)
    made = compress(llama, out, budget=nearest, **run)
    if option == "--fit":
        assert made.summary["bytes_after"] <= nearest.at_most


@pytest.mark.slow
def test_shards_make_no_difference(outcome: Outcome, llama: Path, text: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(sharded, max_shard_size="100KB")
    shutil.copy(llama / "tokenizer.json", sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    made = compress(sharded, tmp_path / "small", budget=Budget.lose("3%"), calibration=text, settings=world.settings())
    before, after = world.hashes(outcome.out), world.hashes(made.out)
    same = ["model.safetensors", "config.json", "tokenizer.json", "pennyweight/ledger.json"]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert made.certificate.claims == outcome.certificate.claims
    verify(made.out)


@pytest.fixture(scope="module")
def quiz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_quiz(tmp_path_factory.mktemp("quiz") / "quiz.jsonl", 260)


@pytest.fixture(scope="module")
def several(llama: Path, text: Path, quiz: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One run with limits on a text and on a task."""
    limits = ["perplexity 5%", "agreement 25%", "kl 0.1", f"accuracy:{quiz} 15pt"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENNYWEIGHT_STATE", str(tmp_path_factory.mktemp("state")))
        return compress(
            llama, tmp_path_factory.mktemp("several") / "small", budget=[Budget.lose(limit) for limit in limits],
            calibration=text, settings=world.settings(),
        )  # fmt: skip


def test_several_limits_hold_together(several: Outcome, quiz: Path) -> None:
    certificate = several.certificate
    assert [claim.metric for claim in certificate.claims] == ["perplexity", "disagreement", "kl", "accuracy"]
    assert [claim.counted for claim in certificate.claims] == ["windows"] * 3 + ["questions"]
    assert several.holds is certificate.holds is all(claim.holds for claim in certificate.claims) is True
    assert certificate.statement.startswith(
        "All 4 limits are certified; the bounds hold together with 95 % confidence."
    )
    for claim in certificate.claims:  # each is tested alone, and printed at a quarter of the level
        assert claim.terms.printed_alpha == pytest.approx(claim.terms.alpha / 4)
        assert claim.bound >= claim.estimate
    spent = sum(claim.terms.printed_alpha + claim.terms.tail_alpha for claim in certificate.claims)
    assert spent <= certificate.opening.alpha * (1 + 1e-12)
    assert certificate.claims[-1].budget.on == str(quiz)
    verify(several.out)


def test_the_tightest_limit_decides_the_size(several: Outcome, llama: Path, text: Path, tmp_path: Path) -> None:
    alone = compress(
        llama, tmp_path / "alone", budget=Budget.lose("perplexity 5%"), calibration=text, settings=world.settings()
    )
    assert alone.holds
    assert several.summary["bytes_after"] >= alone.summary["bytes_after"]


def test_a_size_and_a_loss_together(llama: Path, text: Path, outcome: Outcome, tmp_path: Path) -> None:
    size = Budget.fit(f"{outcome.summary['bytes_after'] + 80_000}B")  # plans leave room for headers
    made = compress(
        llama, tmp_path / "small", budget=[size, Budget.lose("kl 0.5")], calibration=text, settings=world.settings()
    )
    assert made.summary["bytes_after"] <= size.at_most
    assert [(claim.metric, claim.verdict) for claim in made.certificate.claims] == [("kl", "certified")]
    assert verify(made.out).certificate == made.certificate


def test_one_limit_that_fails_closes_the_gate(llama: Path, text: Path, tmp_path: Path) -> None:
    bits = Budget(metric="bits", at_most=4.5, unit="bits per weight")
    made = compress(
        llama, tmp_path / "small", budget=[bits, Budget.lose("kl 0.5"), Budget.lose("agreement 0.9%")],
        calibration=text, settings=world.settings(),
    )  # fmt: skip
    assert not made.holds
    assert [claim.holds for claim in made.certificate.claims].count(False) >= 1
    missed = [claim.budget.label for claim in made.certificate.claims if not claim.holds]
    are = "is" if len(missed) == 1 else "are"
    assert f"{len(missed)} of 2 limits {are} not certified ({', '.join(missed)})" in made.certificate.statement
    assert "disagreement 0.9%" in missed


def test_two_sizes_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidBudget, match="two limits on the size"):
        compress(tmp_path / "no model", tmp_path / "small", budget=[Budget.fit("1MB"), Budget.fit("2MB")])


@pytest.mark.parametrize("method", ["coordinate_descent", "percentile"])
def test_any_quantizer_of_grids_carries_a_budget_out(method: str, llama: Path, text: Path, tmp_path: Path) -> None:
    """With predictions of its own or without."""
    bits = Budget(metric="bits", at_most=5.0, unit="bits per weight")
    made = compress(llama, tmp_path / "small", budget=bits, calibration=text, settings=world.settings(method=method))
    steps = {row["actual"].split(" ")[0] for row in record(made, "ledger.json")}
    assert method in steps
    assert verify(made.out)
