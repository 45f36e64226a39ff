"""AdaQuant: learn a layer's weights and scales so that, rounded, they keep its outputs.

Source: Hubara, Nahshan, Hanani, Banner, Soudry. Improving Post Training Neural Quantization: Layer-wise Calibration and
Integer Programming. arXiv:2006.10518, section 3. Weights are real numbers that may move by more than a step; rounding
passes gradients straight through, and the gradient of a scale is that of learned step sizes (arXiv:1902.08153).
Departs from it: the loss is trace(E gram Eᵀ) with its gradient in closed form, the mean over all calibration text
instead of batches of it; rates are in steps of each group's grid, so that they hold for every layer; each row keeps the
best it has seen. The bias that would absorb the mean error is written into the record (`bias`), as a layer's change
of bias is not part of its weight; input quantizers are not learned.

When: to compare with GPTQ, or where a learned scale is wanted without a sweep. Cost: a product of the gram matrix with
the weight a step. Known failures: it starts from plain rounding and stays behind GPTQ where inputs are strongly
correlated; few calibration tokens are fitted too closely, as nothing damps the gram matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import Compressed, Format, Grid, Scales
from pennyweight.numerics.linear import linear
from pennyweight.promises import BetterOnAverage, Deterministic, Promise, RowEquivariant
from pennyweight.statistics import Statistics

BETAS, TINY = (0.9, 0.999), 1e-12


@dataclass(frozen=True, kw_only=True)
class AdaQuant:
    """Learn weights and scales of one layer by Adam on its output error, rounding at every step.

    Args:
        steps: of Adam; 0 leaves rounding to nearest.
        rate: of weights, in steps of their grid, > 0; falls to zero in a straight line.
        scale_rate: of scales, as a share of each, >= 0.
        search: start from ranges of the least squared error, inputs weighted by E[x²].
    """

    name: ClassVar[str] = "adaquant"
    paper: ClassVar[str] = "arXiv:2006.10518"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    takes: ClassVar[tuple[type[Format], ...]] = (Grid,)
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(), RowEquivariant(), BetterOnAverage("round_to_nearest"))
    steps: int = 200
    rate: float = 0.005
    scale_rate: float = 0.002
    search: bool = True

    def __post_init__(self) -> None:
        if self.steps < 0 or self.rate <= 0 or self.scale_rate < 0:
            raise InvalidMethod(
                f"steps={self.steps!r}, rate={self.rate!r}, scale_rate={self.scale_rate!r}",
                expected="no negative steps, a rate above 0, no negative scale_rate",
                mend="adaquant(steps=200, rate=0.005)", site=self.name,
            )  # fmt: skip

    def compress(
        self, weight: Float[Tensor, "out in"], statistics: Statistics, format: Grid, *, generator: Generator
    ) -> Compressed:
        """Lower trace(E gram Eᵀ), E = rounded(learned weights) − weight, from where plain rounding stands.

        Raises:
            MissingStatistics: the edge this site reads carries no gram matrix.
            InvalidFormat: the format's groups do not divide the inputs, or a scale overflows its type.
        """
        gram, W, shape = statistics.require_gram(), weight.float(), tuple(weight.shape)
        split, spread = format.sharing.split, format.sharing.spread
        scales = format.fit(W, search=self.search, importance=gram.diagonal())
        first, start = scales.parameters()[0], spread(scales.parameters()[0], shape)
        zero = spread(scales.zero_point.float(), shape)
        moved, grown = torch.zeros_like(W), torch.zeros_like(first)  # in steps of the first grid; logarithms
        weights, sizes = _Adam(moved), _Adam(grown)
        best = Best(scales, W)
        for step in range(self.steps + 1):
            now = scales.refitted((first * grown.exp())[None])
            scale = spread(now.parameters()[0], shape)
            real = (W + moved * start) / scale + zero
            codes = real.round().clamp(0, format.levels - 1)
            change = (codes - zero) * scale - W
            pull = linear(change, gram)
            best.keep(now, codes, (pull * change).sum(1))
            if step == self.steps:
                break
            inside = (real >= -0.5) & (real <= format.levels - 0.5)
            left = 1 - step / self.steps
            slope = split(pull * scale * (codes - zero - torch.where(inside, real - zero, 0))).sum(-1)
            moved = moved - self.rate * left * weights.step(pull * start * inside)
            grown = grown - self.scale_rate * left * sizes.step(slope)
        part = best.scales().part(best.codes.to(torch.uint8))
        record: dict[str, Any] = {"steps": self.steps, "loss_ratio": best.ratio()}
        if statistics.mean is not None:
            record["bias"] = ((W - format.decode(part.tensors, shape)) @ statistics.mean.float()).tolist()
        return Compressed((part,), shape, record)


class _Adam:
    """Directions of Adam for one tensor."""

    def __init__(self, like: Tensor) -> None:
        self.mean, self.square, self.count = torch.zeros_like(like), torch.zeros_like(like), 0

    def step(self, gradient: Tensor) -> Tensor:
        self.count += 1
        self.mean.lerp_(gradient, 1 - BETAS[0])
        self.square.lerp_(gradient.square(), 1 - BETAS[1])
        size = (self.square / (1 - BETAS[1] ** self.count)).sqrt_()
        return self.mean / (1 - BETAS[0] ** self.count) / (size + TINY)


class Best:
    """The best that was seen of each row; of all rows together where they share scales."""

    def __init__(self, start: Scales, weight: Float[Tensor, "out in"]) -> None:
        self.start, self.codes = start, torch.zeros_like(weight)
        self.stored = start.parameters()
        self.loss = torch.full((len(weight),), torch.inf)
        self.first: Tensor | None = None

    def keep(self, scales: Scales, codes: Float[Tensor, "out in"], loss: Float[Tensor, " out"]) -> None:
        """Take over every row whose loss is lower."""
        self.first = loss if self.first is None else self.first
        if self.start.grid.rows_stand_alone:
            better = loss < self.loss
            self.stored = torch.where(better[:, None], scales.parameters(), self.stored)
        else:
            better = (loss.sum() < self.loss.sum()).expand(len(loss))
            self.stored = scales.parameters() if bool(better[0]) else self.stored
        self.codes = torch.where(better[:, None], codes, self.codes)
        self.loss = torch.where(better, loss, self.loss)

    def scales(self) -> Scales:
        """With the scales of the best."""
        return self.start.refitted(self.stored)

    def ratio(self) -> float:
        """Loss of the best over loss of the first."""
        return 1.0 if self.first is None else float(self.loss.sum() / self.first.sum().clamp(min=1e-30))
