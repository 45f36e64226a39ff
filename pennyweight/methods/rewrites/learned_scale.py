"""MobileQuant: learn the scales (and shifts) that move difficulty from activations into weights.

Identity: W x = (W diag(t)⁻¹) (t ⊙ x + c) - (W diag(t)⁻¹) c, folded into what writes x and what reads it.
Source: Tan et al. MobileQuant. EMNLP Findings 2024. arXiv:2408.13933, section 3, whose learned scales are those of
OmniQuant (Shao et al., 2023, arXiv:2308.13137) and one more, from the up to the down projection.
Algebraic: equal in real arithmetic, whatever was learned.
Departs from it: the papers compare hidden states of the whole network, or of a block; here every edge is learned by
itself, from the outputs of the layers that read it, on rows kept from calibration. Queries and keys are judged
channel by channel before their positions turn them. Weight and activation ranges are not learned: formats have them.

When: one static scale for activations and 8 bits. Cost: forty steps on kept rows an edge. Known failures: as
`learned_rotation`, each edge by itself; scales of channels that calibration never showed large are guesses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.methods.rewrites.learning import (
    Layer,
    check_learning,
    layers_of,
    rounded,
    rounded_weight,
    spread_rows,
)
from pennyweight.methods.rewrites.readers import gathered, largest_read, largest_weight, observed, of_port
from pennyweight.methods.rewrites.smoothquant import smoothing
from pennyweight.network.changing.fold import Fold, Transform, written
from pennyweight.network.finding.kinds import apart, holds_shift, is_pair, takes_scales
from pennyweight.network.finding.symmetry import DIAGONAL, INVERTIBLE, Side, Symmetry
from pennyweight.network.sources.source import Source
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics

SCALED = (DIAGONAL, INVERTIBLE)
LARGEST = math.log(1e4)  # of |log t|: scales stay between 1e-4 and 1e4


class Error(Protocol):
    """What is minimised over log t and c."""

    def __call__(self, log_scale: Tensor, shift: Tensor | None) -> Tensor:
        """Differentiable."""


@dataclass(frozen=True, kw_only=True)
class LearnedScale:
    """One scale a channel, learned wherever an edge takes scales: norms, values, up projections, queries and keys.

    Args:
        steps: of Adam an edge.
        rate: of the logarithm of the scales; a cosine leads to a tenth of it.
        rows: of every activation that are looked at.
        activation_bits: of the rounded activations; 16 does not round.
        weight_bits: of the rounded weights, a scale for every output; 16 does not round.
        static: one range for all rows of an activation, fixed beforehand, and not one for each.
        alpha: exponent of SmoothQuant's formula, from which it starts.
        shift: learn shifts as well, where a bias on both sides holds them.
    """

    name: ClassVar[str] = "learned_scale"
    paper: ClassVar[str] = "arXiv:2408.13933"
    needs: ClassVar[frozenset[str]] = frozenset({"sample", "range"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    steps: int = 40
    rate: float = 0.02
    rows: int = 64
    activation_bits: int = 8
    weight_bits: int = 4
    static: bool = True
    alpha: float = 0.5
    shift: bool = True

    def __post_init__(self) -> None:
        check_learning(self.name, steps=self.steps, rate=self.rate, rows=self.rows,
                       bits=(self.activation_bits, self.weight_bits))  # fmt: skip
        if not 0 <= self.alpha <= 1:
            raise InvalidMethod(
                f"alpha={self.alpha}", expected="a number from 0 to 1", mend="alpha=0.5", site=self.name
            )

    def choose(
        self, symmetries: Sequence[Symmetry], source: Source, statistics: Mapping[str, Statistics], *,
        generator: Generator,
    ) -> tuple[Fold, ...]:  # fmt: skip
        """One learned scale for every edge that lets scales through and whose activations were seen.

        Raises:
            MissingStatistics: no rows of an activation were kept.
        """
        folds = []
        for symmetry in apart(s for s in symmetries if takes_scales(s) or (is_pair(s) and s.group in SCALED)):
            if is_pair(symmetry):
                error, start = self.pair(symmetry, statistics)
            else:
                error = LayerError(layers_of(symmetry, source, statistics, count=self.rows), self)
                s = smoothing(largest_read(symmetry, statistics), largest_weight(symmetry, source), self.alpha)
                start = 1 / s
            if error is not None:
                folds.append(Fold(symmetry, self.learn(start, error, self.shift and holds_shift(symmetry))))
        return tuple(folds)

    def pair(self, symmetry: Symmetry, statistics: Mapping[str, Statistics]) -> tuple[Error | None, Tensor]:
        """What to minimise for queries and keys, and k^alpha for the largest key; None where one was not seen."""
        start = torch.ones(symmetry.size, dtype=torch.float64)
        seen = [
            (side, observed(side, statistics, written(side))) for side in symmetry.sides if side.port.kind != "bias"
        ]
        rows = [
            (s, spread_rows(of_port(one.sample, s), self.rows)) for s, one in seen if one and one.sample is not None
        ]
        queries, keys = ([(s, x) for s, x in rows if s.inverse == inverse][:1] for inverse in (False, True))
        if not queries or not keys:
            return None, start
        largest = gathered(torch.zeros_like(start), keys[0][1].abs().amax(0), keys[0][0], "amax")
        start = torch.where(largest > 0, largest**self.alpha, start)
        return PairError(queries[0][0], keys[0][0], queries[0][1], keys[0][1], self), start

    def learn(self, start: Tensor, error: Error, shifts: bool) -> Transform:
        """The best scales on the way; never worse on `error` than SmoothQuant's, or than none."""
        log_scale = start.log().clamp(-LARGEST, LARGEST)
        shift = torch.zeros_like(start) if shifts else None
        best, lowest = (torch.zeros_like(start), shift), float(error(torch.zeros_like(start), shift))
        parameters = [p.clone().requires_grad_() for p in (log_scale, shift) if p is not None]
        optimizer = torch.optim.Adam(parameters, lr=self.rate)
        for step in range(self.steps + 1):
            with torch.enable_grad():
                now = (parameters[0], parameters[1] if shifts else None)
                value = error(*now)
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
            if float(value.detach()) < lowest:
                lowest = float(value.detach())
                best = (now[0].detach().clone(), None if now[1] is None else now[1].detach().clone())
            for group in optimizer.param_groups:
                group["lr"] = self.rate * (0.55 + 0.45 * math.cos(math.pi * step / max(1, self.steps)))
            optimizer.step()
            with torch.no_grad():
                parameters[0].clamp_(-LARGEST, LARGEST)
        return Transform(scale=best[0].exp(), shift=best[1])


@dataclass(frozen=True, eq=False)
class LayerError:
    """Relative squared error of the outputs of layers with rounded inputs and weights, summed over activations.

    Args:
        layers: that read the edge.
        method: for the bits.
    """

    layers: Sequence[Layer]
    method: LearnedScale

    def __call__(self, log_scale: Tensor, shift: Tensor | None) -> Tensor:
        """The error with scales exp(log_scale) and shifts; differentiable."""
        errors = []
        for layer in self.layers:
            t = layer.reading.spread(log_scale.exp())
            c = torch.zeros_like(t) if shift is None else layer.reading.spread(shift, 0.0)
            scaled = layer.weight / t
            x = rounded(layer.inputs * t + c, self.method.activation_bits, whole=self.method.static)
            y = layer.reading.outputs(x, rounded_weight(scaled, self.method.weight_bits))
            off = y - layer.reading.outputs(c[None], scaled) - layer.expected
            errors.append(off.square().sum() / layer.expected.square().sum().clamp(min=1e-300))
        return torch.stack(errors).sum()


@dataclass(frozen=True, eq=False)
class PairError:
    """Error of products of two rounded activations: each one's rounding, weighted by the other's power.

    Args:
        first: the side that takes the scale.
        second: the side that takes its inverse.
        first_rows: of what the first writes.
        second_rows: of what the second writes.
        method: for the bits.
    """

    first: Side
    second: Side
    first_rows: Tensor
    second_rows: Tensor
    method: LearnedScale

    def __call__(self, log_scale: Tensor, shift: Tensor | None) -> Tensor:
        """The error with scales exp(log_scale); differentiable."""
        size, bits, errors = len(log_scale), self.method.activation_bits, []
        ways = ((self.first_rows, self.first, 1), (self.second_rows, self.second, -1))
        powers = [pooled(x.square().mean(0), side.index, size) for x, side, _ in ways]
        for (x, side, sign), power in zip(ways, reversed(powers), strict=True):
            t = (sign * log_scale).exp()[side.index]
            off = rounded(x * t, bits, whole=self.method.static) / t - x
            errors.append((pooled(off.square().mean(0), side.index, size) * power).sum())
        return torch.stack(errors).sum() / (powers[0] * powers[1]).sum().clamp(min=1e-300)


def pooled(values: Tensor, index: Tensor, size: int) -> Tensor:
    """The mean of the channels that share a scale."""
    count = torch.zeros(size, dtype=values.dtype).index_add(0, index, torch.ones_like(values))
    return torch.zeros(size, dtype=values.dtype).index_add(0, index, values) / count.clamp(min=1)
