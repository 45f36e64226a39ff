"""x Wᵀ from codes: whole numbers multiplied and summed as whole numbers, scales in float32 afterwards.

    Σ_i (x_i − z)(w_i − v) = Σ x_i w_i − z Σ w_i − v Σ x_i + n z v        over the inputs that share scales

The first sum is `torch._int_mm` (int8 by int8 to int32), the others correct for zero points and cost a sum a row. It is
what an engine computes with int8 instructions; what a simulation in floats computes is held to it by tests. Codes that
are small floats (float8) are multiplied in float32, in which every product of two of them is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pennyweight.errors import InvalidFormat

LONGEST = (2**31 - 1) // 128**2  # inputs whose products fit into int32, whatever the codes
MULTIPLE, LEAST = 8, 17  # what the int8 product of a GPU asks of every dimension, and of the rows of its left side


@dataclass(frozen=True, eq=False)
class Operand:
    """One side of a product: `values[r, i] = scale[r, g] · (codes[r, i] − zero_point[r, g])`, g the run of i.

    Args:
        codes: int8, or a float8 type.
        scale: float32, one for every row, or one for all; and for every run of inputs of equal length.
        zero_point: whole numbers of the same shape as `scale`; None where zero is code zero.
    """

    codes: Shaped[Tensor, "rows n"]
    scale: Float[Tensor, "#rows runs"]
    zero_point: Int[Tensor, "#rows runs"] | None = None

    def __post_init__(self) -> None:
        inputs, runs = self.codes.shape[1], self.scale.shape[1]
        if runs == 0 or inputs % runs:
            raise InvalidFormat(f"{runs} scales for {inputs} inputs", expected="runs of equal length", site="product")

    def values(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "rows n"]:
        """The numbers that the codes stand for."""
        codes = in_runs(self.codes.to(dtype), self.scale.shape[1])
        shifted = codes if self.zero_point is None else codes - self.zero_point.to(dtype)[..., None]
        values: Tensor = shifted * self.scale.to(dtype)[..., None]
        return values.flatten(1)


def in_runs(x: Shaped[Tensor, "*batch n"], runs: int) -> Shaped[Tensor, "*batch runs size"]:
    """The last dimension cut into runs of equal length."""
    return x.reshape(*x.shape[:-1], runs, x.shape[-1] // runs)


def product(x: Int[Tensor, "rows n"], weight: Int[Tensor, "out n"]) -> Int[Tensor, "rows out"]:
    """The int32 sums of products of int8 codes.

    Raises:
        InvalidFormat: so many inputs that a sum may not fit into int32.
    """
    rows, inputs = x.shape
    if inputs > LONGEST:
        raise InvalidFormat(
            f"a sum over {inputs} products of int8", expected=f"at most {LONGEST}, which fit into int32",
            mend="share scales among fewer inputs", site="product",
        )  # fmt: skip
    if x.device.type == "cpu":  # takes every shape
        return torch._int_mm(x, weight.T)
    padded = _padded(x, max(LEAST, rows)), _padded(weight, len(weight))  # zeros add nothing
    return torch._int_mm(padded[0], padded[1].T)[:rows, : len(weight)]


def linear(
    x: Operand, weight: Operand, bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "rows out"]:  # fmt: skip
    """X Wᵀ + b from codes, in float32.

    Raises:
        InvalidFormat: sides of different length or kind, or a scale for every single input, which leaves nothing to sum
            as whole numbers.
    """
    inputs = x.codes.shape[1]
    runs = math.lcm(x.scale.shape[1], weight.scale.shape[1])
    if inputs != weight.codes.shape[1] or inputs % runs:
        raise InvalidFormat(
            f"{inputs} inputs in {x.scale.shape[1]} runs meet {weight.codes.shape[1]} in {weight.scale.shape[1]}",
            expected="as many on both sides, and runs that divide each other", site="product",
        )  # fmt: skip
    if runs == inputs > 1:
        raise InvalidFormat(
            "every input has a scale of its own: there is no sum of whole numbers",
            expected="scales that several inputs share",
            mend="fold the scales of channels into the weights (repq, smoothquant), and use one for all",
            site="product",
        )  # fmt: skip
    if x.codes.dtype.is_floating_point != weight.codes.dtype.is_floating_point:
        raise InvalidFormat(
            f"{x.codes.dtype} meets {weight.codes.dtype}",
            expected="int8 and int8, or float8 and float8",
            site="product",
        )
    size, result = inputs // runs, torch.zeros(len(x.codes), len(weight.codes), device=x.codes.device)
    for run in range(runs):
        a, b = (_run(side, run, runs, size) for side in (x, weight))
        result += _sums(a, b) * a.scale * b.scale.T
    return result if bias is None else result + bias


def _run(side: Operand, run: int, runs: int, size: int) -> Operand:
    """Some inputs that share scales on both sides."""
    column = run * side.scale.shape[1] // runs
    zero = None if side.zero_point is None else side.zero_point[:, column : column + 1]
    return Operand(side.codes[:, run * size : (run + 1) * size], side.scale[:, column : column + 1], zero)


def _sums(x: Operand, weight: Operand) -> Float[Tensor, "rows out"]:
    """Σ (x − z)(w − v), exact until it is rounded to float32 at the end; float8 is summed in float32."""
    if x.codes.dtype.is_floating_point:
        return x.codes.float() @ weight.codes.float().T
    total = product(x.codes, weight.codes).long()  # corrections may leave int32 on the way
    if x.zero_point is not None:
        total -= x.zero_point.long() * weight.codes.long().sum(1)
    if weight.zero_point is not None:
        total -= weight.zero_point.long().T * x.codes.long().sum(1, keepdim=True)
    if x.zero_point is not None and weight.zero_point is not None:
        total += x.codes.shape[1] * x.zero_point.long() * weight.zero_point.long().T
    return total.float()


def _padded(codes: Tensor, rows: int) -> Tensor:
    up = [-(-count // MULTIPLE) * MULTIPLE for count in (rows, codes.shape[1])]
    return torch.nn.functional.pad(codes, (0, up[1] - codes.shape[1], 0, up[0] - len(codes)))
