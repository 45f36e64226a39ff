"""GPTQ: round one column at a time; let the columns not yet rounded absorb the error.

Source: Frantar, Ashkboos, Hoefler, Alistarh. GPTQ. ICLR 2023. arXiv:2210.17323, Algorithm 1.
Departs from it: scales are fitted before the sweep, on the original weight, so the column order (most active input
first) leaves no trace in what is stored; and the sweep runs on Wᵀ, where a column of inputs is contiguous in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import Compressed, Fitted, Format, Scalar
from pennyweight.numerics.cholesky import LARGEST_DAMPING, inverse_cholesky
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
    """

    name: ClassVar[str] = "gptq"
    paper: ClassVar[str] = "arXiv:2210.17323"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    takes: ClassVar[tuple[type[Format], ...]] = (Scalar,)
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(), RowEquivariant(), BetterOnAverage("round_to_nearest"))
    damping: float = 0.01
    search: bool = True
    chunk: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.damping <= LARGEST_DAMPING or self.chunk < 1:
            raise InvalidMethod(
                f"damping={self.damping!r}, chunk={self.chunk!r}",
                expected=f"a damping above 0 and up to {LARGEST_DAMPING:g}, and a chunk of one column or more",
                mend="gptq(damping=0.01)",
                site=self.name,
            )

    def compress(
        self, weight: Float[Tensor, "out in"], statistics: Statistics, format: Scalar, *, generator: Generator
    ) -> Compressed:
        """Round `weight` onto `format`, greedily minimising trace(E gram Eᵀ), E = result − weight.

        Raises:
            MissingStatistics: the edge this site reads carries no gram matrix.
            NotPositiveDefinite: the gram matrix has no Cholesky factor, however damped.
            InvalidFormat: the format's groups do not divide the inputs.
        """
        gram = statistics.require_gram()
        scales = self._scales(weight, gram, format)
        order = gram.diagonal().argsort(descending=True, stable=True)  # most active inputs first
        factor = inverse_cholesky(gram, self.damping, order)
        U = factor.upper
        W = weight.float().T[order].contiguous()  # [in, out]: a copy, arguments are never written to
        columns = scales.columns(tuple(weight.shape))
        codes = torch.empty(W.shape, dtype=torch.uint8)
        for start in range(0, len(W), self.chunk):
            stop = min(start + self.chunk, len(W))
            errors = torch.empty(stop - start, W.shape[1])
            rows = U[start:stop].contiguous()  # U is stored by columns
            for i, column in zip(range(start, stop), order[start:stop].tolist(), strict=True):
                rounded = columns.encode(W[i], column)
                codes[column] = rounded
                error = torch.div(W[i] - columns.decode(rounded, column), rows[i - start, i], out=errors[i - start])
                W[i + 1 : stop].addr_(rows[i - start, i + 1 : stop], error, alpha=-1)
            W[stop:].addmm_(rows[:, stop:].T, errors, alpha=-1)  # one product for the whole chunk
        record = {"damping": factor.damping, "factorisations": factor.attempts}
        return Compressed((scales.part(codes.T.contiguous()),), tuple(weight.shape), record)

    def predict(
        self, weight: Float[Tensor, "out in"], statistics: Statistics, formats: Sequence[Scalar]
    ) -> Float[Tensor, "formats out"]:
        """Expected squared change of each output under each format, without the sweep.

        The sweep's loss is Σ (rounding error of column i / U_ii)² (the paper's equation 2), and the rounding errors are
        spread over the same grid as those of plain rounding; so plain rounding's errors stand in for them. It is the
        loss under the damped gram matrix: up to a tenth high as a rule, more where the matrix is nearly singular.
        """
        gram = statistics.require_gram()
        order = gram.diagonal().argsort(descending=True, stable=True)
        share = torch.empty(len(order))
        share[order] = inverse_cholesky(gram, self.damping, order).upper.diagonal().square().reciprocal()
        predicted = []
        for format in formats:
            scales = self._scales(weight, gram, format)
            error = format.decode(scales.part(scales.round(weight)).tensors, tuple(weight.shape)) - weight.float()
            predicted.append(error.square_() @ share)
        return torch.stack(predicted)

    def _scales(self, weight: Tensor, gram: Tensor, format: Scalar) -> Fitted:
        return format.fit(weight, search=self.search, importance=gram.diagonal())
