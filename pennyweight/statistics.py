"""What was seen on an edge of the network while calibration text flowed through it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import MissingStatistics


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Moments of one activation, and how much the network's output minds a change of it.

    Two passes or two machines merge with `a + b`; the means are weighted by their counts.

    Args:
        edge: the edge's name, `module.path:input` or `module.path:output`.
        count: tokens seen by `gram`, `mean` and `abs_max`.
        gram: mean of x xᵀ over tokens, float32; None where nothing reads the edge.
        mean: mean of x over tokens.
        abs_max: largest |x| per channel.
        fisher: mean over tokens of the squared gradient of the log-likelihood of a token sampled from the network
            itself, in nats² per unit²; half of it times a squared change of the activation is the KL divergence
            (nats per token) that the change costs, to second order.
        fisher_count: tokens seen by `fisher`.
        low: smallest x per channel.
        high: largest x per channel.
        sample: some rows as they were, for methods that try things out.
    """

    edge: str
    count: int
    gram: Float[Tensor, "n n"] | None = None
    mean: Float[Tensor, " n"] | None = None
    abs_max: Float[Tensor, " n"] | None = None
    fisher: Float[Tensor, " n"] | None = None
    fisher_count: int = 0
    low: Float[Tensor, " n"] | None = None
    high: Float[Tensor, " n"] | None = None
    sample: Float[Tensor, "rows n"] | None = None

    def __add__(self, other: Statistics) -> Statistics:
        if self.edge != other.edge:
            raise ValueError(f"statistics of {self.edge} and {other.edge} do not add up")
        total, fisher_total = self.count + other.count, self.fisher_count + other.fisher_count
        return Statistics(
            edge=self.edge,
            count=total,
            gram=_weighted(self.gram, self.count, other.gram, other.count),
            mean=_weighted(self.mean, self.count, other.mean, other.count),
            abs_max=_largest(self.abs_max, other.abs_max),
            fisher=_weighted(self.fisher, self.fisher_count, other.fisher, other.fisher_count),
            fisher_count=fisher_total,
            low=None if (low := _largest(_minus(self.low), _minus(other.low))) is None else -low,
            high=_largest(self.high, other.high),
            sample=self.sample
            if other.sample is None
            else other.sample
            if self.sample is None
            else torch.cat([self.sample, other.sample]),
        )

    def require_gram(self) -> Float[Tensor, "n n"]:
        """The gram matrix.

        Raises:
            MissingStatistics: none was collected on this edge.
        """
        if self.gram is None:
            raise MissingStatistics(
                "no gram matrix was collected on this edge",
                expected="statistics collected with needs={'gram'}",
                mend="collect again with the methods of the plan, or choose round_to_nearest for its sites",
                site=self.edge,
            )
        return self.gram

    def require_fisher(self) -> Float[Tensor, " n"]:
        """The mean squared gradient.

        Raises:
            MissingStatistics: none was collected on this edge.
        """
        if self.fisher is None:
            raise MissingStatistics(
                "no sensitivity was collected on this edge",
                expected="statistics collected with needs={'gram', 'fisher'}",
                mend="collect again; damages cannot be predicted in nats without it",
                site=self.edge,
            )
        return self.fisher


def _weighted(a: Tensor | None, n: int, b: Tensor | None, m: int) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return (a.double() * (n / (n + m)) + b.double() * (m / (n + m))).to(a.dtype)


def _minus(a: Tensor | None) -> Tensor | None:
    return None if a is None else -a


def _largest(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return torch.maximum(a, b)
