"""Predict, frontier and explain from the command line: what they say agrees with what compress does."""

from __future__ import annotations

import itertools
import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from end_to_end import world
from end_to_end.world import Nursery

import pennyweight as pw
from pennyweight.flow import predict as prediction
from pennyweight.flow.delivery import Outcome
from pennyweight.plan import Plan

POINTS = "8"


def options(out: Path | None = None) -> list[str]:
    return [*world.OPTIONS, *(["--out", str(out)] if out else [])]


@pytest.fixture(scope="module")
def curve(llama: Path, text: Path, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("frontier") / "curve"
    ended = nursery.run(command(llama, text, out))
    assert ended.code == 0, ended.stderr
    return out


def command(llama: Path, text: Path, out: Path) -> list[str]:
    out.parent.mkdir(exist_ok=True)
    given = ["--calibration", str(text), "--points", POINTS, "--tokens", "512"]
    return ["frontier", str(llama), *given, *options(out)]


def points(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "frontier.json").read_text())["points"]
    return found


def test_the_curve_falls_and_every_point_is_a_plan(curve: Path) -> None:
    found = points(curve)
    assert 4 <= len(found) <= int(POINTS)
    assert all(a["bytes"] < b["bytes"] and a["predicted"] > b["predicted"] for a, b in itertools.pairwise(found))
    assert found[0]["kl"] > 10 * found[-1]["kl"]
    assert all(point["low"] <= point["kl"] <= point["high"] for point in found)
    for point in found:
        plan = Plan.from_toml((curve / "plans" / f"{point['plan']:02d}.toml").read_text())
        assert plan.damage == pytest.approx(point["predicted"])
    page = (curve / "frontier.html").read_text()
    assert page.count("<circle") == len(found)


def test_a_point_compresses_to_the_size_and_loss_it_was_shown_with(
    curve: Path, llama: Path, text: Path, nursery: Nursery, tmp_path: Path
) -> None:
    point, out = points(curve)[1], tmp_path / "small"
    plan = ["--plan", str(curve / "plans" / f"{point['plan']:02d}.toml"), "--calibration", str(text)]
    ended = nursery.run(["compress", str(llama), *plan, *options(out)])
    assert ended.code == 0, ended.stderr
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file() and path.name != "report.html")
    assert size <= point["bytes"] <= size + 70_000
    summary = json.loads((out / "pennyweight/summary.json").read_text())
    assert summary["kl"] == pytest.approx(point["kl"], rel=0.5), "other windows of the same kind of text"
    assert not (out / "pennyweight/explanation.json").exists(), "nobody chose it here"


def test_killed_on_the_way_it_goes_on(curve: Path, llama: Path, text: Path, nursery: Nursery, tmp_path: Path) -> None:
    draw, again = random.Random(3), command(llama, text, tmp_path / "again" / "small")
    codes = [nursery.run(again, kill_at=8).code]
    while codes[-1] != 0:
        codes.append(nursery.run(again, kill_at=draw.randint(12, 40)).code)
        assert len(codes) < 60, "no progress between kills"
    assert codes[0] == codes[1] == -signal.SIGKILL
    assert points(tmp_path / "again" / "small") == points(curve)
    assert not (tmp_path / "again" / "small.run").exists()


def test_predict_says_what_compress_ends_with(llama: Path, text: Path, nursery: Nursery, tmp_path: Path) -> None:
    limit = ["--bits", "3.5", "--calibration", str(text)]
    ended = nursery.run(["predict", str(llama), *limit, "--json", *options()])
    assert ended.code == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert nursery.run(["compress", str(llama), *limit, *options(tmp_path / "small")]).code == 0
    done = json.loads((tmp_path / "small/pennyweight/summary.json").read_text())
    size = done["bytes_after"]
    assert size <= told["bytes"] <= size + 70_000
    assert told["low"] / 1.3 < done["kl"] < told["high"] * 1.3
    assert 0 < told["minutes"] < 10


def test_plain_rounding_stands_in_where_a_method_takes_long(
    llama: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = pw.Budget(metric="bits", at_most=3.5, unit="bits per weight")
    told = []
    for patience in (60.0, 0.0):
        monkeypatch.setattr(prediction, "PATIENCE", patience)
        told.append(pw.predict(llama, limit, calibration=text, settings=world.settings()))
    assert told[0].plan == told[1].plan
    assert [one.by for one in told] == ["gptq", "round_to_nearest"]
    assert told[0].factor != told[1].factor
    assert told[0].kl / 2 < told[1].kl < told[0].kl * 2


def test_what_cannot_be_is_said_at_once(llama: Path, text: Path, nursery: Nursery) -> None:
    ended = nursery.run(["predict", str(llama), "--fit", "20KB", "--calibration", str(text), *options()])
    assert ended.code == 2
    assert "mend:     --fit" in ended.stderr
    ended = nursery.run(["predict", str(llama), "--fit", "20MB", "--lose", "2%", *options()])
    assert ended.code == 2
    assert "2 budgets" in ended.stderr


def test_explain_names_what_another_bit_would_bring(outcome: Outcome, nursery: Nursery, tmp_path: Path) -> None:
    ended = nursery.run(["explain", str(outcome.out), "--json"])
    assert ended.code == 0, ended.stderr
    told = json.loads(ended.stdout)
    steps = Plan.from_toml((outcome.out / "pennyweight/plan.toml").read_text()).steps
    assert told["binding"] == "perplexity 3%"
    for group in told["groups"]:
        assert all((steps[site].label() if site in steps else "dense") == group["step"] for site in group["sites"])
        for move, more in ((group["dearer"], 1), (group["cheaper"], -1)):
            if move:
                assert move[1] * more > 0
    shown = nursery.run(["explain", str(outcome.out)])
    assert "What limited the plan: perplexity 3%" in shown.stdout
    assert nursery.run(["explain", str(tmp_path)]).code == 2


def test_the_report_draws_where_another_bit_helps(outcome: Outcome) -> None:
    from pennyweight.report import render

    page = render(outcome.out)
    assert page.count("one more megabyte would save there, as predicted") >= 1
    told = json.loads((outcome.out / "pennyweight/explanation.json").read_text())
    assert any(group["dearer"] for group in told["groups"])


def test_the_curve_of_llama_cpp_counts_embedding_and_head(splitting: Path, text: Path, tmp_path: Path) -> None:
    """Tables outside the blocks are decided and measured like everything else."""
    found = pw.frontier(
        splitting, tmp_path / "curve", points=5, tokens=512, calibration=text,
        settings=world.settings(engine="llama.cpp"),
    )  # fmt: skip
    plans = [Plan.from_toml(path.read_text()) for path in sorted((tmp_path / "curve" / "plans").iterdir())]
    assert any("embed_tokens" in site for plan in plans for site in plan.steps)
    assert found.points[0].kl > found.points[-1].kl
    assert found.points[-1].predicted <= 1e-3
