"""Read how a compressed-tensors checkpoint rounds activations and caches, ours or others'; see `activations`.

Written on its own, so that what we wrote can be read back independently of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pennyweight.errors import InvalidFormat, InvalidModel
from pennyweight.formats.passing import Dynamic, Floats, Integers, KeysAndValues, Over, Passing, Quantizer, Static

SCALE, ZERO = "input_scale", "input_zero_point"
KEYS, VALUES = "k_scale", "v_scale"


def passing_of(described: Mapping[str, Any]) -> Passing | None:
    """The format that QuantizationArgs describe; None when it is none of ours."""
    group, static = described.get("group_size"), not described.get("dynamic", False)
    strategy = described.get("strategy") or ("group" if (group or -1) > 0 else "tensor" if static else "token")
    if strategy not in ("token", "group", "tensor") or static != (strategy == "tensor"):
        return None
    try:
        over = Over(strategy, int(group)) if strategy == "group" and group else Over(strategy)
        if described.get("type", "int") == "int":
            bits = int(described.get("num_bits", 8))
            return Integers(over=over, bits=bits, symmetric=bool(described.get("symmetric", True)))
    except InvalidFormat:
        return None
    plain = described.get("num_bits", 8) == 8 and described.get("symmetric", True)
    return Floats(over=over) if plain else None


def input_of(site: str, format: Passing, read: Callable[[str], Tensor | None]) -> Quantizer | None:
    """The rounding of what a site reads; None when the file has no scale for it."""
    if format.over.dynamic:
        return Dynamic(format)
    zero = None if getattr(format, "symmetric", True) else read(f"{site}.{ZERO}")
    scale = read(f"{site}.{SCALE}")
    if scale is None or (zero is None) != getattr(format, "symmetric", True):
        return None
    return Static(format, _scale(scale, site), None if zero is None else zero.reshape(1).to(torch.int8))


def caches_of(
    described: Mapping[str, Any], names: Mapping[str, Any], read: Callable[[str], Tensor | None]
) -> Mapping[str, KeysAndValues]:
    """Roundings of all modules that have scales for keys and values; none when the format is none of ours."""
    format = passing_of(described)
    if format is None or format.over.dynamic or not getattr(format, "symmetric", True):
        return {}
    found = {}
    for module in (name.removesuffix(f".{KEYS}") for name in names if name.endswith(f".{KEYS}")):
        keys, values = read(f"{module}.{KEYS}"), read(f"{module}.{VALUES}")
        if keys is None or values is None:
            return {}
        scales = (_scale(keys, module), _scale(values, module))
        found[module] = KeysAndValues(*(Static(format, scale, None) for scale in scales))
    return found


def _scale(stored: Tensor, site: str) -> Tensor:
    """One number, in the float32 that it is used in.

    Raises:
        InvalidModel: more than one, or none that divides.
    """
    scale = stored.float().reshape(-1)
    if scale.numel() != 1 or not bool(torch.isfinite(scale).all()) or float(scale) <= 0:
        raise InvalidModel(
            f"a scale of activations that is {scale[:3].tolist()}", expected="one positive number",
            mend="start from the model this one was made of", site=site,
        )  # fmt: skip
    return scale
