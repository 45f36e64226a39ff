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
from pennyweight.methods.search import Surrogate
from pennyweight.network.network import Network
from pennyweight.plan import Option
from pennyweight.problem import Choice, Limit, Problem, options_of

REACH = 1  # options to each side of the predicted one that a search may take


@dataclass(frozen=True, kw_only=True)
class Refined:
    """What a search ended with.

    Args:
        choice: of all groups.
        table: with corrected damages, and only the options that were carried out.
        kl: of the choice on the search's tokens, nats per token.
        record: what it took and found; earlier searches of the same study are counted too.
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

    def refine(self, table: Table, limits: Sequence[Limit]) -> Refined:
        """Search the best choice within limits; one on damage is turned into one on bytes by prediction.

        Raises:
            InfeasibleBudget: nothing is within the limits.
        """
        solver = catalogue.find(self.allocation, "allocation")
        asked = Problem.of(*limits)
        chosen = solver.allocate(table.groups, asked)
        size = Limit("bytes", float(sum(option.bytes for option in chosen)))
        problem = Problem.of(size, *(limit for limit in limits if limit.of not in ("bytes", "damage")))
        few = trim(table.groups, problem, chosen, reach=REACH)
        bank = Bank(self.network, few, self.journal, self.seed)
        bank.fill(self.collected, progress=self.progress)
        world = world_of(bank, self.windows, self.collected.fingerprint)
        path = self.study or self.journal.directory / "study.sqlite"
        with open_study(path, world) as study:
            trials = Evaluator(bank, self.windows, study, seed=self.seed)
            found = self._searched(trials, few, problem, solver)
            best = found[-1]
            kl, *_ = trials.measure([best], tokens=trials.most)
            corrected, rows = self._corrected(trials, few, table), study.rows()
        record = {
            "method": self.method, "improved": len(found) - 1, "measured": len(rows),
            "tokens": sum(tokens for tokens, *_ in rows), "kl": kl,
            "predicted": sum(option.damage for option in options_of(few, best)),
        }  # fmt: skip
        return Refined(choice=options_of(corrected.groups, best), table=corrected, kl=kl, record=record)

    def _searched(
        self, trials: Evaluator, table: Sequence[Sequence[Option]], problem: Problem, solver: Any
    ) -> list[Choice]:
        """Choices in the order they were found; the journal keeps them when the user says that they will do."""
        piece = "search/stopped.json"
        if self.journal.has(piece):
            return [tuple(choice) for choice in self.journal.load(piece)]
        searcher, found = catalogue.find(self.method, "search"), list[Choice]()
        with self.progress.stage("searching", 1), interruptible() as enough:
            trials.stop = enough
            try:
                for choice in searcher.search(table, problem, trials, solve=solver.allocate, seed=self.seed):
                    found.append(choice)
            except EnoughError:
                self.journal.save(piece, found)
            finally:
                trials.stop = None
        return found

    def _corrected(self, trials: Evaluator, few: Sequence[Sequence[Option]], table: Table) -> Table:
        """Damages as the study now has them, from what was measured on the tokens most choices met on."""
        rows = [(tokens, kl, labels) for tokens, draw, kl, labels in trials.study.rows() if draw == 0]
        places = [{option.step.label(): i for i, option in enumerate(row)} for row in few]
        known = [
            (tokens, tuple(place[label] for place, label in zip(places, labels, strict=True)), kl)
            for tokens, kl, labels in rows
            if all(label in place for place, label in zip(places, labels, strict=True))
        ]
        counts = Counter(tokens for tokens, _, _ in known)
        if not counts:
            return replace(table, groups=tuple(map(tuple, few)))
        usual = max(counts, key=lambda tokens: (counts[tokens], tokens))
        surrogate = Surrogate(few)
        surrogate.learn(*zip(*[(choice, kl) for tokens, choice, kl in known if tokens == usual], strict=True))
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
