"""Try choices end to end: what a study knows is looked up, the rest is measured by whoever carries tasks out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from pennyweight.corpus import Windows
from pennyweight.errors import InvalidMeasurement
from pennyweight.flow.artifact import code_hash
from pennyweight.flow.progress import Advance, quiet
from pennyweight.flow.search.bank import Bank
from pennyweight.flow.search.passes import Passes
from pennyweight.flow.search.study import Answer, Study
from pennyweight.flow.versions import versions
from pennyweight.flow.working.task import HERE, Workers, Workshop
from pennyweight.numerics.hashing import of_value
from pennyweight.problem import Choice, Table, options_of

STATES = 2**30  # bytes of hidden states at once; more choices go through in several passes


class EnoughError(Exception):
    """Whoever asked for the search wants no more of it."""


def world_of(bank: Bank, windows: Windows, statistics: str) -> str:
    """Hash of everything that an answer follows from, beside the choice.

    Args:
        bank: options.
        windows: text they are tried on.
        statistics: fingerprint of the text that options were made with.
    """
    groups = [list(options[0].sites) for options in bank.table]
    return of_value(
        [bank.network.source.fingerprint, windows.fingerprint, statistics, groups, bank.seed, torch.get_num_threads(),
         code_hash(), versions()]
    )  # fmt: skip


@dataclass(eq=False)
class Evaluator:
    """Answers `problem.Trials`.

    Args:
        bank: every option, carried out.
        windows: text that choices are tried on.
        study: answers of earlier runs.
        seed: of the draws.
        stop: asked before every measurement; raises EnoughError where it says yes.
        workers: who measures.
        asked: every answer given, by tokens and draw and then by choice, whether the study knew it or not.
        measured: choices that the study did not know.
    """

    bank: Bank
    windows: Windows
    study: Study
    seed: int = 0
    stop: Callable[[], bool] | None = None
    workers: Workers = HERE
    asked: dict[tuple[int, int], dict[Choice, Answer]] = field(default_factory=dict)
    measured: int = 0

    def __post_init__(self) -> None:
        self._shop = Workshop(self.bank.network, self.bank.journal)

    @property
    def most(self) -> int:
        """Tokens there are in one draw."""
        return int(self.windows.ids.numel())

    def measure(self, choices: Sequence[Choice], *, tokens: int, draw: int = 0) -> list[float]:
        """KL of each choice, nats per token, all on the same tokens."""
        return [answer.kl for answer in self.answers(choices, tokens=tokens, draw=draw)]

    def answers(self, choices: Sequence[Choice], *, tokens: int, draw: int = 0) -> list[Answer]:
        """KL of each choice with its standard error."""
        found: dict[Choice, Answer] = {}
        for choice in choices:
            known = self.study.get(self._labels(choice), tokens, draw)
            if known is not None:
                found[choice] = known
        missing = [choice for choice in dict.fromkeys(choices) if choice not in found]
        at_once = max(1, STATES // (8 * self.counted(tokens) * self._hidden_size)) * self.workers.count
        for start in range(0, len(missing), at_once):
            if self.stop is not None and self.stop():
                raise EnoughError
            for choice, answer in self._tried(missing[start : start + at_once], tokens, draw):
                self.study.put(self._labels(choice), tokens, draw, answer)
                found[choice] = answer
        self.measured += len(missing)
        self.asked.setdefault((tokens, draw), {}).update(found)
        return [found[choice] for choice in choices]

    def counted(self, tokens: int) -> int:
        """Tokens that are really looked at where so many are asked for: whole windows, as many as there are."""
        count, length = self.windows.ids.shape
        return length * max(1, min(count, tokens // length))

    def _tried(self, choices: Sequence[Choice], tokens: int, draw: int) -> list[tuple[Choice, Answer]]:
        step = -(-len(choices) // self.workers.count)
        tasks = [
            Try(
                self.study.world, self.bank.table, self.bank.seed, self.windows, self.seed,
                tuple(choices[start : start + step]), tokens, draw,
            )
            for start in range(0, len(choices), step)
        ]  # fmt: skip
        self.workers.run(tasks, self._shop, quiet)
        found = []
        for task in tasks:
            for choice, (kl, error) in zip(task.choices, self.bank.journal.load(task.piece), strict=True):
                found.append((choice, Answer(kl, math.inf if error is None else error)))
            self.bank.journal.drop(task.piece)
        return found

    def _labels(self, choice: Choice) -> list[str]:
        return [option.step.label() for option in options_of(self.bank.table, choice)]

    @property
    def _hidden_size(self) -> int:
        return max(edge.size for edge in self.bank.network.edges.values())


@dataclass(frozen=True, eq=False)
class Try:
    """Measure some choices.

    Args:
        world: of the study.
        table: options of every group, all of them carried out.
        methods_seed: that they were carried out with.
        windows: text.
        seed: of the draws.
        choices: of the table.
        tokens: asked for.
        draw: number of the order of the windows.
    """

    world: str
    table: Table
    methods_seed: int
    windows: Windows
    seed: int
    choices: tuple[Choice, ...]
    tokens: int
    draw: int
    after: ClassVar[tuple[str, ...]] = ()

    @property
    def piece(self) -> str:
        """KL of every choice and its standard error, where there is one."""
        return f"trials/{of_value([self.world, self.seed, self.tokens, self.draw, self.choices])[:16]}.json"

    @property
    def amount(self) -> float:
        """Choices."""
        return len(self.choices)

    def carry_out(self, shop: Workshop, advance: Advance) -> None:
        """All of them together."""
        passes = shop.kept("passes", (self.world, self.seed), lambda: self._passes(shop))
        answers = passes.divergences(self.choices, self.tokens, self.draw)
        for choice, answer in zip(self.choices, answers, strict=True):
            if not math.isfinite(answer.kl):
                raise InvalidMeasurement(
                    "a choice gives a KL that is no number", expected="finite logits",
                    site=str([option.step.label() for option in options_of(self.table, choice)][:3]),
                )  # fmt: skip
        shop.journal.save(self.piece, [[a.kl, a.error if math.isfinite(a.error) else None] for a in answers])
        advance(self.amount)

    def _passes(self, shop: Workshop) -> Passes:
        return Passes(Bank(shop.network, self.table, shop.journal, self.methods_seed), self.windows, self.seed)
