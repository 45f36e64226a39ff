"""GPTQ: round one column at a time; let the columns not yet rounded absorb the error.

Source: Frantar, Ashkboos, Hoefler, Alistarh. GPTQ. ICLR 2023. arXiv:2210.17323, Algorithm 1; the order that permutes
only inside groups: Gafni, Karnieli, Hanani. Dual Precision Quantization (group-aware reordering). arXiv:2505.14638.
Departs from it: scales are fitted before the sweep, on the original weight, so the column order (most active input
first) leaves no trace in what is stored; `static=False` fits them when the sweep reaches a group, as the paper does.
The sweep runs on Wᵀ, where a column of inputs is contiguous in memory. An input that is never active is rounded
plainly: the reference code sets its weights to zero instead, which no output of the calibration text can tell apart.

When: two to four bits and some ten thousand tokens of text; what other methods are compared with. Cost: a factor of
each gram matrix, shared by all layers that read it, and one sweep of the weight. Known failures: it fits the gram
matrix it is given: with few tokens an input, codes are better on that text than on any other. Errors of the blocks
before are not seen (`corrected_target` is for that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidFormat, InvalidMethod
from pennyweight.formats import Columns, Compressed, Fitted, Format, Part, Scalar
from pennyweight.methods.quantization.sweep import ORDERS, check_sweep, column_order, sweep
from pennyweight.numerics.cholesky import inverse_cholesky
from pennyweight.promises import BetterOnAverage, Deterministic, Promise, RowEquivariant
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class GPTQ:
    """Choose codes that keep a layer's outputs close, rather than its weights.

    Args:
        damping: share of mean(diag(gram)) added to the diagonal; no unit, > 0. Raised tenfold, and recorded, as long
            as the matrix has no factor.
        search: shrink each group's range to the least squared error, inputs weighted by E[x²].
        chunk: columns rounded between two updates of the rest; changes speed, not the codes beyond float rounding.
        order: of the inputs: `activity` (most active first), `groups` (whole groups, that of the most active input
            first, and by activity inside each) or `none` (as they are).
        static: fit scales before the sweep; otherwise on the updated weights, when the sweep reaches a group.
    """

    name: ClassVar[str] = "gptq"
    paper: ClassVar[str] = "arXiv:2210.17323"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    takes: ClassVar[tuple[type[Format], ...]] = (Scalar,)
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(), RowEquivariant(), BetterOnAverage("round_to_nearest"))
    damping: float = 0.01
    search: bool = True
    chunk: int = 64
    order: str = "activity"
    static: bool = True

    def __post_init__(self) -> None:
        check_sweep(self.name, self.damping, self.chunk)
        if self.order not in ORDERS or (self.order == "activity" and not self.static):
            raise InvalidMethod(
                f"order={self.order!r}, static={self.static!r}",
                expected=f"an order of {', '.join(ORDERS)}; scales that follow the sweep need groups in one piece",
                mend="gptq(order='groups', static=False)", site=self.name,
            )  # fmt: skip

    def compress(
        self, weight: Float[Tensor, "out in"], statistics: Statistics, format: Scalar, *, generator: Generator
    ) -> Compressed:
        """Round `weight` onto `format`, greedily minimising trace(E gram Eᵀ), E = result − weight.

        Raises:
            MissingStatistics: the edge this site reads carries no gram matrix.
            NotPositiveDefinite: the gram matrix has no Cholesky factor, however damped.
            InvalidFormat: the format's groups do not divide the inputs, or share what cannot follow the sweep.
        """
        gram, shape = statistics.require_gram(), tuple(weight.shape)
        scales = self._scales(weight, gram, format)
        order = column_order(gram, self.order, format.sharing.width(len(gram)))
        factor = inverse_cholesky(gram, self.damping, order)
        if self.static:
            columns = scales.columns(shape)
            part = scales.part(sweep(weight, factor.upper, order, lambda *_: columns, self.chunk))
        else:
            part = self._follow(weight, gram, factor.upper, order, format)
        return Compressed((part,), shape, {"damping": factor.damping, "factorisations": factor.attempts})

    def predict(
        self, weight: Float[Tensor, "out in"], statistics: Statistics, formats: Sequence[Scalar]
    ) -> Float[Tensor, "formats out"]:
        """Expected squared change of each output under each format, without the sweep.

        The sweep's loss is Σ (rounding error of column i / U_ii)² (the paper's equation 2), and the rounding errors are
        spread over the same grid as those of plain rounding; so plain rounding's errors stand in for them. It is the
        loss under the damped gram matrix: up to a tenth high as a rule, more where the matrix is nearly singular.
        """
        gram, shares, predicted = statistics.require_gram(), dict[int, Tensor](), []
        for format in formats:
            scales = self._scales(weight, gram, format)
            width = format.sharing.width(len(gram)) if self.order == "groups" else 0
            if width not in shares:
                order = column_order(gram, self.order, width)
                share = inverse_cholesky(gram, self.damping, order).upper.diagonal().square().reciprocal()
                shares[width] = share[order.argsort()]
            error = format.decode(scales.part(scales.round(weight)).tensors, tuple(weight.shape)) - weight.float()
            predicted.append(error.square_() @ shares[width])
        return torch.stack(predicted)

    def _scales(self, weight: Tensor, gram: Tensor, format: Scalar) -> Fitted:
        return format.fit(weight, search=self.search, importance=gram.diagonal())

    def _follow(self, weight: Tensor, gram: Tensor, upper: Tensor, order: Tensor, format: Scalar) -> Part:
        """Sweep with scales fitted to each group as the sweep reaches it, a group a chunk."""
        shape, width = tuple(weight.shape), format.sharing.width(len(gram))
        one = (shape[0], min(width, shape[1]))
        whole, groups = [f.shape for f in format.fields(shape)], shape[1] // one[1]
        if [(*f.shape[:-1], groups * f.shape[-1]) for f in format.fields(one)] != whole:
            raise InvalidFormat(
                f"{format.label()} with scales that follow the sweep", expected="scales that belong to one group each",
                mend="gptq(static=True)", site=self.name,
            )  # fmt: skip
        fitted: dict[int, Fitted] = {}

        def reached(start: int, now: Tensor) -> Columns:
            inputs = order[start : start + width]
            natural, diagonal = now[:, inputs.argsort()], gram.diagonal()[inputs.sort().values]
            scales = format.fit(natural, search=self.search, importance=diagonal)
            fitted[int(inputs.min())] = scales
            return _Shifted(scales.columns(one), int(inputs.min()))

        codes = sweep(weight, upper, order, reached, width)
        parts = [fitted[first].part(codes[:, first : first + width]).tensors for first in sorted(fitted)]
        return Part(format, {key: torch.cat([part[key] for part in parts], -1) for key in parts[0]})


@dataclass(frozen=True, eq=False)
class _Shifted:
    """Columns of a group, by their place in the whole weight."""

    columns: Columns
    first: int

    def encode(self, values: Tensor, column: int) -> Tensor:
        return self.columns.encode(values, column - self.first)

    def decode(self, codes: Tensor, column: int) -> Tensor:
        return self.columns.decode(codes, column - self.first)
