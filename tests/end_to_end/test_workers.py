"""Work shared between processes: the bytes of one process, whoever does what in which order, and whoever dies."""

from __future__ import annotations

import importlib.util
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from end_to_end import world

from pennyweight.budget import Budget
from pennyweight.errors import InvalidWorkers, MissingExtra, PennyweightError, WorkerLost
from pennyweight.flow import collect as collecting
from pennyweight.flow.compress import compress
from pennyweight.flow.delivery import Outcome
from pennyweight.flow.journal import Journal
from pennyweight.flow.load import load
from pennyweight.flow.progress import QUIET, Advance, Progress, quiet
from pennyweight.flow.steps import sample
from pennyweight.flow.working import on_ray
from pennyweight.flow.working import place as places
from pennyweight.flow.working import pool as pools
from pennyweight.flow.working.place import Place, maker, opened
from pennyweight.flow.working.pool import Pool
from pennyweight.flow.working.task import HERE, Task, Workshop
from pennyweight.network.network import Network

pytestmark = pytest.mark.xdist_group("ray")  # Ray is started once
SMALL = Budget(metric="bits", at_most=3.6, unit="bits per weight")


@dataclass(eq=False)
class Scattered:
    """Workers that know nothing of each other: each task travels as bytes to one that has opened the run by itself.

    Of the tasks that could be next a random one is taken, and what it says it needs is all that is waited for.
    """

    count: int = 3
    carried: int = 0

    def at(self, place: Place) -> Scattered:
        self.shops = [opened.__wrapped__(pickle.loads(pickle.dumps(place))) for _ in range(self.count)]
        return self

    def run(self, tasks: Iterable[Task], shop: Workshop, advance: Advance) -> None:
        draw, waiting = random.Random(self.carried), [pickle.dumps(t) for t in tasks if not shop.journal.has(t.piece)]
        missing = {pickle.loads(task).piece for task in waiting}
        while waiting:
            ready = [task for task in waiting if missing.isdisjoint(pickle.loads(task).after)]
            data = draw.choice(ready)
            waiting.remove(data)
            there, task = draw.choice(self.shops), pickle.loads(data)
            if not there.journal.has(task.piece):
                task.carry_out(there, quiet)
            missing.discard(task.piece)
            self.carried += 1


@pytest.fixture(scope="module")
def two() -> Iterator[Pool]:
    if importlib.util.find_spec("ray") is None:  # it is not imported: who starts it decides where it listens
        pytest.skip("the extra for workers is not installed")
    with Pool(2) as pool:
        yield pool


def place_of(network: Network, journal: Journal, **changes: Any) -> Place:
    values = {
        "model": network.source.path, "run": journal.directory.resolve(), "rewrites": (), "seed": 0, "threads": 1,
        "fingerprint": network.source.fingerprint, "maker": maker(), **changes,
    }  # fmt: skip
    return Place(**values)


@pytest.fixture
def run(llama: Path, tmp_path: Path) -> tuple[Network, Journal]:
    journal = Journal(tmp_path / "run")
    journal.save("header.json", {})
    return load(llama), journal


def test_scattered_work_gives_the_same_bytes_and_goes_on_alone(llama: Path, text: Path, tmp_path: Path) -> None:
    """A rewritten model; what was shared is interrupted, and ends in one process."""
    settings = world.settings(rewrites=("fold_norms",), fisher_windows=4)
    alone, shared, pool = tmp_path / "alone" / "small", tmp_path / "shared" / "small", Scattered()

    def run(out: Path, workers: Scattered | None, progress: Progress = QUIET) -> None:
        compress(
            llama, out, budget=SMALL, calibration=text, settings=settings, progress=progress,
            workers=workers,  # type: ignore[arg-type]
        )  # fmt: skip

    run(alone, None)
    with pytest.raises(KeyboardInterrupt):
        run(shared, pool, Interrupted("writing"))
    assert pool.carried >= 3 + 3 + 12, "three blocks seen, predicted, and compressed in four groups each"
    before = sorted(shared.with_name("small.run").glob("s*/*.safetensors"))
    run(shared, None)
    assert len(before) >= 3 + 12
    assert world.hashes(shared) == world.hashes(alone)
    assert not shared.with_name("small.run").exists()


def test_workers_follow_each_other_through_the_blocks(
    run: tuple[Network, Journal], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many batches, of which the last is smaller; sums are added up in the order of the windows."""
    monkeypatch.setattr(collecting, "BATCH_TOKENS", 96)
    network, journal = run
    windows = sample(text, network, count=25, length=32)
    workers = Scattered().at(place_of(network, journal))
    shared = collecting.collect(network, windows, journal, fisher_windows=5, workers=workers)
    assert workers.carried == 3 * 6, "three blocks, twice as many parts as workers"
    alone = collecting.collect(network, windows, Journal(tmp_path / "alone"), fisher_windows=5)
    for index in range(3):
        pairs = zip(sorted(shared.block(index).items()), sorted(alone.block(index).items()), strict=True)
        for (edge, found), (other, expected) in pairs:
            assert edge == other
            assert found.count == expected.count == (25 * 32 if found.gram is not None else 0)
            for name in ("gram", "mean", "abs_max", "fisher"):
                one, two = getattr(found, name), getattr(expected, name)
                assert (one is None) == (two is None)
                assert one is None or one.equal(two), (edge, name)
    assert {path.name for path in journal.directory.iterdir()} == {"header.json", "statistics"}


def test_two_processes_give_the_same_bytes_though_one_dies(
    two: Pool, outcome: Outcome, llama: Path, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    killed, enough = list[int](), threading.Event()

    def kill() -> None:
        """The first worker that is seen at work once some sites are done: between two tasks it has another name."""
        while not enough.is_set() and not killed:
            time.sleep(0.01)
            if list(tmp_path.glob("small.run/sites/*.safetensors")):
                for process in psutil.Process().children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        if process.name() == "ray::_carry_out" and not killed:
                            killed.append(process.nice())
                            process.kill()

    killer, advanced = threading.Thread(target=kill), Watching()
    killer.start()
    try:
        made = compress(
            llama, tmp_path / "small", budget=Budget.lose("3%"), calibration=text, settings=world.settings(),
            workers=two, progress=advanced,
        )  # fmt: skip
    finally:
        enough.set()
        killer.join()
    assert killed == [psutil.Process().nice()], "one, which stood back behind nobody"
    assert world.hashes(made.out) == world.hashes(outcome.out)
    for stage in ("collecting statistics", "predicting options", "compressing", "measuring candidate"):
        assert advanced.done[stage] == pytest.approx(advanced.totals[stage])
    assert capfd.readouterr().out == "", "results alone go to stdout"


@dataclass(frozen=True)
class Deadly:
    """Kills whoever carries it out, so many times."""

    name: str
    times: int
    after: ClassVar[tuple[str, ...]] = ()
    amount: ClassVar[float] = 1.0

    @property
    def piece(self) -> str:
        return f"deadly/{self.name}.json"

    def carry_out(self, shop: Workshop, advance: Advance) -> None:
        died = sorted((shop.journal.directory / "deadly").glob(f"{self.name}-*"))
        if len(died) < self.times:
            shop.journal.save(f"deadly/{self.name}-{len(died)}", {})
            os.kill(os.getpid(), signal.SIGKILL)
        shop.journal.save(self.piece, {"deaths": len(died)})


@dataclass(frozen=True)
class Failing(Deadly):
    """Says what is wrong."""

    def carry_out(self, shop: Workshop, advance: Advance) -> None:
        raise PennyweightError("this cannot be", expected="that it can", mend="do", site=self.name)


def test_how_often_a_task_is_begun_again(
    two: Pool, run: tuple[Network, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, journal = run
    workers, shop = two.at(place_of(network, journal)), Workshop(network, journal)  # who starts Ray imports it first
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(on_ray, "ATTEMPTS", 2)
    with pytest.raises(WorkerLost, match="died 2 times") as lost:
        workers.run([Deadly("a", 0), Deadly("b", 1), Deadly("c", 9)], shop, quiet)
    assert lost.value.site == "deadly/c.json"
    assert "goes on where this one stopped" in lost.value.mend
    assert journal.load("deadly/a.json") == {"deaths": 0}
    with pytest.raises(PennyweightError, match="cannot be") as failed:
        workers.run([Deadly("b", 1), Failing("f", 0)], shop, quiet)
    assert (failed.value.expected, failed.value.mend, failed.value.site) == ("that it can", "do", "f")
    assert not list(journal.directory.rglob("*f.json*"))
    workers.run([Deadly("b", 1)], shop, quiet)
    assert journal.load("deadly/b.json") == {"deaths": 1}


def test_places_that_are_not_what_they_should_be(run: tuple[Network, Journal], tmp_path: Path) -> None:
    network, journal = run
    with pytest.raises(InvalidWorkers, match="finds another model"):
        opened(place_of(network, journal, fingerprint="another"))
    with pytest.raises(InvalidWorkers, match="does not see"):
        opened(place_of(network, journal, run=tmp_path / "nowhere"))
    with pytest.raises(InvalidWorkers, match=r"differs in its code \(\w+, not older\), and would"):
        opened(place_of(network, journal, maker=(("code", "older"), *maker()[1:])))


def test_what_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch, run: tuple[Network, Journal]) -> None:
    for address in ("10.0.0.1", "ray://10.0.0.1:10001", "auto", ":6379", "host:port"):
        with pytest.raises(InvalidWorkers, match="no address"):
            Pool(address=address)
    with pytest.raises(InvalidWorkers, match="neither"):
        Pool()
    with Pool(address="127.0.0.1:1") as pool, pytest.raises(InvalidWorkers, match="no Ray cluster answers"):
        pool.at(place_of(*run))
    monkeypatch.setattr(pools.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="Ray is not installed") as missing:
        Pool(2)
    assert missing.value.mend == "pip install 'pennyweight[workers]'"


def test_one_process_does_what_is_left(run: tuple[Network, Journal]) -> None:
    network, journal = run
    journal.save("deadly/a.json", {"deaths": 7})
    done = list[float]()
    HERE.run([Deadly("a", 1), Deadly("b", 0)], Workshop(network, journal), lambda amount=1.0: done.append(amount))
    assert journal.load("deadly/a.json") == {"deaths": 7}, "what is there is not made again, deadly as it is"
    assert journal.has("deadly/b.json")
    assert done[:1] == [1.0]
    assert places.maker() == maker()


class Watching(Progress):
    """Sums of what bars were told."""

    def __init__(self) -> None:
        super().__init__(show=False)
        self.totals, self.done = dict[str, float](), dict[str, float]()

    @contextmanager
    def stage(self, name: str, total: float) -> Iterator[Advance]:
        with super().stage(name, total):
            self.totals[name] = self.totals.get(name, 0) + total

            def advance(amount: float = 1, /) -> None:
                self.done[name] = self.done.get(name, 0) + amount

            yield advance


class Interrupted(Progress):
    """Somebody presses Ctrl-C when a stage begins."""

    def __init__(self, stage: str) -> None:
        super().__init__(show=False)
        self._at = stage

    @contextmanager
    def stage(self, name: str, total: float) -> Iterator[Advance]:
        if name == self._at:
            raise KeyboardInterrupt
        with super().stage(name, total) as advance:
            yield advance
