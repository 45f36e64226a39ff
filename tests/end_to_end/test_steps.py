"""The flow one verb at a time, in Python."""

from __future__ import annotations

from pathlib import Path

import pennyweight as pw
from pennyweight.export.engines import find


def test_kept_statistics_serve_plans_for_several_engines(wide: Path, text: Path, tmp_path: Path) -> None:
    """Predictions for one engine lie beside the statistics, and must not be taken for another's."""
    network = pw.load(wide)
    calibration = pw.sample(text, network, count=8, length=32)
    statistics = pw.collect(network, calibration, work=tmp_path / "work")
    budget = pw.Budget(metric="bits", at_most=6.5, unit="bits per weight")
    for name in ("transformers", "vllm"):
        plan = pw.make_plan(network, statistics, budget, engine=name)
        assert plan.steps
        refused = {
            site: reason
            for site, grid in plan.formats().items()
            if (reason := find(name).refuses(network.by_name[site], grid, network)) is not None
        }
        assert not refused


def test_every_verb_in_turn(llama: Path, text: Path, tmp_path: Path) -> None:
    network = pw.load(llama)
    statistics = pw.collect(network, pw.sample(text, network, count=8, length=32), work=tmp_path / "work")
    budget = pw.Budget.lose("50%")
    plan = pw.make_plan(network, statistics, budget)
    artifact = pw.apply(plan, network, statistics, out=tmp_path / "small")
    pilot = pw.measure(network, artifact, pw.sample(text, network, count=8, length=32, split="selection"))
    measured = pw.measure(network, artifact, pw.sample(text, network, count=24, length=32, split="certification"))
    certificate = pw.certify(measured, budget, pilot=pilot)
    (claim,) = certificate.claims
    assert (claim.verdict, claim.scored, claim.holds, certificate.holds) == ("exact", 24, True, True)
    assert 0 < measured["kl"].degradation.mean() < 1
