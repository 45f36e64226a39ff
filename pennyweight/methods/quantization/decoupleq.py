"""decoupleQ: integers and floats in turn, each best for the other, under the loss at the layer's output.

Source: Guo et al. decoupleQ: Towards 2-bit Post-Training Uniform Quantization via Decoupling Parameters into Integer
and Floating Points. arXiv:2404.12759: first stage. Integers by GPTQ under fixed scales and offsets; then scales and
offsets of a row by one linear system in float64; four times, and a row changes only where its loss fell.
Departs from it: the start is the format's own search (from minimum to maximum it starts far worse); integers
are found by GPTQ alone, without projected Adam before it; the paper's second stage trains through the network.

When: one to three bits, where the offset is worth its 16 bits a group. Cost: per round one GPTQ sweep, one product of
its size and a system of 2 · groups unknowns a row. Known failures: from four bits on it gains little that
GPTQ with a clipping search has not already; it leans on the gram matrix more than GPTQ does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.formats import Affine, Compressed, Format, Linear
from pennyweight.methods.quantization.coordinate_descent import refitted, row_losses
from pennyweight.methods.quantization.sweep import check_sweep, column_order, sweep
from pennyweight.numerics.cholesky import damped, inverse_cholesky
from pennyweight.promises import BetterOnAverage, Deterministic, Promise, RowEquivariant
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class DecoupleQ:
    """Choose integers by GPTQ and real scales and offsets by least squares, in turn, until no row gains.

    Args:
        damping: share of mean(diag(gram)) added to the diagonal, > 0.
        search: start from the format's search; otherwise from minimum to maximum, as the paper does.
        rounds: of integers and floats; 0 leaves GPTQ's result.
        chunk: columns rounded between two updates of the rest; changes speed, not the codes beyond float rounding.
    """

    name: ClassVar[str] = "decoupleq"
    paper: ClassVar[str] = "arXiv:2404.12759"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    takes: ClassVar[tuple[type[Format], ...]] = (Affine,)
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(), RowEquivariant(), BetterOnAverage("round_to_nearest"))
    damping: float = 0.01
    search: bool = True
    rounds: int = 4
    chunk: int = 64

    def __post_init__(self) -> None:
        check_sweep(self.name, self.damping, self.chunk, self.rounds)

    def compress(
        self, weight: Float[Tensor, "out in"], statistics: Statistics, format: Affine, *, generator: Generator
    ) -> Compressed:
        """Lower trace(E gram Eᵀ), E = scale · code + offset − weight, in codes and in floats by turns.

        Raises:
            MissingStatistics: the edge this site reads carries no gram matrix.
            NotPositiveDefinite: the gram matrix has no Cholesky factor, however damped.
            InvalidFormat: the format's groups do not divide the inputs, or an offset overflows its type.
        """
        gram, shape = statistics.require_gram(), tuple(weight.shape)
        order = column_order(gram, "activity", len(gram))
        factor = inverse_cholesky(gram, self.damping, order)
        metric, W = damped(gram, factor.damping), weight.float()
        best: Linear = format.fit(weight, search=self.search, importance=gram.diagonal())
        columns = best.columns(shape)
        codes = sweep(weight, factor.upper, order, lambda *_: columns, self.chunk)
        losses = row_losses(best, codes, W, metric)
        path = [float(losses.sum())]
        for _ in range(self.rounds):
            best = refitted(best, codes, W, metric)  # floats: a row keeps its own unless it gains
            losses = row_losses(best, codes, W, metric)
            columns = best.columns(shape)
            trial = sweep(weight, factor.upper, order, lambda *_, now=columns: now, self.chunk)
            after = row_losses(best, trial, W, metric)
            codes = torch.where((after < losses)[:, None], trial, codes)
            path.append(float(torch.minimum(after, losses).sum()))
        best = refitted(best, codes, W, metric)
        path.append(float(row_losses(best, codes, W, metric).sum()))
        record = {"damping": factor.damping, "factorisations": factor.attempts, "losses": path}
        return Compressed((best.part(codes),), shape, record)
