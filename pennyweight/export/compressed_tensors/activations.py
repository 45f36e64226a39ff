"""How roundings of activations and caches lie in a compressed-tensors checkpoint.

Source: the compressed-tensors package, versions 0.17 to 0.20 (`quant_args`, `quant_scheme`, `lifecycle/apply`). A
config group says under `input_activations` how its layers round what they read: by `token` or `group` as they pass, or
by `tensor` with `x.input_scale` [1], and `x.input_zero_point` int8 [1] where codes are not symmetric, in the file.
`kv_cache_scheme` says it of keys and values, with `k_scale` and `v_scale` [1] of every module of attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pennyweight.formats.passing import Activations, Floats, Integers, Passing, Quantizer, Static


def arguments(format: Passing) -> Mapping[str, Any] | None:
    """QuantizationArgs of a format; None when these files cannot hold it."""
    over = format.over
    if over.kind not in ("token", "group", "tensor"):
        return None
    if isinstance(format, Integers):
        kind, bits, symmetric = "int", format.bits, format.symmetric
    elif isinstance(format, Floats) and format.element == "e4m3":
        kind, bits, symmetric = "float", 8, True
    else:
        return None
    size = {"group_size": over.size} if over.kind == "group" else {}
    return {
        "num_bits": bits, "type": kind, "symmetric": symmetric, "strategy": over.kind, "dynamic": over.dynamic, **size,
    }  # fmt: skip


def tensors_of(activations: Activations, dtype: str) -> Mapping[str, Tensor]:
    """Everything that roundings store beside the weights, by name, in the type of the model."""
    stored = {name: tensor for site, rounds in activations.inputs.items() for name, tensor in _input(site, rounds)}
    for module, (keys, values) in activations.caches.items():
        stored |= {f"{module}.k_scale": keys.scale, f"{module}.v_scale": values.scale}
    kind = getattr(torch, dtype)
    return {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in stored.items()}


def _input(site: str, rounds: Quantizer) -> Iterator[tuple[str, Tensor]]:
    if isinstance(rounds, Static):
        yield f"{site}.input_scale", rounds.scale
        if rounds.zero_point is not None:
            yield f"{site}.input_zero_point", rounds.zero_point.to(torch.int8)
