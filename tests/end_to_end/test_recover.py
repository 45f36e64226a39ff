"""Training what is stored, from the command line: better on text it did not see, and the same bytes after a kill."""

from __future__ import annotations

import json
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from end_to_end import world
from end_to_end.world import Nursery

import pennyweight as pw
from pennyweight.errors import InvalidFormat, InvalidMethod, InvalidPlan
from pennyweight.flow import recover
from pennyweight.methods.recovery import CorrectedTarget
from pennyweight.piece import Piece
from pennyweight.plan import Plan, Step

METHODS = ("block_wise(steps=40)", "end_to_end(steps=20,scale_rate=0.005,rate=0.002)")


@pytest.fixture(scope="module")
def plan(llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two bits everywhere."""
    network = pw.load(llama)
    work = tmp_path_factory.mktemp("work")
    statistics = pw.collect(network, pw.sample(text, network, count=8, length=32), work=work)
    made = pw.make_plan(network, statistics, pw.Budget(metric="bits", at_most=9, unit="bits per weight"))
    step = Step.parse(f"gptq int2 g32 sym{'' if made.dtype == 'float16' else ' ' + made.dtype}")
    return replace(made, steps=dict.fromkeys(made.steps, step))


def command(llama: Path, text: Path, plan: Plan, out: Path, recovery: tuple[str, ...]) -> list[str]:
    path = out.parent / "plan.toml"
    path.write_text(replace(plan, recovery=recovery).to_toml())
    limits = ["--lose", "40%", "--calibration", str(text)]
    return ["compress", str(llama), "--plan", str(path), *limits, *world.OPTIONS, "--out", str(out)]


def test_every_method_gains_and_the_ledger_says_so(
    llama: Path, text: Path, plan: Plan, nursery: Nursery, tmp_path: Path
) -> None:
    kl = []
    for number, recovery in enumerate([(), METHODS[:1], METHODS[1:], METHODS, ("corrected_target",)]):
        out = tmp_path / str(number) / "small"
        out.parent.mkdir()
        ended = nursery.run(command(llama, text, plan, out, recovery))
        assert ended.code in (0, 1), ended.stderr
        kl.append(json.loads((out / "pennyweight/summary.json").read_text())["kl"])
        rows = [row for row in json.loads((out / "pennyweight/ledger.json").read_text()) if row["site"] in plan.steps]
        names = "".join(f", {name.partition('(')[0]}" for name in recovery)
        assert all(row["actual"].endswith(names) or row["reason"] for row in rows)
        assert any(row["actual"] == f"{row['intended']}{names}" for row in rows)
        assert Plan.from_toml((out / "pennyweight/plan.toml").read_text()).recovery == recovery
    plain, block, whole, both, corrected = kl
    assert block < 0.97 * plain
    assert whole < plain
    assert both < 0.95 * plain
    assert corrected < plain


def test_killed_on_the_way(llama: Path, text: Path, plan: Plan, nursery: Nursery, tmp_path: Path) -> None:
    quiet, out = tmp_path / "quiet" / "small", tmp_path / "killed" / "small"
    for folder in (quiet, out):
        folder.parent.mkdir()
    assert nursery.run(command(llama, text, plan, quiet, METHODS)).code in (0, 1)
    draw, again = random.Random(5), command(llama, text, plan, out, METHODS)
    for _ in range(6):
        ended = nursery.run(again, kill_at=draw.randint(12, 40))
        assert ended.code == -signal.SIGKILL, ended.stderr
    assert nursery.run(again).code in (0, 1)
    assert world.hashes(out) == world.hashes(quiet)


def test_refused_before_any_work(
    llama: Path, text: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = pw.load(llama)
    trained = replace(plan, recovery=("end_to_end",))
    recover.check_recovery(["end_to_end"], network, plan.formats())
    site = next(iter(plan.steps))
    with pytest.raises(InvalidFormat, match="cannot learn the parameters of nf4 g32"):
        recover.check_recovery(["end_to_end"], network, {site: pw.formats.parse("nf4 g32")})
    with pytest.raises(pw.errors.UnknownName):
        recover.check_recovery(["end_to_and"], network, {})
    monkeypatch.setattr(recover, "BYTES_A_WEIGHT", 1e9)
    with pytest.raises(InvalidMethod, match="GB here"):
        recover.check_recovery(["end_to_end"], network, plan.formats())
    recover.check_recovery(["block_wise"], network, {})
    statistics = pw.collect(network, pw.sample(text, network, count=4, length=32), work=tmp_path / "work")
    with pytest.raises(InvalidPlan, match="no text for it"):
        pw.apply(trained, network, statistics, out=tmp_path / "small")


@pytest.mark.parametrize("recovery", [(), ("corrected_target",)])
def test_statistics_rest_on_no_window_that_recovery_holds_out(
    recovery: tuple[str, ...], llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):
        """Enough was seen."""

    def collect(_network: object, windows: pw.Windows, *_: object, **__: object) -> None:
        raise Seen(len(windows))

    monkeypatch.setattr("pennyweight.flow.job.collect", collect)
    settings = pw.Settings(length=32, calibration_windows=20, selection_windows=8, recovery=recovery)
    with pytest.raises(Seen) as stopped:
        pw.compress(llama, tmp_path / "small", budget=pw.Budget.lose("40%"), calibration=text, settings=settings)
    assert stopped.value.args == (18 if recovery else 20,)


def test_what_is_rounded_again_is_shown_no_more_batches_than_it_asks_for(
    llama: Path, text: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = list[tuple[int, int]]()
    real = CorrectedTarget.recover

    def watched(self: CorrectedTarget, piece: Piece, *args: Any, **kwargs: Any) -> Any:
        shown.append((piece.batches, piece.held_out))
        return real(self, piece, *args, **kwargs)

    monkeypatch.setattr(CorrectedTarget, "recover", watched)
    network, calibration = pw.load(llama), pw.sample(text, pw.load(llama), count=40, length=32)
    statistics = pw.collect(network, calibration, work=tmp_path / "work")
    asked = replace(plan, recovery=("corrected_target(batches=3)",))
    pw.apply(asked, network, statistics, out=tmp_path / "small", calibration=calibration)
    assert set(shown) == {(4, 1)}  # of eight
