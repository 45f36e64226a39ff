"""What a normalisation does, found by trying it: kind, gain, bias, and whether the gain is stored as one plus it.

Names tell little (`MistralRMSNorm`, `Gemma3RMSNorm` whose gain is 1 + w, `LlamaLayerNorm`), so a copy of the module is
fed random numbers and compared with the textbook.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pennyweight.numerics.double import Float64
from pennyweight.numerics.random import stream

_KNOWN: dict[tuple[object, ...], Norm | None] = {}  # what was tried once; a kind of module does not change its ways
CLOSE = 1e-3  # epsilons differ by less; other kinds of norm by far more


@dataclass(frozen=True)
class Norm:
    """How one module normalises.

    Args:
        kind: `rms` (over the last axis), `layer` (with the mean removed), `group` (over groups of channels) or `affine`
            (a fixed scale and shift a channel, as batch norm in evaluation).
        size: channels.
        axis: where they are, -1 or 1.
        gain: name of the parameter that multiplies each channel, if any.
        bias: name of the one that is added, if any.
        offset: the gain is stored as itself minus this: 1 where the module multiplies by 1 + w.
        buffers: names of stored statistics, one number a channel.
    """

    kind: str
    size: int
    axis: int
    gain: str | None
    bias: str | None
    offset: float = 0.0
    buffers: tuple[str, ...] = ()


def norm_of(module: nn.Module) -> Norm | None:
    """How a module normalises; None when it does something else, or more than that."""
    if any(True for _ in module.children()) or isinstance(module, nn.Linear | nn.Embedding):
        return None
    parameters = dict(module.named_parameters())
    sizes = {tuple(p.shape) for p in parameters.values()}
    if len(parameters) > 2 or len(sizes) > 1 or any(len(shape) != 1 for shape in sizes):
        return None
    if isinstance(module, nn.GroupNorm):
        return Norm("group", module.num_channels, 1, *_names(module))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if module.training or module.running_mean is None:
            return None  # it looks at the batch
        return Norm("affine", module.num_features, 1, *_names(module), buffers=("running_mean", "running_var"))
    shape = getattr(module, "normalized_shape", None)
    if not parameters and not (shape and len(shape) == 1):
        return None
    size = next(iter(sizes))[0] if sizes else int(shape[0])  # type: ignore[index]
    key = (type(module), size, tuple(parameters), module.extra_repr())
    if key not in _KNOWN:
        _KNOWN[key] = _tried(module, size, list(parameters))
    return _KNOWN[key]


def _names(module: nn.Module) -> tuple[str | None, str | None]:
    own = dict(module.named_parameters())
    return ("weight" if "weight" in own else None), ("bias" if "bias" in own else None)


def _tried(module: nn.Module, size: int, names: list[str]) -> Norm | None:
    """Compare with the textbook, for each way in which the parameters could be meant."""
    x = torch.randn(3, 5, size, generator=stream(0, "norm"), dtype=torch.float64)
    targets = {
        "rms": x / x.square().mean(-1, keepdim=True).sqrt(),
        "layer": (x - x.mean(-1, keepdim=True)) / x.var(-1, keepdim=True, unbiased=False).sqrt(),
    }
    ways: list[tuple[str | None, str | None]] = [(None, None)] if not names else []
    ways += [(gain, next((n for n in names if n != gain), None)) for gain in names]
    for gain, bias in ways:
        for offset in (0.0, 1.0):
            values = {n: torch.full((size,), 1.0 - offset if n == gain else 0.0, dtype=torch.float64) for n in names}
            y = _run(module, values, x)
            for kind, target in targets.items():
                if y is not None and _close(y, target) and _as_meant(module, values, x, target, gain, bias, offset):
                    return Norm(kind, size, -1, gain, bias, offset)
    return None


def _as_meant(
    module: nn.Module, values: dict[str, Tensor], x: Tensor, target: Tensor, gain: str | None, bias: str | None,
    offset: float,
) -> bool:  # fmt: skip
    """Whether gain and bias act channel by channel, at values that are not the neutral ones."""
    drawn = {n: torch.randn(len(v), generator=stream(1, "norm", n), dtype=v.dtype) for n, v in values.items()}
    y = _run(module, drawn, x)
    expected = target * (drawn[gain] + offset if gain else 1.0) + (drawn[bias] if bias else 0.0)
    return y is not None and _close(y, expected)


def _run(module: nn.Module, values: dict[str, Tensor], x: Tensor) -> Tensor | None:
    own = copy.copy(module)
    own._parameters = dict.fromkeys(module._parameters)
    own._parameters |= {n: nn.Parameter(v, requires_grad=False) for n, v in values.items()}
    own._forward_hooks = type(own._forward_hooks)()
    own._forward_pre_hooks = type(own._forward_pre_hooks)()
    try:
        with torch.no_grad(), Float64():
            y = type(own).forward(own, x)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return None
    return y if isinstance(y, Tensor) and y.shape == x.shape and y.is_floating_point() else None


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a.double() - b).norm() <= CLOSE * b.norm())
