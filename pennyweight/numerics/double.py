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
        return CASTS.get(func, func)(*args, **kwargs)


def widened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with every narrow dtype named among them replaced by float64."""
    args = tuple(torch.float64 if any(a is dtype for dtype in NARROW) else a for a in args)
    if any(kwargs.get("dtype") is dtype for dtype in NARROW):
        kwargs = {**kwargs, "dtype": torch.float64}
    return args, kwargs


def to_double(value: Any) -> Any:
    """A tensor of floats in float64, anything else as it is."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
