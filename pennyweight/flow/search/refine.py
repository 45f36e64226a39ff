"""Search with measurements: from predictions and limits to a choice, and to predictions that know more.

What is searched is the best choice of a size. A limit on the loss becomes one on the size first, by prediction; what
was measured on the way corrects the predicted damages, and with those the sizes of the ladder are chosen. The search
runs on the selection split. It can be stopped at any moment, and goes on from its study: what it does next hangs on
its seed and on answers alone. Interrupted once it goes on with the best choice so far, twice it leaves.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pennyweight import catalogue
from pennyweight.corpus import Windows
from pennyweight.flow.collect import Collected
from pennyweight.flow.journal import Journal
from pennyweight.flow.options import Table
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.search.bank import Bank
from pennyweight.flow.search.evaluate import EnoughError, Evaluator, world_of
from pennyweight.flow.search.study import open_study
from pennyweight.flow.search.trim import trim
from pennyweight.flow.working.task import HERE, Workers
from pennyweight.methods.search import Surrogate
from pennyweight.network.network import Network
from pennyweight.plan import Option
from pennyweight.problem import Choice, Limit, Problem, choice_of, options_of

Asked = tuple[int, int, Choice, float]  # tokens, draw, choice, KL
REACH = 1  # options to each side of the predicted one that a search may take


@dataclass(frozen=True, kw_only=True)
class Refined:
    """What a search ended with.

    Args:
        choice: of all groups.
        table: with corrected damages.
        kl: of the choice on the search's tokens, nats per token.
        record: what it took and found; what a study knew beforehand is counted too.
    """

    choice: tuple[Option, ...]
    table: Table
    kl: float
    record: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """Everything that a search needs beside its problem.

    Args:
        network: what is compressed.
        collected: its statistics.
        windows: of the selection split.
        journal: of the run.
        method: of the room `search`, by name.
        allocation: the solver, by name.
        seed: of the run.
        study: SQLite file that remembers; None for one in the journal.
        progress: told about every round.
        workers: who carries options out and measures choices.
    """

    network: Network
    collected: Collected
    windows: Windows
    journal: Journal
    method: str
    allocation: str
    seed: int
    study: Path | None = None
    progress: Progress = QUIET
    workers: Workers = HERE

    def refine(self, table: Table, limits: Sequence[Limit]) -> Refined:
        """Search the best choice within limits; one on damage is turned into one on bytes by prediction.

        Raises:
            InfeasibleBudget: nothing is within the limits.
        """
        solver = catalogue.find(self.allocation, "allocation")
        chosen = solver.allocate(table.groups, Problem.of(*limits))
        size = Limit("bytes", float(sum(option.bytes for option in chosen)))
        problem = Problem.of(size, *(limit for limit in limits if limit.of not in ("bytes", "damage")))
        few = trim(table.groups, problem, chosen, reach=REACH)
        bank = Bank(self.network, few, self.journal, self.seed)
        bank.fill(self.collected, progress=self.progress, workers=self.workers)
        world = world_of(bank, self.windows, self.collected.fingerprint)
        path = self.study or self.journal.directory / "study.sqlite"
        with open_study(path, world) as study:
            trials = Evaluator(bank, self.windows, study, seed=self.seed, workers=self.workers)
            found, asked = self._searched(trials, few, problem, solver)
            best = found[-1] if found else choice_of(few, chosen)
            (kl,) = trials.measure([best], tokens=trials.most)
        corrected = _corrected(asked, few, table)
        labels = [option.step.label() for option in options_of(few, best)]
        choice = tuple(
            next(o for o in row if o.step.label() == label)
            for row, label in zip(corrected.groups, labels, strict=True)
        )  # fmt: skip
        record = {
            "method": self.method, "improved": max(0, len(found) - 1), "measured": len(asked),
            "tokens": sum(trials.counted(tokens) for tokens, *_ in asked), "kl": kl,
            "predicted": sum(option.damage for option in options_of(few, best)),
        }  # fmt: skip
        return Refined(choice=choice, table=corrected, kl=kl, record=record)

    def _searched(
        self, trials: Evaluator, table: Sequence[Sequence[Option]], problem: Problem, solver: Any
    ) -> tuple[list[Choice], list[Asked]]:
        """Choices in the order they were found, and all that was tried; kept where the user says that they will do."""
        piece = "search/stopped.json"
        if self.journal.has(piece):
            kept = self.journal.load(piece)
            return [tuple(c) for c in kept["found"]], [(t, d, tuple(c), kl) for t, d, c, kl in kept["asked"]]
        searcher, found = catalogue.find(self.method, "search"), list[Choice]()
        stopped = False
        with self.progress.stage("searching", 1), interruptible() as enough:
            trials.stop = enough
            try:
                for choice in searcher.search(table, problem, trials, solve=solver.allocate, seed=self.seed):
                    found.append(choice)
            except EnoughError:
                stopped = True
            finally:
                trials.stop = None
        asked = [
            (tokens, draw, choice, answer.kl)
            for (tokens, draw), answers in trials.asked.items()
            for choice, answer in answers.items()
        ]
        if stopped:
            self.journal.save(piece, {"found": found, "asked": asked})
        return found, asked


def _corrected(asked: Sequence[Asked], few: Sequence[Sequence[Option]], table: Table) -> Table:
    """Damages as they are now believed, of all options, from what was measured on the tokens most choices met on."""
    counts = Counter(tokens for tokens, draw, _, _ in asked if draw == 0)
    if not counts:
        return table
    usual = max(counts, key=lambda tokens: (counts[tokens], tokens))
    places = [{option.step.label(): i for i, option in enumerate(row)} for row in table.groups]
    known = [
        (tuple(place[o.step.label()] for place, o in zip(places, options_of(few, choice), strict=True)), kl)
        for tokens, draw, choice, kl in asked
        if tokens == usual and draw == 0
    ]
    surrogate = Surrogate(table.groups)
    surrogate.learn([choice for choice, _ in known], [kl for _, kl in known])
    return replace(table, groups=surrogate.mean())


@contextmanager
def interruptible() -> Iterator[Any]:
    """The first Ctrl-C is a wish to go on with the best so far; yields whether it was said. The second interrupts."""
    wished = False

    def wish(*_: object) -> None:
        nonlocal wished
        if wished:
            raise KeyboardInterrupt
        wished = True

    try:
        before = signal.signal(signal.SIGINT, wish)
    except ValueError:  # not the main thread: nobody can press anything
        yield lambda: False
        return
    try:
        yield lambda: wished
    finally:
        signal.signal(signal.SIGINT, before)
