"""Coordinate descent: go over GPTQ's codes again, each one set to the best given all the others, scales refitted.

Source: Behdin, Acharya, Gupta, Song, Zhu, Keerthi, Mazumder. QuantEase: Optimization-based Quantization for Language
Models. arXiv:2309.01885, Algorithm 2 (cyclic descent, columns of all rows at once). The refit of the scales between
two rounds is the float step of decoupleQ, arXiv:2404.12759.
Departs from it: the start is GPTQ's codes and not plain rounding, no round relaxes the codes to real numbers, and a row
keeps refitted scales only where they lowered its loss.

When: two to four bits, wherever GPTQ is used and a few times its seconds are there. Cost: a round is two matrix
products of GPTQ's size. Known failures: it fits the gram matrix more closely than GPTQ does, so it needs as many
calibration tokens at least (several an input); damping is the guard. Scales are refitted where values are linear in
them and rows stand alone (grids, affine, residual binary, learned tables); elsewhere only the codes move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from pennyweight.formats import Columns, Compressed, Fitted, Format, Linear, Scalar
from pennyweight.methods.quantization.sweep import check_sweep, column_order, sweep
from pennyweight.numerics.cholesky import damped, inverse_cholesky
from pennyweight.numerics.least_squares import group_steps
from pennyweight.numerics.linear import linear
from pennyweight.promises import BetterOnAverage, Deterministic, Promise, RowEquivariant
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class CoordinateDescent:
    """Improve GPTQ's codes one at a time, given all others, and its scales in closed form, until neither gains.

    Args:
        damping: share of mean(diag(gram)) added to the diagonal, > 0, in the start and in the loss that is lowered.
        search: shrink each group's range to the least squared error, inputs weighted by E[x²].
        rounds: over all columns, each followed by a refit; 0 leaves GPTQ's codes.
        refit: whether scales are fitted again.
        chunk: columns between two matrix products; changes speed, not the codes beyond float rounding.
    """

    name: ClassVar[str] = "coordinate_descent"
    paper: ClassVar[str] = "arXiv:2309.01885"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    takes: ClassVar[tuple[type[Format], ...]] = (Scalar,)
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(), RowEquivariant(), BetterOnAverage("round_to_nearest"))
    damping: float = 0.01
    search: bool = True
    rounds: int = 4
    refit: bool = True
    chunk: int = 64

    def __post_init__(self) -> None:
        check_sweep(self.name, self.damping, self.chunk, self.rounds)

    def compress(
        self, weight: Float[Tensor, "out in"], statistics: Statistics, format: Scalar, *, generator: Generator
    ) -> Compressed:
        """Round `weight` onto `format` as GPTQ does, then lower trace(E gram Eᵀ), E = result − weight, further.

        Raises:
            MissingStatistics: the edge this site reads carries no gram matrix.
            NotPositiveDefinite: the gram matrix has no Cholesky factor, however damped.
            InvalidFormat: the format's groups do not divide the inputs.
        """
        gram, shape = statistics.require_gram(), tuple(weight.shape)
        fitted = format.fit(weight, search=self.search, importance=gram.diagonal())
        order = column_order(gram, "activity", len(gram))
        factor = inverse_cholesky(gram, self.damping, order)
        columns = fitted.columns(shape)
        codes = sweep(weight, factor.upper, order, lambda *_: columns, self.chunk)
        metric, W = damped(gram, factor.damping), weight.float()
        losses = [start := row_losses(fitted, codes, W, metric)]
        for _ in range(self.rounds):
            before, parameters = codes, fitted
            codes = descend(codes, fitted.columns(shape), W, metric, self.chunk)
            if self.refit and format.rows_stand_alone and isinstance(fitted, Linear):
                fitted = refitted(fitted, codes, W, metric)
            losses.append(row_losses(fitted, codes, W, metric))
            if torch.equal(codes, before) and torch.equal(values(fitted, codes), values(parameters, codes)):
                break  # a fixed point; a test of the loss would make rows depend on each other
        record = {
            "damping": factor.damping, "factorisations": factor.attempts, "rounds": len(losses) - 1,
            "loss_ratio": float(losses[-1].sum() / start.sum().clamp(min=1e-30)),
        }  # fmt: skip
        return Compressed((fitted.part(codes),), shape, record)


def values(fitted: Fitted, codes: UInt8[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """What the codes stand for."""
    part = fitted.part(codes)
    return part.format.decode(part.tensors, tuple(codes.shape))


def row_losses(
    fitted: Fitted, codes: UInt8[Tensor, "out in"], weight: Float[Tensor, "out in"], metric: Float[Tensor, "in in"]
) -> Float[Tensor, " out"]:
    """E metric Eᵀ of each row, in float32, summed in float64."""
    change = values(fitted, codes) - weight
    return (linear(change, metric) * change).sum(1, dtype=torch.float64)


def descend(
    codes: UInt8[Tensor, "out in"],
    columns: Columns,
    weight: Float[Tensor, "out in"],
    metric: Float[Tensor, "in in"],
    chunk: int = 64,
) -> UInt8[Tensor, "out in"]:
    """One round: each column's codes become the nearest to where its loss is least, given all other columns.

    The loss is a parabola in one weight, so the nearest level is the best. An input without a loss keeps its codes.
    """
    W, new = weight.float().T.contiguous(), codes.T.contiguous().clone()
    change = torch.stack([columns.decode(c.float(), j) for j, c in enumerate(new)]).sub_(W)  # [in, out]
    curvature = metric.diagonal().tolist()
    for start in range(0, len(W), chunk):
        stop = min(start + chunk, len(W))
        pull = metric[start:stop] @ change  # half the gradient, kept up to date inside the chunk
        for i in range(start, stop):
            if curvature[i] <= 0:
                continue
            best = columns.encode((W[i] + change[i]).sub_(pull[i - start], alpha=1 / curvature[i]), i)
            after = columns.decode(best, i).sub_(W[i])
            new[i] = best
            pull[i + 1 - start :].addr_(metric[i + 1 : stop, i], after - change[i])
            change[i] = after
    return new.T.contiguous()


def refitted(
    fitted: Linear, codes: UInt8[Tensor, "out in"], weight: Float[Tensor, "out in"], metric: Float[Tensor, "in in"]
) -> Linear:
    """Parameters of least loss for these codes, as they are stored; rows that did not gain keep theirs."""
    old = fitted.parameters()
    change = values(fitted, codes) - weight
    steps = group_steps(fitted.factors(codes.float()), change, metric, old.shape[-1])
    # A system near singular sends parameters far away, and none may leave the narrowest type they are stored in.
    reach = (4 * old.abs().amax((0, 2), keepdim=True)).clamp(max=torch.finfo(torch.float16).max)
    fraction, exponent = torch.frexp((old + steps).clamp(-reach, reach))
    # Fourteen bits: what a product over other rows rounds differently leaves no trace in float32 scales.
    trial = fitted.refitted(torch.ldexp((fraction * 2**14).round(), exponent - 14))
    better = row_losses(trial, codes, weight, metric) < row_losses(fitted, codes, weight, metric)
    return fitted.refitted(torch.where(better[None, :, None], trial.parameters(), old))
