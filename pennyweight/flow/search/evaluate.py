"""Try choices end to end: KL(reference || compressed) on a few tokens, with everything shared that can be.

Choices go through the network together, block by block: those that agree on all blocks so far share one state, and
every option's weights are unpacked once for all. Of the reference's distribution the most likely tokens are kept, and
all others as one: the KL between such summaries is at most the whole one and near it, for a hundredth of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pennyweight.corpus import Windows
from pennyweight.errors import InvalidMeasurement
from pennyweight.flow.artifact import code_hash
from pennyweight.flow.search.bank import Bank
from pennyweight.flow.search.study import Answer, Study
from pennyweight.flow.versions import versions
from pennyweight.network.running.stream import CHUNK_TOKENS, Stream
from pennyweight.numerics.hashing import of_value
from pennyweight.numerics.memory import release
from pennyweight.numerics.random import permutation
from pennyweight.plan import Option
from pennyweight.problem import Choice, options_of

KEPT = 512  # likeliest tokens of the reference; EvoPress finds no difference to all of them
ROWS = 256  # positions whose logits are in memory at once
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
        asked: every answer given, by tokens and draw and then by choice, whether the study knew it or not.
        measured: choices that the study did not know.
    """

    bank: Bank
    windows: Windows
    study: Study
    seed: int = 0
    stop: Callable[[], bool] | None = None
    asked: dict[tuple[int, int], dict[Choice, Answer]] = field(default_factory=dict)
    measured: int = 0
    _reference: dict[tuple[int, int], list[_Summary]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._stream = Stream(self.bank.network)
        self._outer = self.bank.groups_of(None)
        self._groups = [self.bank.groups_of(index) for index in range(len(self.bank.network.blocks))]

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
        ids = self._ids(tokens, draw)
        at_once = max(1, STATES // (8 * ids.numel() * self._hidden_size))
        for start in range(0, len(missing), at_once):
            if self.stop is not None and self.stop():
                raise EnoughError
            part = missing[start : start + at_once]
            for choice, answer in zip(part, self._divergences(part, ids, tokens, draw), strict=True):
                if not math.isfinite(answer.kl):
                    raise InvalidMeasurement(
                        "a choice gives a KL that is no number",
                        expected="finite logits",
                        site=str(self._labels(choice)[:3]),
                    )
                self.study.put(self._labels(choice), tokens, draw, answer)
                found[choice] = answer
        self.measured += len(missing)
        self.asked.setdefault((tokens, draw), {}).update(found)
        return [found[choice] for choice in choices]

    def counted(self, tokens: int) -> int:
        """Tokens that are really looked at where so many are asked for: whole windows, as many as there are."""
        return int(self._ids(tokens, 0).numel())

    def _labels(self, choice: Choice) -> list[str]:
        return [option.step.label() for option in options_of(self.bank.table, choice)]

    @property
    def _hidden_size(self) -> int:
        return max(edge.size for edge in self.bank.network.edges.values())

    def _ids(self, tokens: int, draw: int) -> Tensor:
        count, length = self.windows.ids.shape
        order = permutation(count, self.seed, "search", str(draw))
        return self.windows.ids[torch.from_numpy(order[: max(1, min(count, tokens // length))])]

    @torch.no_grad()
    def _divergences(self, choices: Sequence[Choice], ids: Tensor, tokens: int, draw: int) -> list[Answer]:
        """Choices that agree on what lies outside the blocks go through together."""
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
