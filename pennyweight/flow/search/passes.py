"""Forward passes of many choices at once: KL(reference || compressed), with everything shared that can be.

Choices go through the network together, block by block: those that agree on all blocks so far share one state, and
every option's weights are unpacked once for all. Of the reference's distribution the most likely tokens are kept, and
all others as one: the KL between such summaries is at most the whole one and near it, for a hundredth of the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pennyweight.corpus import Windows
from pennyweight.flow.search.bank import Bank
from pennyweight.flow.search.study import Answer
from pennyweight.network.running.stream import CHUNK_TOKENS, Stream
from pennyweight.numerics.memory import release
from pennyweight.numerics.random import permutation
from pennyweight.plan import Option
from pennyweight.problem import Choice

KEPT = 512  # likeliest tokens of the reference; EvoPress finds no difference to all of them
ROWS = 256  # positions whose logits are in memory at once


def drawn(windows: Windows, seed: int, tokens: int, draw: int) -> Tensor:
    """Ids of so many tokens of a draw, whole windows `[n, length]`, one at least; fewer are the first of more."""
    count, length = windows.ids.shape
    order = permutation(count, seed, "search", str(draw))
    return windows.ids[torch.from_numpy(order[: max(1, min(count, tokens // length))])]


@dataclass(eq=False)
class Passes:
    """Forward passes of choices, with everything shared that can be.

    Args:
        bank: every option, carried out.
        windows: text that choices are tried on.
        seed: of the draws.
    """

    bank: Bank
    windows: Windows
    seed: int
    _reference: dict[tuple[int, int], list[_Summary]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._stream = Stream(self.bank.network)
        self._outer = self.bank.groups_of(None)
        self._groups = [self.bank.groups_of(index) for index in range(len(self.bank.network.blocks))]

    @torch.no_grad()
    def divergences(self, choices: Sequence[Choice], tokens: int, draw: int) -> list[Answer]:
        """KL of each choice with its standard error; those that agree outside the blocks go through together."""
        ids = drawn(self.windows, self.seed, tokens, draw)
        if (tokens, draw) not in self._reference:
            (states,) = self._states([None], ids)
            self._reference = {(tokens, draw): self._summaries(states)}
        summaries = self._reference[tokens, draw]
        found: dict[Choice, Answer] = {}
        for outer in sorted({tuple(choice[group] for group in self._outer) for choice in choices}):
            mine = [choice for choice in choices if tuple(choice[group] for group in self._outer) == outer]
            with self._outside(outer):
                states_of = self._states(mine, ids)
                with self._stream.end() as finish:
                    for choice, states in zip(mine, states_of, strict=True):
                        parts = zip(summaries, _rows(states), strict=True)
                        each = torch.cat([summary.divergence(finish(part)).double() for summary, part in parts])
                        windows = each.view(ids.shape).mean(1)
                        error = float(windows.std()) / len(windows) ** 0.5 if len(windows) > 1 else float("inf")
                        found[choice] = Answer(float(windows.mean()), error)
        return [found[choice] for choice in choices]

    def _states(self, choices: Sequence[Choice | None], ids: Tensor) -> list[list[Tensor]]:
        """Last hidden states of every choice, with what lies outside the blocks as it is now; None is the reference."""
        with self._stream.beginning() as begin:
            start = [begin(chunk) for chunk in torch.split(ids, max(1, CHUNK_TOKENS // ids.shape[1]))]
        release()
        return self._run(choices, start)

    @contextmanager
    def _outside(self, outer: tuple[int, ...]) -> Iterator[None]:
        """Embedding and head as some options store them."""
        network, changed = self.bank.network, dict[str, Tensor]()
        for group, option in zip(self._outer, outer, strict=True):
            weights = self.bank.weights(self.bank.table[group][option])
            changed |= {network.stored_name(name): weight for name, weight in weights.items()}
        source = network.source
        self._stream.read = lambda name: changed[name] if name in changed else source.read(name)
        try:
            yield
        finally:
            self._stream.read = None

    def _run(self, choices: Sequence[Choice | None], start: list[Tensor]) -> list[list[Tensor]]:
        """Last hidden states of every choice; None stands for the reference."""
        states: list[list[Tensor]] = [start]
        where = [0] * len(choices)  # which of the states each choice has come to
        for index in range(len(self._groups)):
            paths = [
                (place, () if choice is None else tuple(choice[group] for group in self._groups[index]))
                for place, choice in zip(where, choices, strict=True)
            ]
            distinct = sorted(set(paths))
            last = {place: number for number, (place, _) in enumerate(distinct)}
            after: list[list[Tensor]] = []
            unpacked: dict[tuple[int, int], dict[str, Tensor]] = {}
            with self._stream.block(index):
                for number, (place, local) in enumerate(distinct):
                    weights: dict[str, Tensor] = {}
                    for group, option in zip(self._groups[index], local, strict=False):
                        if (group, option) not in unpacked:
                            chosen: Option = self.bank.table[group][option]
                            unpacked[group, option] = dict(self.bank.weights(chosen))
                        weights |= unpacked[group, option]
                    after.append([self._stream.replaced(index, hidden, weights) for hidden in states[place]])
                    if last[place] == number:
                        states[place] = []
            where, states = [distinct.index(path) for path in paths], after
        return [states[place] for place in where]

    def _summaries(self, states: list[Tensor]) -> list[_Summary]:
        with self._stream.end() as finish:
            return [_Summary.of(finish(part)) for part in _rows(states)]


@dataclass(frozen=True, eq=False)
class _Summary:
    """A distribution over tokens: the likeliest ones, and the rest as one where there is a rest.

    Args:
        tokens: `[positions, kept]`.
        log: their log-probabilities, and last that of all others together, `[positions, kept + 1]`.
    """

    tokens: Tensor
    log: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> _Summary:
        log = logits.float().log_softmax(-1)
        top = log.topk(min(KEPT, log.shape[-1]), dim=-1)
        return cls(top.indices, _with_rest(top.values, log.shape[-1]))

    def divergence(self, logits: Tensor) -> Tensor:
        """KL(this || softmax(logits)) of every position, both summed up in the same way."""
        logits = logits.float()
        log = logits.gather(-1, self.tokens) - logits.logsumexp(-1, keepdim=True)
        return (self.log.exp() * (self.log - _with_rest(log, logits.shape[-1]))).sum(-1)


def _with_rest(log: Tensor, vocabulary: int) -> Tensor:
    if log.shape[-1] == vocabulary:
        return log
    rest = (1 - log.exp().double().sum(-1, keepdim=True)).clamp(min=1e-12).log().float()
    return torch.cat([log, rest], -1)


def _rows(states: list[Tensor]) -> list[Tensor]:
    return [part for state in states for part in torch.split(state.flatten(0, 1), ROWS)]
