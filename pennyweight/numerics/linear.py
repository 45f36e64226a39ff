"""x Wᵀ in float32 by the fastest exact routine of the machine.

Why: on CPUs where PyTorch's default library leaves AVX-512 unused, oneDNN's float32 product is about twice as fast
(`benchmarks/linear.py`). Both compute in float32 throughout; no reduced precision is ever asked for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor

ROWS = 1024  # rows of a second moment computed at once
ONEDNN = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(
    x: Float[Tensor, "*batch n"], weight: Float[Tensor, "out n"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*batch out"]:
    """X Wᵀ + b; oneDNN on a CPU in float32 when no gradient is wanted, PyTorch's default otherwise."""
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    if ONEDNN and plain and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)


def add_second_moment(total: Float[Tensor, "n n"], x: Float[Tensor, "tokens n"]) -> None:
    """Add the sum of x xᵀ over tokens to `total`, in place, some rows at a time: no second matrix of its size.

    The lower triangle is computed too: on two cores, products of half the size cost more than they save.
    """
    columns = x.T.contiguous()
    for start in range(0, len(total), ROWS):
        total[start : start + ROWS] += linear(columns[start : start + ROWS], columns)
