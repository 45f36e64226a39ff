"""QuaRot's rotations: spread what few channels hold over all of them, by Hadamard matrices with random signs.

Identity: R1 on a residual stream and R2 on the values of a head, W x = (W Rᵀ) (R x); both are folded into weights.
Source: Ashkboos et al. QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs. NeurIPS 2024. arXiv:2404.00456.
Algebraic: equal in real arithmetic. Gains of norms are folded into the layers that read them first.
Departs from it: every head gets signs of its own; queries and keys that no positions rotate are turned as well, which
makes the paper's rotation of keys at run time unnecessary there; a LayerNorm stays one, and its rotation keeps means.
The rotations that cannot be folded are in `network.running.online`.

When: activations of four to eight bits. Cost: a product of every weight with a matrix in float64; nothing at run time
but for the rotations that cannot be folded. Known failures: for weights alone it gains little or loses, with the norms'
gains that have to be folded first; which channels were large can no longer be told, so scale what is to be scaled
before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.methods.rewrites.rotations import drawn, rotatable, rotation
from pennyweight.network.changing.fold import Fold
from pennyweight.network.finding.symmetry import Symmetry
from pennyweight.network.sources.source import Source
from pennyweight.numerics.hadamard import order, random_hadamard, random_orthogonal
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics

FALLBACKS = ("random", "blocks", "refuse")


@dataclass(frozen=True, kw_only=True)
class Hadamard:
    """Rotate the residual stream and every head by randomised Hadamard matrices.

    Args:
        residual: rotate the streams that norms read (R1). One with a norm whose output is added to it is left alone.
        heads: rotate inside heads: values and the layer that reads them (R2), queries and keys without positions.
        fold: fold the gains of norms away first; otherwise a norm that holds one is refused.
        fallback: for a size without a Hadamard matrix, such as the odd one that is left where a norm subtracts the
            mean: `random` takes a random orthogonal matrix, `blocks` Hadamard matrices of the largest order that
            divides the size, `refuse` raises.
    """

    name: ClassVar[str] = "hadamard"
    paper: ClassVar[str] = "arXiv:2404.00456"
    needs: ClassVar[frozenset[str]] = frozenset()
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    residual: bool = True
    heads: bool = True
    fold: bool = True
    fallback: str = "random"

    def __post_init__(self) -> None:
        check_fallback(self.fallback, self.name)

    def choose(
        self, symmetries: Sequence[Symmetry], source: Source, statistics: Mapping[str, Statistics], *,
        generator: Generator,
    ) -> tuple[Fold, ...]:  # fmt: skip
        """Folds that empty the norms, then one rotation an edge.

        Raises:
            InvalidTransform: a shared tensor keeps a gain from leaving, or nothing can be rotated.
            InvalidMethod: there is no Hadamard matrix of a size, and `fallback` finds no other.
        """
        found = rotatable(symmetries, source, generator, method=self.name, residual=self.residual, heads=self.heads,
                          fold=self.fold)  # fmt: skip
        turned = []
        for edge in found.edges:
            blocks = drawn(edge, lambda n: random_hadamard_or(n, generator, self.fallback))
            turned.append(Fold(edge, rotation(edge, blocks)))
        return (*found.folds, *turned)


def random_hadamard_or(n: int, generator: Generator, fallback: str) -> Float[Tensor, "n n"]:
    """A Hadamard matrix of order n with random signs, made orthogonal; else what `fallback` says.

    Raises:
        InvalidMethod: there is none, and `fallback` is `refuse` or finds no block of two or more.
    """
    block = n
    if order(n) is None and fallback == "random":
        return random_orthogonal(n, generator)
    if fallback == "blocks":
        block = next(d for d in range(n, 0, -1) if n % d == 0 and order(d) is not None)
        if block == 1 < n:
            raise InvalidMethod(
                f"no order of a Hadamard matrix but 1 divides {n}", expected="an even size",
                mend="fallback='random'; a LayerNorm leaves one direction less than channels", site="hadamard",
            )  # fmt: skip
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for start in range(0, n, block):
        matrix[start : start + block, start : start + block] = random_hadamard(block, generator)
    return matrix


def check_fallback(fallback: str, method: str) -> None:
    """Refuse a word that means nothing.

    Raises:
        InvalidMethod: it is not one of `FALLBACKS`.
    """
    if fallback not in FALLBACKS:
        raise InvalidMethod(
            f"fallback={fallback!r}", expected=f"one of {', '.join(FALLBACKS)}", mend="fallback='random'", site=method
        )
