"""ZeroQuant-FP: GPTQ onto small floats whose scales an engine applies by moving exponents.

Source: Wu, Yao, He. ZeroQuant-FP: A Leap Forward in LLMs Post-Training W4A8 Quantization Using Floating-Point Formats.
arXiv:2307.09782. Constraint M1: every scale is a power of two. M2: the scales of a row are its largest one divided by
powers of two. Under M2, E2M1 times 2^−k is an E4M3 number for k from 0 to 8, so widening to FP8 is exact.
Departs from it: of the two allowed scales around a searched one, a group takes that of less squared error, where the
paper rounds up (M1) or to the nearest (M2). LoRC (a low-rank correction) is not part of it.

When: FP4 weights beside FP8 activations. Cost: as GPTQ. Known failures: asymmetric weights, as there is no zero point;
groups of 64 or fewer, where integers with a zero point have less error; a row whose scales differ by more than 2^8
keeps 2^8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import Compressed, Format, Minifloat
from pennyweight.formats.levels import LevelScales
from pennyweight.formats.scale_types import power_of_two, round_scale, write_scale
from pennyweight.methods.quantization.sweep import check_sweep, column_order, sweep
from pennyweight.numerics.cholesky import inverse_cholesky
from pennyweight.promises import BetterOnAverage, Deterministic, Promise, RowEquivariant
from pennyweight.statistics import Statistics

CONSTRAINTS = ("m1", "m2", "none")
SHIFTS = 8  # E2M1's smallest step, 0.5, shifted by eight is E4M3's smallest number, 2^-9


@dataclass(frozen=True, kw_only=True)
class ZeroQuantFP:
    """Choose codes as GPTQ does, on scales held to powers of two.

    Args:
        constraint: `m1` (powers of two), `m2` (powers of two times one scale a row) or `none`.
        damping: share of mean(diag(gram)) added to the diagonal, > 0.
        search: start from scales of least squared error, inputs weighted by E[x²]; otherwise the whole range.
        chunk: columns rounded between two updates of the rest; changes speed, not the codes beyond float rounding.
    """

    name: ClassVar[str] = "zeroquant_fp"
    paper: ClassVar[str] = "arXiv:2307.09782"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    takes: ClassVar[tuple[type[Format], ...]] = (Minifloat,)
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(), RowEquivariant(), BetterOnAverage("round_to_nearest"))
    constraint: str = "m2"
    damping: float = 0.01
    search: bool = True
    chunk: int = 64

    def __post_init__(self) -> None:
        check_sweep(self.name, self.damping, self.chunk)
        if self.constraint not in CONSTRAINTS:
            raise InvalidMethod(
                f"constraint={self.constraint!r}", expected=", ".join(CONSTRAINTS),
                mend="zeroquant_fp(constraint='m2')", site=self.name,
            )  # fmt: skip

    def compress(
        self, weight: Float[Tensor, "out in"], statistics: Statistics, format: Minifloat, *, generator: Generator
    ) -> Compressed:
        """Round `weight` onto `format` with constrained scales, greedily minimising trace(E gram Eᵀ).

        Raises:
            MissingStatistics: the edge this site reads carries no gram matrix.
            NotPositiveDefinite: the gram matrix has no Cholesky factor, however damped.
            InvalidFormat: the format's groups do not divide the inputs, or a scale overflows its type.
        """
        gram, shape = statistics.require_gram(), tuple(weight.shape)
        fitted = format.fit(weight, search=self.search, importance=gram.diagonal())
        below, above = (
            replace(fitted, scale=scale, stored={"scale": write_scale(scale, format.scale_dtype)})
            for scale in constrained(fitted.scale, self.constraint, format.scale_dtype)
        )
        losses = [_tile_errors(candidate, weight.float(), gram.diagonal()) for candidate in (below, above)]
        scale = torch.where(losses[0] < losses[1], below.scale, above.scale)
        fitted = replace(fitted, scale=scale, stored={"scale": write_scale(scale, format.scale_dtype)})
        order = column_order(gram, "activity", len(gram))
        factor = inverse_cholesky(gram, self.damping, order)
        columns = fitted.columns(shape)
        codes = sweep(weight, factor.upper, order, lambda *_: columns, self.chunk)
        record = {"damping": factor.damping, "factorisations": factor.attempts}
        return Compressed((fitted.part(codes),), shape, record)


def _tile_errors(fitted: LevelScales, weight: Tensor, importance: Tensor) -> Tensor:
    part = fitted.part(fitted.round(weight))
    change = fitted.format.decode(part.tensors, tuple(weight.shape)) - weight
    return fitted.format.sharing.split(change.square() * importance).sum(-1)


def constrained(
    scale: Float[Tensor, "down across"], constraint: str, dtype: str
) -> tuple[Float[Tensor, "down across"], Float[Tensor, "down across"]]:
    """The scales a constraint of `ZeroQuantFP` allows next below and next above, as their type stores them."""
    if constraint == "none":
        return scale, scale
    if constraint == "m1":
        return round_scale(power_of_two(scale), dtype), round_scale(power_of_two(scale, up=True), dtype)
    largest = scale.amax(1, keepdim=True)
    halved = largest[..., None] * torch.exp2(-torch.arange(SHIFTS + 1, dtype=torch.float32))  # [down, 1, shifts]
    exact = round_scale(halved, dtype) == halved  # small types run out of digits
    last = exact.sum(-1, keepdim=True) - 1
    shift = torch.floor((largest / scale).log2() + 1e-6)[..., None]  # a shift less is a scale above
    above, below = torch.minimum(shift, last), torch.minimum(shift + 1, last)
    pick = halved.expand(*scale.shape, -1)
    return pick.gather(-1, below.long())[..., 0], pick.gather(-1, above.long())[..., 0]
