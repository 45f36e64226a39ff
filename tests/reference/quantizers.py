"""Rounding by definition, and GPTQ as Algorithm 1 of its paper writes it, one weight matrix entry after another.

Source: Frantar, Ashkboos, Hoefler, Alistarh. GPTQ. arXiv:2210.17323; Frantar, Alistarh. OBC. arXiv:2208.11580 (the
elimination of one row and column from the inverse, which the Cholesky form of GPTQ stands for).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """A grid of one weight matrix: float64 copies of what is stored, one row and group each."""

    scale: Array
    zero: Array
    group: int
    top: int

    def code(self, value: float, row: int, column: int) -> int:
        """Find the nearest code; halves go to the even one."""
        g = column // self.group
        return int(min(max(np.rint(value / self.scale[row, g]) + self.zero[row, g], 0), self.top))

    def value(self, code: int, row: int, column: int) -> float:
        g = column // self.group
        return float((code - self.zero[row, g]) * self.scale[row, g])


def min_max(weight: Array, bits: int, group: int, symmetric: bool, dtype: type[np.floating] = np.float16) -> Fitted:
    """Minimum and maximum of each group, zero always inside; the scale as it is stored."""
    rows, columns = weight.shape
    top = 2**bits - 1
    scale, zero = np.ones((rows, columns // group)), np.zeros((rows, columns // group))
    for r in range(rows):
        for g in range(columns // group):
            members = weight[r, g * group : (g + 1) * group]
            low, high = min(0.0, members.min()), max(0.0, members.max())
            span = 2 * max(-low, high) if symmetric else high - low
            stored = float(dtype(np.float32(span) / np.float32(top)))
            scale[r, g] = stored if stored else 1.0
            zero[r, g] = 2 ** (bits - 1) if symmetric else min(max(np.rint(-low / scale[r, g]), 0), top)
    return Fitted(scale, zero, group, top)


def round_to_nearest(weight: Array, fitted: Fitted) -> NDArray[np.int64]:
    """Every weight to its nearest code."""
    rows, columns = weight.shape
    codes = np.empty((rows, columns), dtype=np.int64)
    for r in range(rows):
        for c in range(columns):
            codes[r, c] = fitted.code(weight[r, c], r, c)
    return codes


def dequantize(codes: NDArray[np.int64], fitted: Fitted) -> Array:
    """Give the weights that codes stand for."""
    rows, columns = codes.shape
    return np.array([[fitted.value(codes[r, c], r, c) for c in range(columns)] for r in range(rows)])


def damped(gram: Array, damping: float) -> Array:
    """H + damping · mean(diag H) · I, with a live diagonal where an input is never active."""
    diagonal = np.diag(gram)
    level = diagonal[diagonal > 0].mean() if (diagonal > 0).any() else 1.0
    result: Array = gram + np.diag(np.where(diagonal > 0, 0.0, level)) + damping * level * np.eye(len(gram))
    return result


def gptq(weight: Array, gram: Array, fitted: Fitted, damping: float) -> tuple[NDArray[np.int64], float]:
    """Codes, and the sum of (rounding error of column i)² / [H⁻¹]_ii at the time it was rounded.

    Inputs by falling diagonal of the gram matrix. H⁻¹ is inverted once, and every input that has been rounded is then
    eliminated from it explicitly.
    """
    W = weight.copy()
    inverse = np.linalg.inv(damped(gram, damping))
    codes = np.empty(W.shape, dtype=np.int64)
    left = list(np.argsort(-np.diag(gram), kind="stable"))
    loss = 0.0
    while left:
        q = left.pop(0)
        for r in range(len(W)):
            codes[r, q] = fitted.code(W[r, q], r, q)
            error = W[r, q] - fitted.value(codes[r, q], r, q)
            loss += error**2 / inverse[q, q]
            for c in left:
                W[r, c] -= error / inverse[q, q] * inverse[q, c]
        inverse = inverse - np.outer(inverse[:, q], inverse[q, :]) / inverse[q, q]
    return codes, loss


def output_error(change: Array, gram: Array) -> float:
    """trace(E gram Eᵀ)."""
    return float(np.trace(change @ gram @ change.T))
