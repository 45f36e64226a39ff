"""A plan that names small floats is carried out, measured, certified and written like any other."""

from pathlib import Path
from typing import Any

import pytest
from end_to_end import world

from pennyweight.budget import Budget
from pennyweight.export.compressed_tensors.source import CompressedTensorsSource
from pennyweight.flow.artifact import read_record
from pennyweight.flow.compress import compress
from pennyweight.flow.delivery import Outcome
from pennyweight.flow.verify import verify
from pennyweight.plan import Plan, Step

LABELS = ("gptq fp8 e4m3 row", "round_to_nearest mxfp4", "gptq nvfp4", "gptq mxfp8 e4m3")


def test_small_floats_from_plan_to_certificate(outcome: Outcome, llama: Path, text: Path, tmp_path: Path) -> None:
    made = Plan.from_toml((outcome.out / "pennyweight/plan.toml").read_text())
    steps = {name: Step.parse(LABELS[i % len(LABELS)]) for i, name in enumerate(made.steps)}
    plan = Plan(**{**made.__dict__, "steps": steps, "notes": {}})
    found = compress(
        llama, tmp_path / "small", budget=Budget.lose("50%"), calibration=text, plan=plan, settings=world.settings()
    )
    source: Any = CompressedTensorsSource(found.out)
    for name, step in steps.items():
        assert source.read_part(f"{name}.weight").format == step.stages[0].format
    assert found.summary["kl"] > 0
    sizes = {row["name"]: row["bytes_after"] for row in read_record(found.out, "accounting.json")["rows"]}
    assert 8 * sum(sizes.values()) / (found.summary["bytes_16_bit"] / 2) == pytest.approx(found.summary["bits"])
    verify(found.out)


def test_plans_choose_from_the_formats_that_were_asked_for(llama: Path, text: Path, tmp_path: Path) -> None:
    settings = world.settings(formats=("nvfp4", "mxfp8 e4m3"))
    found = compress(
        llama,
        tmp_path / "small",
        budget=Budget(metric="bits", at_most=6.0, unit="bits per weight"),
        calibration=text,
        settings=settings,
    )
    plan = Plan.from_toml((found.out / "pennyweight/plan.toml").read_text())
    assert {step.stages[0].format.label() for step in plan.steps.values()} == {"nvfp4", "mxfp8 e4m3"}
    assert found.summary["bits"] > 4.5
