"""Searching with measurements, from the command line: as good at one size, the same after a kill, remembered."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from end_to_end import world
from end_to_end.world import Nursery

from pennyweight.export.engines import find
from pennyweight.flow.collect import collect
from pennyweight.flow.journal import open_run
from pennyweight.flow.load import load
from pennyweight.flow.options import tabulate
from pennyweight.flow.search.refine import Search, interruptible
from pennyweight.flow.steps import sample
from pennyweight.methods.allocation import IntegerProgram
from pennyweight.plan import Option
from pennyweight.problem import Choice, Limit, Problem, Table, Trials, choice_of, options_of

METHOD = "thompson(rounds=4, batch=3, tokens=256)"


def command(llama: Path, text: Path, out: Path, search: str) -> list[str]:
    out.parent.mkdir(exist_ok=True)
    limits = ["--bits", "3.5", "--lose", "60%", "--calibration", str(text)]
    return ["compress", str(llama), *limits, *world.OPTIONS, "--out", str(out), "--search", search]


def record(out: Path, name: str) -> Any:
    return json.loads((out / "pennyweight" / name).read_text())


@pytest.fixture(scope="module")
def searched(llama: Path, text: Path, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("searched") / "small"
    ended = nursery.run(command(llama, text, out, METHOD))
    assert ended.code in (0, 1), ended.stderr
    return out


def test_no_worse_on_the_selection_split_at_the_same_size(
    llama: Path, text: Path, nursery: Nursery, searched: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "small"
    assert nursery.run(command(llama, text, plain, "")).code in (0, 1)
    kls = [record(out, "ladder.json")[0]["selection"]["perplexity"] for out in (searched, plain)]
    found, before = record(searched, "search.json"), record(plain, "summary.json")
    assert record(searched, "summary.json")["bytes_after"] <= before["bytes_after"] * 1.001
    assert found["method"] == METHOD
    assert 0 < found["kl"] < 2
    assert kls[0] <= kls[1] + 0.01
    assert not (plain / "pennyweight/search.json").exists()


def test_killed_on_the_way_ends_with_the_same_bytes(
    llama: Path, text: Path, nursery: Nursery, searched: Path, tmp_path: Path
) -> None:
    draw, again = random.Random(7), command(llama, text, tmp_path / "killed" / "small", METHOD)
    for _ in range(5):
        ended = nursery.run(again, kill_at=draw.randint(10, 45))
        assert ended.code == -signal.SIGKILL, ended.stderr
    assert nursery.run(again).code in (0, 1)
    assert world.hashes(tmp_path / "killed" / "small") == world.hashes(searched)


def test_a_study_is_kept_and_read_again(
    llama: Path, text: Path, nursery: Nursery, searched: Path, tmp_path: Path
) -> None:
    study, out = searched.parent / "small.study.sqlite", tmp_path / "again" / "small"
    assert study.is_file()
    ended = nursery.run([*command(llama, text, out, METHOD), "--study", str(study)])
    assert ended.code in (0, 1), ended.stderr
    assert record(out, "search.json") == record(searched, "search.json"), "nothing new was measured"
    assert record(out, "search.json")["measured"] > 4


@dataclass(frozen=True)
class Impatient:
    """Finds something, presses Ctrl-C, and asks for more."""

    name: ClassVar[str] = "impatient"

    def search(
        self, table: Table, problem: Problem, trials: Trials, *,
        solve: Callable[[Table, Problem], Sequence[Option]], seed: int,
    ) -> Iterator[Choice]:  # fmt: skip
        choice = choice_of(table, solve(table, problem))
        yield choice
        os.kill(os.getpid(), signal.SIGINT)
        trials.measure([choice], tokens=64)
        raise AssertionError("it should have been stopped")


def test_ctrl_c_goes_on_with_the_best_so_far(llama: Path, text: Path, tmp_path: Path) -> None:
    network = load(llama)
    with open_run(tmp_path / "run", {}) as journal:
        collected = collect(network, sample(text, network, count=8, length=32), journal, fisher_windows=4)
        table = tabulate(network, collected, find("transformers"), journal, dtype="float16")
        weights = sum(site.elements for site in network.sites if site.block is not None)
        limits = [Limit("bytes", 3.5 / 8 * weights)]
        refined = [
            Search(
                network=network, collected=collected, windows=sample(text, network, count=8, length=32, seed=1),
                journal=journal, method=method, allocation="integer_program", seed=0,
            ).refine(table, limits)
            for method in (Impatient(), METHOD)  # type: ignore[list-item]
        ]  # fmt: skip
    assert Problem.of(*limits).fits(refined[0].choice)
    steps = [[option.step.label() for option in one.choice] for one in refined]
    assert steps[0] == steps[1], "a run that was stopped and goes on keeps the choice it was stopped at"
    assert options_of(refined[0].table.groups, choice_of(refined[0].table.groups, refined[0].choice))


@dataclass(frozen=True)
class Mute:
    """Asks before it has found anything, and is stopped there."""

    name: ClassVar[str] = "mute"

    def search(
        self, table: Table, problem: Problem, trials: Trials, *,
        solve: Callable[[Table, Problem], Sequence[Option]], seed: int,
    ) -> Iterator[Choice]:  # fmt: skip
        os.kill(os.getpid(), signal.SIGINT)
        trials.measure([(0,) * len(table)], tokens=64)
        yield (0,) * len(table)


def test_stopped_before_anything_was_found_it_takes_the_prediction(llama: Path, text: Path, tmp_path: Path) -> None:
    network = load(llama)
    with open_run(tmp_path / "run", {}) as journal:
        collected = collect(network, sample(text, network, count=8, length=32), journal, fisher_windows=4)
        table = tabulate(network, collected, find("transformers"), journal, dtype="float16")
        limits = [Limit("damage", 0.2 * sum(max(option.damage for option in row) for row in table.groups))]
        for _ in range(2):
            refined = Search(
                network=network, collected=collected, windows=sample(text, network, count=8, length=32, seed=1),
                journal=journal, method=Mute(), allocation="integer_program", seed=0,  # type: ignore[arg-type]
            ).refine(table, limits)  # fmt: skip
    predicted = IntegerProgram().allocate(table.groups, Problem.of(*limits))
    assert any(one.bytes > min(o.bytes for o in row) for one, row in zip(predicted, table.groups, strict=True))
    assert [o.step.label() for o in refined.choice] == [o.step.label() for o in predicted]


def test_where_nothing_need_be_lost_nothing_is(llama: Path, text: Path, nursery: Nursery, tmp_path: Path) -> None:
    """A size that admits the dense model: no damage is predicted, and none measured."""
    arguments = command(llama, text, tmp_path / "large" / "small", METHOD)
    arguments[arguments.index("--bits") + 1] = "16"
    ended = nursery.run(arguments)
    assert ended.code == 0, ended.stderr
    assert record(tmp_path / "large" / "small", "search.json")["kl"] < 1e-4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--plan", "plan.toml", "--search", "thompson"], "--search beside a plan"),
        (["--study", "."], "this is no study"),
        (["--latency", "times.json"], "no speed that is wanted"),
        (["--speed", "2x"], "nothing is known of the engine's times"),
    ],
)
def test_what_would_be_ignored_or_fail_late_is_refused(
    more: list[str], said: str, llama: Path, text: Path, searched: Path, nursery: Nursery, tmp_path: Path
) -> None:
    out = tmp_path / "refused" / "small"
    plan = (searched / "pennyweight/plan.toml").read_text()
    (tmp_path / "plan.toml").write_text(plan)
    more = [str(tmp_path / word) if word in ("plan.toml", ".") else word for word in more]
    ended = nursery.run([*command(llama, text, out, METHOD), *more])
    assert ended.code == 2
    assert said in ended.stderr
    assert not out.exists()


def test_ctrl_c_twice_leaves() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as enough:
        assert not enough()
        os.kill(os.getpid(), signal.SIGINT)
        assert enough()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
