"""How each format lies in a compressed-tensors checkpoint: its tensors, and what config.json says of them.

Source: the compressed-tensors package, versions 0.17 to 0.20 (`pack_quantized`, `naive_quantized`, `nvfp4`, `mxfp4`,
`mxfp8`, `quant_args`), read and run. Of a linear layer [out, in] called `x` the files hold, by layout:

    int-quantized         x.weight int8 [out, in] and x.weight_scale [out, 1], where what x reads is rounded as well
    pack-quantized        x.weight_packed int32 [out, ceil(in·b/32)], each row a stream of bits, and x.weight_shape;
                          x.weight_zero_point int32 [ceil(out·b/32), groups], packed along the outputs
    float-quantized       x.weight float8 [out, in]; x.weight_scale [out, 1], [1] or one a tile, in the model's type
    mxfp8-quantized       x.weight float8 [out, in]; x.weight_scale uint8 [out, in/32], exponents
    mxfp4-pack-quantized  x.weight_packed uint8 [out, in/2], low half first; x.weight_scale uint8 [out, in/32]
    nvfp4-pack-quantized  the same, x.weight_scale float8 [out, in/16], divided by x.weight_global_scale float32 [1]

The package speaks of signed integers and stores q + 2^(b−1): our codes are that sum already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pennyweight.export.safetensors_stream import Entry
from pennyweight.formats import NVFP4, Format, Grid, Microscaling, Minifloat, Part
from pennyweight.formats.minifloat import NATIVE
from pennyweight.formats.passing import Passing
from pennyweight.formats.sharing import Sharing
from pennyweight.numerics.packing import pack_int32, words_of

Shape = tuple[int, int]
FLOAT8 = {element: str(dtype).removeprefix("torch.") for element, dtype in NATIVE.items()}


class Scheme(Protocol):
    """One format in these files."""

    @property
    def layout(self) -> str:
        """As config.json calls it."""
        ...

    def entries(self, parameter: str, shape: Shape) -> tuple[Entry, ...]:
        """Tensors of a weight called `parameter`."""
        ...

    def tensors(self, parameter: str, part: Part) -> Iterator[tuple[str, Tensor]]:
        """Their content."""
        ...

    def arguments(self) -> Mapping[str, Any]:
        """QuantizationArgs, with keys that every version knows only: readers refuse others."""
        ...


def scheme_for(format: Format, reads: Passing | None = None) -> Scheme:
    """How a format is stored that was checked before."""
    scheme = scheme_of(format, reads)
    assert scheme is not None
    return scheme


def scheme_of(format: Format, reads: Passing | None = None) -> Scheme | None:
    """How a format is stored; None when these files cannot hold it.

    Args:
        format: of a weight.
        reads: what its layer reads is rounded to; None where it is not.
    """
    if isinstance(format, Grid) and format.rows_stand_alone:
        if reads is not None and (format.bits, format.group_size, format.symmetric) == (8, None, True):
            return WholeIntegers(format)
        return PackedIntegers(format)
    if isinstance(format, Minifloat) and format.element in FLOAT8:
        return Floats8(format)
    if isinstance(format, NVFP4):
        return PackedFloats4(format, "nvfp4-pack-quantized", 16, "tensor_group", "float8_e4m3fn")
    if isinstance(format, Microscaling) and format.element == "e2m1":
        return PackedFloats4(format, "mxfp4-pack-quantized", 32, "group", "uint8")
    if isinstance(format, Microscaling) and format.element == "e4m3":
        return MicroscalingFloats8(format)
    return None


@dataclass(frozen=True)
class PackedIntegers:
    """Integers of two to eight bits without gaps."""

    grid: Grid
    layout = "pack-quantized"

    def entries(self, parameter: str, shape: Shape) -> tuple[Entry, ...]:
        """Codes, scales, shape, zero points."""
        (rows, columns), bits = shape, self.grid.bits
        groups = self.grid.groups(columns)
        entries = (
            Entry(f"{parameter}_packed", "int32", (rows, words_of(columns, bits))),
            Entry(f"{parameter}_scale", self.grid.scale_dtype, (rows, groups)),
            Entry(f"{parameter}_shape", "int64", (2,)),
        )
        if self.grid.symmetric:
            return entries
        return (*entries, Entry(f"{parameter}_zero_point", "int32", (words_of(rows, bits), groups)))

    def tensors(self, parameter: str, part: Part) -> Iterator[tuple[str, Tensor]]:
        """Codes as they are, in words."""
        yield f"{parameter}_packed", pack_int32(part.tensors["codes"], self.grid.bits)
        yield f"{parameter}_scale", part.tensors["scale"]
        yield f"{parameter}_shape", torch.tensor(part.tensors["codes"].shape, dtype=torch.int64)
        if not self.grid.symmetric:
            yield f"{parameter}_zero_point", pack_int32(part.tensors["zero_point"].T, self.grid.bits).T

    def arguments(self) -> Mapping[str, Any]:
        """Integers a row or a group."""
        return {
            "num_bits": self.grid.bits, "type": "int", "symmetric": self.grid.symmetric,
            "group_size": self.grid.group_size, "strategy": "channel" if self.grid.group_size is None else "group",
            "dynamic": False,
        }  # fmt: skip


@dataclass(frozen=True)
class WholeIntegers:
    """Integers of eight bits, a scale a row, as products of whole numbers take them."""

    grid: Grid
    layout = "int-quantized"

    def entries(self, parameter: str, shape: Shape) -> tuple[Entry, ...]:
        """Codes and scales."""
        return Entry(parameter, "int8", shape), Entry(f"{parameter}_scale", self.grid.scale_dtype, (shape[0], 1))

    def tensors(self, parameter: str, part: Part) -> Iterator[tuple[str, Tensor]]:
        """Codes around zero; scales as they are."""
        yield parameter, (part.tensors["codes"].to(torch.int16) - 128).to(torch.int8)
        yield f"{parameter}_scale", part.tensors["scale"]

    def arguments(self) -> Mapping[str, Any]:
        """Integers a row."""
        return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}


@dataclass(frozen=True)
class Floats8:
    """Floats of eight bits, a scale for the tensor, a row, a group or a square block."""

    format: Minifloat
    layout = "float-quantized"

    def entries(self, parameter: str, shape: Shape) -> tuple[Entry, ...]:
        """Codes and scales."""
        tiles = self.format.sharing.tiles(shape)
        scale = (1,) if self.format.sharing.rows is None else tiles
        return (
            Entry(parameter, FLOAT8[self.format.element], shape),
            Entry(f"{parameter}_scale", self.format.scale_dtype, scale),
        )

    def tensors(self, parameter: str, part: Part) -> Iterator[tuple[str, Tensor]]:
        """Bit patterns; scales as they are."""
        yield parameter, _float8(self.format.bits_of(part.tensors["codes"]), self.format.element)
        scale = part.tensors["scale"]
        yield f"{parameter}_scale", scale.reshape(1) if self.format.sharing.rows is None else scale

    def arguments(self) -> Mapping[str, Any]:
        """Floats, symmetric."""
        return {
            "num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, **_strategy(self.format.sharing)
        }  # fmt: skip


@dataclass(frozen=True)
class MicroscalingFloats8:
    """E4M3 in blocks of 32, scaled by powers of two."""

    format: Microscaling
    layout = "mxfp8-quantized"

    def entries(self, parameter: str, shape: Shape) -> tuple[Entry, ...]:
        """Codes and exponents."""
        rows, columns = shape
        return (
            Entry(parameter, "float8_e4m3fn", shape), Entry(f"{parameter}_scale", "uint8", (rows, columns // 32)),
        )  # fmt: skip

    def tensors(self, parameter: str, part: Part) -> Iterator[tuple[str, Tensor]]:
        """Bit patterns; exponents as they are."""
        yield parameter, _float8(self.format.bits_of(part.tensors["codes"]), "e4m3")
        yield f"{parameter}_scale", part.tensors["scale"].view(torch.uint8)

    def arguments(self) -> Mapping[str, Any]:
        """Floats in groups, scales in bytes."""
        return {
            "num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": "group",
            "group_size": 32, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8",
        }  # fmt: skip


@dataclass(frozen=True)
class PackedFloats4:
    """E2M1, two in a byte, with scales of eight bits.

    Args:
        format: the format.
        layout: as config.json calls it.
        group: inputs that share a scale.
        strategy: `group`, or `tensor_group` where the tensor has a scale as well.
        scale_dtype: of a group's scale, or of its exponent.
    """

    format: NVFP4 | Microscaling
    layout: str
    group: int
    strategy: str
    scale_dtype: str

    def entries(self, parameter: str, shape: Shape) -> tuple[Entry, ...]:
        """Codes, scales, and that of the tensor."""
        rows, columns = shape
        entries = (
            Entry(f"{parameter}_packed", "uint8", (rows, columns // 2)),
            Entry(f"{parameter}_scale", self.scale_dtype, (rows, columns // self.group)),
        )
        whole = Entry(f"{parameter}_global_scale", "float32", (1,))
        return (*entries, whole) if self.strategy == "tensor_group" else entries

    def tensors(self, parameter: str, part: Part) -> Iterator[tuple[str, Tensor]]:
        """Bit patterns in pairs; our tensor scale is a power of two, so its reciprocal is exact."""
        bits = self.format.bits_of(part.tensors["codes"])
        yield f"{parameter}_packed", bits[:, 0::2] | (bits[:, 1::2] << 4)
        stored = part.tensors["scale"]
        yield f"{parameter}_scale", stored.view(torch.uint8) if self.scale_dtype == "uint8" else stored
        if self.strategy == "tensor_group":
            yield f"{parameter}_global_scale", 1 / part.tensors["tensor_scale"]

    def arguments(self) -> Mapping[str, Any]:
        """Floats in groups, and the type of their scales, without which they would be read as 16 bits."""
        dtype = f"torch.{self.scale_dtype}"
        return {
            "num_bits": 4, "type": "float", "symmetric": True, "dynamic": False, "strategy": self.strategy,
            "group_size": self.group, "scale_dtype": dtype, "zp_dtype": dtype,
        }  # fmt: skip


def _float8(bits: Tensor, element: str) -> Tensor:
    return bits.view(NATIVE[element])


def _strategy(sharing: Sharing) -> Mapping[str, Any]:
    if sharing.rows is None:
        return {"strategy": "tensor"}
    if sharing.rows == 1:
        group = sharing.columns
        return {"strategy": "channel"} if group is None else {"strategy": "group", "group_size": group}
    return {"strategy": "block", "block_structure": [sharing.rows, sharing.columns]}
