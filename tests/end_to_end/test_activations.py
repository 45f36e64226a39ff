"""Activations and caches in a run: priced, fitted, written, measured as the engine would run them, certified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from end_to_end import world

import pennyweight as pw
from pennyweight.budget import Budget
from pennyweight.cli import main
from pennyweight.errors import InvalidFormat, InvalidMethod, InvalidModel, InvalidPlan, PennyweightError
from pennyweight.flow.check import Checked, check
from pennyweight.flow.compress import compress
from pennyweight.flow.converting.convert import Settings as Conversion
from pennyweight.flow.converting.convert import convert
from pennyweight.flow.delivery import Outcome
from pennyweight.flow.load import load
from pennyweight.flow.make_plan import check_plan
from pennyweight.flow.predict import predict
from pennyweight.flow.rewrite import rewrite
from pennyweight.flow.rounding import damages, fit
from pennyweight.flow.search.frontier import frontier
from pennyweight.flow.settings import Settings
from pennyweight.formats.passing import Static
from pennyweight.plan import Input, Plan, Step

LOSE = Budget.lose("60%")


@pytest.fixture(scope="module")
def rounded(llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Eight bits for weights and inputs, with fixed scales, and floats of eight bits for keys and values."""
    out = tmp_path_factory.mktemp("rounded") / "small"
    settings = world.settings(activations="static_mse int8 tensor asym", cache="fp8 e4m3 tensor")
    return compress(llama, out, budget=LOSE, calibration=text, settings=settings)


def test_files_say_what_the_certificate_is_about(rounded: Outcome, llama: Path) -> None:
    small = load(rounded.out)
    activations = small.source.activations  # type: ignore[attr-defined]
    plan = Plan.from_toml((rounded.out / "pennyweight" / "plan.toml").read_text())
    assert plan.cache is not None
    assert {step.label().partition(" | ")[2] for step in plan.steps.values()} == {"static_mse int8 tensor asym"}
    assert activations.inputs.keys() == plan.inputs().keys() != set()
    assert len(activations.caches) == len(load(llama).blocks)
    for rounds in activations.inputs.values():
        assert isinstance(rounds, Static)
        assert rounds.zero_point is not None
    config = json.loads((rounded.out / "config.json").read_text())["quantization_config"]
    assert {group["input_activations"]["strategy"] for group in config["config_groups"].values()} == {"tensor"}
    assert config["kv_cache_scheme"]["type"] == "float"


def test_bytes_are_those_of_the_plan(rounded: Outcome) -> None:
    plan = Plan.from_toml((rounded.out / "pennyweight" / "plan.toml").read_text())
    tensors = sum(
        path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")
        for path in rounded.out.glob("*.safetensors")
    )
    assert tensors == plan.bytes


def test_what_a_rounding_costs_is_measured_about_as_it_was_priced(llama: Path, text: Path, tmp_path: Path) -> None:
    network = load(llama)
    words = pw.sample(text, network, count=24, length=32)
    held = pw.sample(text, network, count=48, length=32, seed=1)
    statistics = pw.collect(network, words, work=tmp_path / "statistics")
    linear = [site.name for site in network.sites if site.role == "linear"]
    losses = []
    for label in ("", " | int8 tensor"):
        plan = plan_of(network, dict.fromkeys(linear, f"gptq int8 row sym{label}"))
        small = pw.apply(plan, network, statistics, out=tmp_path / f"small{label[-6:]}", calibration=words)
        losses.append(float(pw.measure(network, small, held)["kl"].degradation.mean()))
    asked = Input.parse("int8 tensor")
    fitted = fit(network, words, [asked], None, "float16", statistics.journal)
    priced = damages(network, statistics, fitted, asked.label())
    assert priced.keys() == set(linear)
    cost = losses[1] - losses[0]
    assert cost > 0
    assert cost / 4 < sum(priced.values()) < 4 * cost


def test_text_is_needed_to_fit_a_rounding(llama: Path, text: Path, tmp_path: Path) -> None:
    network = load(llama)
    words = pw.sample(text, network, count=8, length=32)
    statistics = pw.collect(network, words, work=tmp_path / "statistics")
    plan = plan_of(network, {"model.layers.0.mlp.down_proj": "gptq int8 row sym | int8 token"})
    with pytest.raises(InvalidMethod, match="no text to see them on"):
        pw.apply(plan, network, statistics, out=tmp_path / "small")


@pytest.mark.parametrize(
    ("step", "rest", "why"),
    [
        ("gptq int8 row sym | nothing int8 token", {}, "no method"),
        ("gptq int3 g32 sym | int8 token", {}, "has no product of int3"),
        ("gptq int8 row sym | int7 token", {}, "and int7 token"),
        ("gptq int8 row sym", {"cache": Input.parse("int8 tensor")}, "keeps no keys and values in int8 tensor"),
    ],
)
def test_plans_that_no_engine_computes(step: str, rest: dict[str, object], why: str, llama: Path) -> None:
    network = load(llama)
    with pytest.raises(InvalidPlan, match=why):
        check_plan(plan_of(network, {"model.layers.0.mlp.down_proj": step}, **rest), network)


def test_converting_keeps_roundings_or_says_that_they_are_gone(rounded: Outcome, text: Path, tmp_path: Path) -> None:
    before = load(rounded.out).source.activations  # type: ignore[attr-defined]
    kept = convert(rounded.out, tmp_path / "kept", to="compressed-tensors", text=text)
    assert kept.exact
    assert kept.certificate == "carried over"
    assert load(kept.out).source.activations.same(before)  # type: ignore[attr-defined]
    gone = convert(rounded.out, tmp_path / "gone", to="dense", text=text)
    assert gone.unrounded == ("int8 tensor asym", "a cache in fp8 e4m3 tensor")
    assert not gone.exact
    assert gone.certificate == "not certified"
    assert gone.kl > 0
    with pytest.raises(InvalidFormat, match="int8 tensor asym"):
        convert(rounded.out, tmp_path / "strict", to="dense", settings=Conversion(strict=True))


def test_an_engine_may_be_further_away_where_inputs_are_rounded(rounded: Outcome, text: Path) -> None:
    pytest.importorskip("compressed_tensors")
    found = check(rounded.out, text=text, windows=2, length=32)
    assert found.rounds
    assert found.usual == 0.1
    assert found.holds()
    assert Checked(engine="x", version="1", loaded=True, kl=0.05).usual == 0.02


def test_rounded_files_are_not_rewritten(rounded: Outcome) -> None:
    with pytest.raises(InvalidModel, match="round what layers read"):
        rewrite(load(rounded.out), ["fold_norms"])


def test_settings_that_no_engine_has() -> None:
    assert "int8 row sym" in [f.label() for f in Settings(activations="int8 token").target.reads.formats]  # type: ignore[attr-defined]
    for settings, why in (
        (Settings(activations="int8 token", engine="llama.cpp"), "llama.cpp does not round"),
        (Settings(activations="int8 token", formats=("int3 g32 sym",)), "no product of int3"),
        (Settings(cache="int8 tensor"), "keeps no keys and values in int8 tensor"),
    ):
        with pytest.raises(InvalidFormat, match=why):
            _ = settings.target


def test_a_search_does_not_go_with_them(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compress", str(llama), "--out", str(tmp_path / "x"), "--lose", "2%", "--search", "thompson"]
    assert main([*arguments, "--activations", "int8 token"]) == 2
    assert "a search measures plans whose layers round nothing" in capsys.readouterr().err
    settings = world.settings(cache="fp8 e4m3 tensor")
    with pytest.raises(InvalidMethod, match="a prediction measures"):
        predict(llama, LOSE, settings=settings)
    with pytest.raises(InvalidMethod, match="a frontier measures"):
        frontier(llama, tmp_path / "curve", settings=settings)


def test_a_plan_says_itself_what_is_rounded(llama: Path, text: Path, tmp_path: Path) -> None:
    plan = plan_of(load(llama), {"model.layers.0.mlp.down_proj": "gptq int8 row sym"})
    with pytest.raises(PennyweightError, match="--activations beside a plan"):
        compress(
            llama, tmp_path / "x", budget=LOSE, calibration=text, plan=plan,
            settings=world.settings(activations="int8 token"),
        )  # fmt: skip


def plan_of(network: pw.Network, steps: dict[str, str], **rest: object) -> Plan:
    values = {"kept": {}, "engine": "transformers", "dtype": "float16", "seed": 0, "bytes": 0, "damage": 0.0, **rest}
    return Plan(
        steps={name: Step.parse(step) for name, step in steps.items()}, model=network.source.fingerprint, **values,
    )  # type: ignore[arg-type]  # fmt: skip
