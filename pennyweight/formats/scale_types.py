"""What scales are stored in: two or four bytes, or one byte that is a power of two (E8M0) or a small float (E4M3)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidFormat

# E8M0 is kept as its byte, exponent plus 127: safetensors cannot read torch's own type of that name.
SCALE_TYPES = {
    "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32,
    "e8m0": torch.uint8, "e4m3": torch.float8_e4m3fn,
}  # fmt: skip


def check_scale_type(name: str, site: str) -> None:
    """See that a type of scales exists.

    Raises:
        InvalidFormat: it does not.
    """
    if name not in SCALE_TYPES:
        raise InvalidFormat(f"scales in {name}", expected=", ".join(SCALE_TYPES), site=site)


def scale_bits(name: str) -> int:
    """Bits of one scale."""
    return 8 * int(SCALE_TYPES[name].itemsize)


def round_scale(scale: Float[Tensor, ...], name: str) -> Float[Tensor, ...]:
    """Scales as they will be read back, in float32; none is zero or infinite.

    Powers of two are the nearest in logarithm, E4M3 saturates at 448. A scale that rounds to nothing (of all zeros, or
    far below the type's range) stores zeros, exactly; it becomes one.

    Raises:
        InvalidFormat: a scale overflows its type.
    """
    if name == "e8m0":
        exponent = scale.abs().clamp(min=torch.finfo(torch.float32).tiny).log2().round().clamp(-126, 127)
        stored = torch.ldexp(torch.ones_like(scale), exponent.to(torch.int32))
        return torch.where(scale == 0, torch.ones_like(scale), stored)
    if name == "e4m3":
        scale = scale.clamp(-448, 448)
    stored = scale.to(SCALE_TYPES[name]).float()
    if bool(torch.isinf(stored).any()):
        raise InvalidFormat(
            f"a scale overflows {name}",
            expected="weights whose range fits the type of the scales",
            mend="store scales as bfloat16: scale_dtype='bfloat16'",
        )
    return torch.where(stored == 0, torch.ones_like(stored), stored)


def power_of_two(scale: Float[Tensor, ...], *, up: bool = False) -> Float[Tensor, ...]:
    """The largest power of two not above each positive scale, or with `up` the smallest not below, of those E8M0 has.

    A scale of zero becomes one, as in `round_scale`. Exact: the exponent is read, no logarithm is taken.
    """
    fraction, exponent = torch.frexp(scale.clamp(max=torch.finfo(torch.float32).max))
    exponent = torch.where((fraction == 0.5) | torch.tensor(not up), exponent - 1, exponent)
    stored = torch.ldexp(torch.ones_like(scale), exponent.clamp(-126, 127))
    return torch.where(scale == 0, torch.ones_like(scale), stored)


def write_scale(scale: Float[Tensor, ...], name: str) -> Tensor:
    """Rounded scales (see `round_scale`) in the type they are stored in."""
    if name == "e8m0":
        return (scale.log2().round() + 127).to(torch.uint8)
    return scale.to(SCALE_TYPES[name])


def exact_scale(scale: Float[Tensor, ...], name: str) -> Tensor | None:
    """Scales in the type they are stored in; None where it does not hold them exactly."""
    if name == "e8m0" and not bool((scale > 0).all()):
        return None
    stored = write_scale(scale, name)
    return stored if torch.equal(read_scale(stored, name), scale) else None


def read_scale(stored: Tensor, name: str) -> Float[Tensor, ...]:
    """Stored scales in float32."""
    if name == "e8m0":
        return torch.ldexp(torch.ones(stored.shape), stored.to(torch.int32) - 127)
    return stored.float()
