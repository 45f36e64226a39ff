"""GPTVQ: GPTQ for vectors. Round some neighbouring columns at a time to a codebook; later columns absorb the error.

Source: van Baalen et al. GPTVQ: The Blessing of Dimensionality for LLM Quantization. arXiv:2402.15319, Algorithm 1.
With (gram + damping)⁻¹ = Uᵀ U and B the d x d block of U at d columns, a change E of them costs |B⁻ᵀ E|² when all later
columns make the best of it; that is the distance by which the nearest vector is chosen here, and B⁻ᵀ E is what the rows
of U pass on.
Departs from it: the distance uses the whole block and not its diagonal; scales and codebook are learned before the
sweep, one codebook a tensor. Codes are then gone over again one vector at a time, each the best given all others
(QuantEase, arXiv:2309.01885, in vectors); after each round scales are refitted in closed form, and the codebook, in
which outputs are linear, by conjugate gradients instead of gradient descent.

When: two to three bits a weight with `vectors`. Cost: a round is some ten matrix products of GPTQ's size, and the
distances of every vector to the whole codebook. Known failures: as GPTQ it needs more tokens than inputs, and the
refits fit them more closely still; damping is the guard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

from pennyweight.formats import Compressed, Format, VectorFit, Vectors
from pennyweight.methods.quantization.sweep import check_sweep
from pennyweight.numerics.cholesky import damped, inverse_cholesky
from pennyweight.numerics.least_squares import group_steps
from pennyweight.numerics.linear import linear
from pennyweight.numerics.vectors import nearest_scaled
from pennyweight.promises import BetterOnAverage, Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class GPTVQ:
    """Choose vectors of a codebook that keep a layer's outputs close, then scales and codebook for them, in turns.

    Args:
        damping: share of mean(diag(gram)) added to the diagonal, > 0, in the sweep and in the loss that is lowered.
        search: scales of least squares, inputs weighted by E[x²]; otherwise the largest weight of each group.
        rounds: over all vectors, each followed by refits; 0 leaves the codes of the sweep.
        steps: of conjugate gradients in a refit of the codebook; 0 leaves it.
        chunk: columns between two updates of the rest; changes speed, not the codes beyond float rounding.
    """

    name: ClassVar[str] = "gptvq"
    paper: ClassVar[str] = "arXiv:2402.15319"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    takes: ClassVar[tuple[type[Format], ...]] = (Vectors,)
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(), BetterOnAverage("round_to_nearest"))
    damping: float = 0.01
    search: bool = True
    rounds: int = 2
    steps: int = 8
    chunk: int = 64

    def __post_init__(self) -> None:
        check_sweep(self.name, self.damping, self.chunk, min(self.rounds, self.steps))

    def compress(
        self, weight: Float[Tensor, "out in"], statistics: Statistics, format: Vectors, *, generator: Generator
    ) -> Compressed:
        """Round `weight` onto a codebook, lowering trace(E gram Eᵀ), E = result − weight.

        Raises:
            MissingStatistics: the edge this site reads carries no gram matrix.
            NotPositiveDefinite: the gram matrix has no Cholesky factor, however damped.
            InvalidFormat: the format's groups or vectors do not divide the inputs.
        """
        gram = statistics.require_gram()
        fitted = format.fit(weight, search=self.search, importance=gram.diagonal())
        order = vector_order(gram, format.width)
        factor = inverse_cholesky(gram, self.damping, order)
        codes, _ = vector_sweep(weight, factor.upper, order, fitted, self.chunk)
        metric, W = damped(gram, factor.damping), weight.float()
        losses = [loss(fitted, codes, W, metric)]
        for _ in range(self.rounds):
            codes = vector_descend(codes, W, metric, fitted, self.chunk)
            for refit in (self._scales, self._codebook):
                trial = refit(fitted, codes, W, metric)
                fitted = trial if loss(trial, codes, W, metric) < loss(fitted, codes, W, metric) else fitted
            losses.append(loss(fitted, codes, W, metric))
        record = {
            "damping": factor.damping, "factorisations": factor.attempts, "rounds": self.rounds,
            "loss_ratio": losses[-1] / max(losses[0], 1e-30),
        }  # fmt: skip
        return Compressed((fitted.part(codes),), tuple(weight.shape), record)

    def predict(
        self, weight: Float[Tensor, "out in"], statistics: Statistics, formats: Sequence[Vectors]
    ) -> Float[Tensor, "formats out"]:
        """Expected squared change of each output: what the sweep would lose if no error were passed on.

        As for GPTQ, weights that absorbed errors are spread over the codebook as those are that did not; what the
        rounds gain comes on top and is not foreseen.
        """
        gram, predicted = statistics.require_gram(), []
        for format in formats:
            fitted = format.fit(weight, search=self.search, importance=gram.diagonal())
            order = vector_order(gram, format.width)
            upper = inverse_cholesky(gram, self.damping, order).upper
            predicted.append(vector_sweep(weight, upper, order, fitted, self.chunk, feed=False)[1])
        return torch.stack(predicted)

    def _scales(self, fitted: VectorFit, codes: Tensor, W: Tensor, metric: Tensor) -> VectorFit:
        """Scales of least loss, tile by tile; one for the tensor stays, as the codebook can do its work."""
        if not fitted.format.sharing.rows_stand_alone:
            return fitted
        vectors = fitted.codebook[codes.long()].reshape(1, *W.shape)
        steps = group_steps(vectors, values(fitted, codes) - W, metric, fitted.scale.shape[1])[0]
        reach = 4 * fitted.scale.abs().amax()
        return replace(fitted, scale=fitted.format.stored((fitted.scale + steps).clamp(-reach, reach)))

    def _codebook(self, fitted: VectorFit, codes: Tensor, W: Tensor, metric: Tensor) -> VectorFit:
        """The codebook of least loss, by conjugate gradients from the one there is, over its own diagonal."""
        spread = fitted.format.sharing.spread(fitted.scale, W.shape)
        where, width = codes.long().flatten(), fitted.format.width

        def gathered(change: Tensor) -> Tensor:  # of each vector: half the gradient, from a change of the weight
            pulled = (linear(change, metric) * spread).reshape(-1, width)
            return torch.zeros_like(fitted.codebook).index_add_(0, where, pulled)

        own = (spread.square() * metric.diagonal()).reshape(-1, width)
        diagonal = torch.zeros_like(fitted.codebook).index_add_(0, where, own).clamp(min=1e-30)
        step = torch.zeros_like(fitted.codebook)
        residual = -gathered(values(fitted, codes) - W)
        direction = residual / diagonal
        size = (residual * direction).sum()
        for _ in range(self.steps):
            bent = gathered(direction[where].reshape(W.shape) * spread)
            along = size / (direction * bent).sum().clamp(min=1e-30)
            step, residual = step + along * direction, residual - along * bent
            before, size = size, (residual * residual / diagonal).sum()
            direction = residual / diagonal + size / before.clamp(min=1e-30) * direction
        reach = 4 * fitted.codebook.abs().amax()
        return replace(fitted, codebook=fitted.format.stored((fitted.codebook + step).clamp(-reach, reach)))


def vector_order(gram: Float[Tensor, "in in"], width: int) -> Int64[Tensor, " in"]:
    """Inputs in the order of a sweep: whole vectors, most active first, each as it is."""
    first = gram.diagonal().reshape(-1, width).sum(1).argsort(descending=True, stable=True)
    return (first[:, None] * width + torch.arange(width)).flatten()


def vector_sweep(
    weight: Float[Tensor, "out in"],
    upper: Float[Tensor, "in in"],
    order: Int64[Tensor, " in"],
    fitted: VectorFit,
    chunk: int,
    *,
    feed: bool = True,
) -> tuple[UInt8[Tensor, "out vectors"], Float[Tensor, " out"]]:
    """Codes, vector after vector, and the loss of each row; every error goes to the columns after it if `feed`."""
    width, scale = fitted.format.width, _scale_columns(fitted, weight.shape)
    W = weight.float().T[order].contiguous()  # [in, out]: a copy, arguments are never written to
    codes = torch.empty(len(W) // width, W.shape[1], dtype=torch.uint8)
    lost = torch.zeros(W.shape[1])
    step = max(1, chunk // width) * width
    for start in range(0, len(W), step):
        stop = min(start + step, len(W))
        rows, passed = upper[start:stop].contiguous(), torch.empty(stop - start, W.shape[1])
        for i in range(start, stop, width):
            own, first = slice(i - start, i - start + width), int(order[i])
            block = rows[own, i : i + width].T.contiguous()  # lower triangular
            whiten = torch.linalg.solve_triangular(block, torch.eye(width), upper=False)
            found, vectors = _choose(W[i : i + width], whiten, fitted, scale(first))
            codes[first // width] = found
            passed[own] = whiten @ (W[i : i + width] - vectors)
            if feed:
                W[i + width : stop].addmm_(rows[own, i + width : stop].T, passed[own], alpha=-1)
        lost += passed.square().sum(0)
        if feed:
            W[stop:].addmm_(rows[:, stop:].T, passed, alpha=-1)  # one product for the whole chunk
    return codes.T.contiguous(), lost


def vector_descend(
    codes: UInt8[Tensor, "out vectors"],
    weight: Float[Tensor, "out in"],
    metric: Float[Tensor, "in in"],
    fitted: VectorFit,
    chunk: int,
) -> UInt8[Tensor, "out vectors"]:
    """One round: every vector becomes the best given all others. Inputs without activity have a loss of their own.

    The loss in one vector is a paraboloid about q − H⁻¹ pull with the curvature H of its own block.
    """
    width, scale = fitted.format.width, _scale_columns(fitted, weight.shape)
    new = codes.T.contiguous().clone()
    change = (values(fitted, codes) - weight).T.contiguous()  # [in, out]
    W = weight.T.contiguous()
    step = max(1, chunk // width) * width
    for start in range(0, len(W), step):
        stop = min(start + step, len(W))
        pull = metric[start:stop] @ change  # half the gradient, kept up to date inside the chunk
        for i in range(start, stop, width):
            own, inside = slice(i, i + width), slice(i - start, i - start + width)
            root = torch.linalg.cholesky(metric[own, own])  # H = root rootᵀ
            target = W[own] + change[own] - torch.cholesky_solve(pull[inside], root)
            new[i // width], vectors = _choose(target, root.T, fitted, scale(i))
            after = vectors - W[own]
            pull.addmm_(metric[start:stop, own], after - change[own])
            change[own] = after
    return new.T.contiguous()


def _choose(target: Tensor, whiten: Tensor, fitted: VectorFit, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of the vectors of least |whiten (target − scale · vector)|², and those vectors as `[width, out]`."""
    found = nearest_scaled((whiten @ target).T, scale, fitted.codebook @ whiten.T)
    return found.to(torch.uint8), fitted.codebook[found].T * scale


def _scale_columns(fitted: VectorFit, shape: tuple[int, ...]) -> Callable[[int], Tensor]:
    sharing = fitted.format.sharing
    by_column, width = sharing.by_column(fitted.scale, shape), sharing.width(shape[1])
    return lambda column: by_column[column // width]


def values(fitted: VectorFit, codes: UInt8[Tensor, "out vectors"]) -> Float[Tensor, "out in"]:
    """What the codes stand for."""
    part = fitted.part(codes)
    return part.format.decode(part.tensors, (codes.shape[0], codes.shape[1] * fitted.format.width))


def loss(
    fitted: VectorFit, codes: UInt8[Tensor, "out vectors"], weight: Float[Tensor, "out in"], metric: Tensor
) -> float:
    """Trace(E metric Eᵀ), in float32, summed in float64."""
    change = values(fitted, codes) - weight
    return float((linear(change, metric) * change).sum(dtype=torch.float64))
