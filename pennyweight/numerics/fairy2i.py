"""Real matrices as widely-linear complex ones, and complex numbers rounded to the four phases 1, i, -1, -i.

Halves of a real vector are the real and imaginary parts of a complex one, x = x1 + i x2. Every real matrix
[[A11, A12], [A21, A22]] is then y = U x + V conj(x) with

    U = ((A11 + A22) + i (A21 - A12)) / 2,    V = ((A11 - A22) + i (A21 + A12)) / 2.

Source: Fairy2i: Training Complex LLMs from Real LLMs with All Parameters in {±1, ±i} (2025, arXiv:2512.02901).
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from pennyweight.errors import InvalidFormat

SMALLEST = 1e-6  # of a scale


def to_widely_linear(weight: Float[Tensor, "out in"]) -> tuple[Complex[Tensor, "m n"], Complex[Tensor, "m n"]]:
    """U and V, of half the size each way, in complex128.

    Raises:
        InvalidFormat: a side of odd length has no halves.
    """
    if weight.shape[0] % 2 or weight.shape[1] % 2:
        raise InvalidFormat(
            f"a matrix of {weight.shape[0]} by {weight.shape[1]} has no halves",
            expected="even numbers of outputs and inputs", mend="leave this layer real",
        )  # fmt: skip
    top, bottom = weight.double().chunk(2)
    (a11, a12), (a21, a22) = top.chunk(2, 1), bottom.chunk(2, 1)
    return torch.complex(a11 + a22, a21 - a12) / 2, torch.complex(a11 - a22, a21 + a12) / 2


def to_real(u: Complex[Tensor, "m n"], v: Complex[Tensor, "m n"]) -> Float[Tensor, "out in"]:
    """The real matrix of U and V."""
    top = torch.cat([u.real + v.real, v.imag - u.imag], 1)
    return torch.cat([top, torch.cat([v.imag + u.imag, u.real - v.real], 1)])


def round_phases(z: Complex[Tensor, "m n"]) -> Complex[Tensor, "m n"]:
    """Each number as the nearest of the four phases by angle, times one of two scales of the matrix.

    Numbers nearer to the real axis become ± the mean of |Re z| over them, the others ± i times the mean of |Im z|.
    """
    is_real = z.real.abs() >= z.imag.abs()
    real = _signed(z.real, is_real)
    return torch.complex(real, _signed(z.imag, ~is_real))


def _signed(values: Tensor, chosen: Tensor) -> Tensor:
    count = chosen.sum().clamp(min=1)
    scale = (torch.where(chosen, values.abs(), 0.0).sum() / count).clamp(min=SMALLEST)
    return torch.where(chosen, torch.where(values < 0, -scale, scale), torch.zeros_like(values))


def phase_stages(z: Complex[Tensor, "m n"], stages: int) -> list[Complex[Tensor, "m n"]]:
    """Approximations that add up to z: each rounds what the ones before it left. Two bits a number and stage."""
    found: list[Tensor] = []
    for _ in range(stages):
        found.append(round_phases(z - sum(found, torch.zeros_like(z))))
    return found
