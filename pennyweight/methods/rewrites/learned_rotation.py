"""SpinQuant: learn the rotations, by gradient steps that never leave the orthogonal matrices.

Identity: W x = (W Rᵀ) (R x), on the residual stream (R1) and inside heads (R2), folded into weights.
Source: Liu et al. SpinQuant: LLM Quantization with Learned Rotations. ICLR 2025. arXiv:2405.16406, section 3; the step
is that of Li, Fuxin and Todorovic, arXiv:2002.01113: R' = (I + t/2 A)⁻¹ (I - t/2 A) R with the skew A = G Rᵀ - R Gᵀ.
Algebraic: equal in real arithmetic, whatever was learned.
Departs from it: the paper's loss is the cross entropy of the whole rounded network; here it is the sum of the relative
output errors of the layers that read the edge, on rows kept from calibration, so each rotation is learned by itself and
no network is run. The inverse is solved for and not iterated; the step is the paper's cap, 1 / ‖A‖₁, times a cosine.

When: activations of four bits, where seconds are there for it. Cost: minutes a network; rows of activations are kept.
Known failures: every edge minds its own layers, so what the network as a whole would want is not seen; with few rows it
learns them by heart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from pennyweight.methods.rewrites.hadamard import check_fallback, random_hadamard_or
from pennyweight.methods.rewrites.learning import (
    UNROUNDED,
    Layer,
    check_learning,
    layers_of,
    rounded,
    rounded_weight,
    some_readers,
)
from pennyweight.methods.rewrites.rotations import drawn, rotatable, rotation
from pennyweight.network.changing.fold import Fold, Rewritten
from pennyweight.network.finding.kinds import is_pair
from pennyweight.network.finding.symmetry import Symmetry
from pennyweight.network.sources.source import Source
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class LearnedRotation:
    """Rotations that start as randomised Hadamard matrices and are turned until rounding hurts less.

    Args:
        steps: Cayley steps an edge; 0 leaves the Hadamard matrices.
        rate: share of the largest safe step that the first one takes; a cosine leads to zero.
        rows: of every activation that are looked at.
        edges: most activations of one stream that are looked at, evenly spread; the weights that read them are held
            in memory in float64.
        activation_bits: of the rounded activations, a range for every row; 16 does not round.
        weight_bits: of the rounded weights, a scale for every output. 16 does not round, which is right where the
            weights are rounded by GPTQ afterwards.
        residual: rotate the streams that norms read. One with a norm whose output is added to it is left alone.
        heads: rotate inside heads; queries and keys, which no layer reads, keep the matrices they start with.
        fold: fold the gains of norms away first; otherwise a norm that holds one is refused.
        fallback: `random`, `blocks` or `refuse`, as in hadamard.
    """

    name: ClassVar[str] = "learned_rotation"
    paper: ClassVar[str] = "arXiv:2405.16406"
    needs: ClassVar[frozenset[str]] = frozenset({"sample"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    steps: int = 30
    rate: float = 1.0
    rows: int = 64
    edges: int = 32
    activation_bits: int = 4
    weight_bits: int = 16
    residual: bool = True
    heads: bool = True
    fold: bool = True
    fallback: str = "random"

    def __post_init__(self) -> None:
        check_fallback(self.fallback, self.name)
        check_learning(self.name, steps=self.steps, rate=self.rate, rows=min(self.rows, self.edges),
                       bits=(self.activation_bits, self.weight_bits))  # fmt: skip

    def choose(
        self, symmetries: Sequence[Symmetry], source: Source, statistics: Mapping[str, Statistics], *,
        generator: Generator,
    ) -> tuple[Fold, ...]:  # fmt: skip
        """Folds that empty the norms, then one learned rotation an edge.

        Raises:
            InvalidTransform: a shared tensor keeps a gain from leaving, or nothing can be rotated.
            MissingStatistics: no rows of an activation were kept.
        """
        found = rotatable(symmetries, source, generator, method=self.name, residual=self.residual, heads=self.heads,
                          fold=self.fold)  # fmt: skip
        emptied, turned = Rewritten(source, found.folds), []
        for edge in found.edges:
            start = drawn(edge, lambda n: random_hadamard_or(n, generator, self.fallback))
            if not is_pair(edge):
                read = some_readers(edge, statistics, self.edges)
                layers = layers_of(read, emptied, statistics, count=self.rows, folds=found.folds)
                start = self.learn(start, RotatedError(edge, layers, self))
            turned.append(Fold(edge, rotation(edge, start)))
        return (*found.folds, *turned)

    def learn(self, start: Tensor, objective: RotatedError) -> Tensor:
        """The best of all matrices on the way, exactly orthogonal `[blocks, b, b]`; never worse than the first."""
        R = best = nearest_orthogonal(start)
        lowest = math.inf
        for step in range(self.steps + 1):
            with torch.enable_grad():
                R = R.detach().requires_grad_()
                error = objective(R)
                (G,) = torch.autograd.grad(error, R)
            if float(error.detach()) < lowest:
                lowest, best = float(error.detach()), R.detach()
            R = cayley(R.detach(), G, self.rate * (1 + math.cos(math.pi * step / max(1, self.steps))) / 2)
        return nearest_orthogonal(best)


@dataclass(frozen=True, eq=False)
class RotatedError:
    """Relative squared error of the outputs of layers whose inputs are rotated and rounded, summed over layers.

    Args:
        edge: what is rotated.
        layers: that read it.
        method: for the bits.
    """

    edge: Symmetry
    layers: Sequence[Layer]
    method: LearnedRotation

    def __call__(self, blocks: Tensor) -> Tensor:
        """The error for some `drawn` blocks; differentiable."""
        matrix = rotation(self.edge, blocks).matrix
        assert matrix is not None
        return torch.stack([self._of(layer, matrix) for layer in self.layers]).sum()

    def _of(self, layer: Layer, matrix: Tensor) -> Tensor:
        """Rounding happens in the rotated basis; what is left of it is looked at in the original one."""
        x, weight, index = layer.inputs, layer.weight, layer.reading.side.index
        seen = turned(rounded(turned(x, matrix, index), self.method.activation_bits), matrix.mT, index)
        if self.method.weight_bits >= UNROUNDED:  # ‖(seen - x) Wᵀ‖² needs no more of W than Wᵀ W
            error = (((seen - x) @ layer.gram) * (seen - x)).sum()
        else:
            held = turned(rounded_weight(turned(weight, matrix, index), self.method.weight_bits), matrix.mT, index)
            error = (seen @ held.mT - layer.expected).square().sum()
        return error / ((x @ layer.gram) * x).sum().clamp(min=1e-300)


def turned(x: Tensor, blocks: Tensor, index: Tensor) -> Tensor:
    """Rows `[rows, n]` with every run of channels multiplied by the block it follows: T x for each row x."""
    touched, size = (index >= 0).nonzero().flatten(), blocks.shape[-1]
    own = blocks[index[touched][::size] // size]
    moved = torch.einsum("rkb,kcb->rkc", x[:, touched].reshape(len(x), -1, size), own).reshape(len(x), -1)
    return moved if len(touched) == x.shape[1] else x.index_copy(1, touched, moved)


def cayley(R: Tensor, G: Tensor, rate: float) -> Tensor:
    """One step down the gradient G along orthogonal matrices, every block by itself."""
    A = G @ R.mT - R @ G.mT
    step = rate / A.abs().sum(-2).amax(-1).clamp(min=1e-300)  # ‖A‖₁ bounds the largest angle: at most `rate` radians
    half, one = A * step[:, None, None] / 2, torch.eye(A.shape[-1], dtype=A.dtype)
    result: Tensor = torch.linalg.solve(one + half, R - half @ R)
    return result


def nearest_orthogonal(R: Tensor) -> Tensor:
    """The orthogonal factor of the polar decomposition, block by block."""
    U, _, Vh = torch.linalg.svd(R)
    result: Tensor = U @ Vh
    return result
