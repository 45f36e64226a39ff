"""Float64 all the way: code that asks for single precision in between gets double.

Models raise their norms and softmaxes to float32, which is more than bfloat16 and less than what a proof needs. Inside
this mode every request for a narrower float is answered in float64, so that two ways of computing one thing can be
compared to twelve digits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

NARROW = (torch.float32, torch.bfloat16, torch.float16)
CASTS = {
    torch.Tensor.float: torch.Tensor.double, torch.Tensor.half: torch.Tensor.double,
    torch.Tensor.bfloat16: torch.Tensor.double,
}  # fmt: skip


class Float64(TorchFunctionMode):
    """Answer every request for a narrower float in float64; a context manager."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = widened(args, kwargs or {})
        if func is getattr(torch, "_grouped_mm", None) and args[0].dtype == torch.float64:
            return _grouped(*args, **kwargs)
        return CASTS.get(func, func)(*args, **kwargs)


def _grouped(rows: Tensor, matrices: Tensor, *, offs: Tensor | None = None, **_: Any) -> Tensor:
    """Runs of rows, each times the matrix of its own; PyTorch has no such product in float64."""
    if offs is None or rows.dim() != 2 or matrices.dim() != 3:
        return rows @ matrices
    starts = [0, *offs.tolist()]
    parts = [rows[a:b] @ one for a, b, one in zip(starts, starts[1:], matrices, strict=False)]
    return torch.cat([*parts, rows.new_zeros(len(rows) - starts[-1], matrices.shape[-1])])


def widened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with every narrow dtype named among them replaced by float64."""
    args = tuple(torch.float64 if any(a is dtype for dtype in NARROW) else a for a in args)
    if any(kwargs.get("dtype") is dtype for dtype in NARROW):
        kwargs = {**kwargs, "dtype": torch.float64}
    return args, kwargs


def to_double(value: Any) -> Any:
    """A tensor of floats in float64, anything else as it is."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
