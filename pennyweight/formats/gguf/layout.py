"""How a GGUF block lies in memory: pieces one after the other, each with some bits of some fields.

Almost all follow one rule; `pieces.py` has the others. The elements of a block are cut into stretches of `8 / bits`
runs; byte j of a stretch holds element j of each run, the first run in its lowest bits. With runs of 16 and 4 bits that
is "low nibbles are elements 0 to 15, high nibbles 16 to 31"; with runs of one and 1 bit it is a little-endian bit mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor


@runtime_checkable
class Piece(Protocol):
    """Some bytes of every block."""

    @property
    def bytes(self) -> int:
        """Of one block."""
        ...

    def write(self, blocks: Mapping[str, Tensor]) -> UInt8[Tensor, "blocks bytes"]:
        """Its bytes, from fields laid out `[blocks, elements]`."""
        ...

    def read(self, data: UInt8[Tensor, "blocks bytes"], blocks: dict[str, Tensor]) -> None:
        """Add what the bytes hold to the fields."""
        ...


@dataclass(frozen=True)
class Bits:
    """Bits `shift` to `shift + bits` of a field of `count` elements a block, in runs of `run`."""

    name: str
    count: int
    shift: int
    bits: int
    run: int

    @property
    def bytes(self) -> int:
        """Of one block."""
        return self.count * self.bits // 8

    def write(self, blocks: Mapping[str, Tensor]) -> UInt8[Tensor, "blocks bytes"]:
        """Its bytes."""
        codes = (blocks[self.name] >> self.shift) & ((1 << self.bits) - 1)
        runs = codes.reshape(len(codes), -1, 8 // self.bits, self.run)
        return (runs << self._shifts()).sum(2, dtype=torch.uint8).flatten(1)

    def read(self, data: UInt8[Tensor, "blocks bytes"], blocks: dict[str, Tensor]) -> None:
        """Add its bits to the field."""
        runs = (data.reshape(len(data), -1, 1, self.run) >> self._shifts()) & ((1 << self.bits) - 1)
        found = runs.flatten(1) << self.shift
        blocks[self.name] = blocks[self.name] | found if self.name in blocks else found

    def _shifts(self) -> Tensor:
        return torch.arange(0, 8, self.bits, dtype=torch.uint8)[:, None]


@dataclass(frozen=True)
class Whole:
    """A field of numbers as they are; `flip` turns codes from zero up into signed bytes."""

    name: str
    count: int
    dtype: Any
    flip: int = 0

    @property
    def bytes(self) -> int:
        """Of one block."""
        return self.count * int(self.dtype.itemsize)

    def write(self, blocks: Mapping[str, Tensor]) -> UInt8[Tensor, "blocks bytes"]:
        """Its bytes."""
        return blocks[self.name].contiguous().view(torch.uint8) ^ self.flip

    def read(self, data: UInt8[Tensor, "blocks bytes"], blocks: dict[str, Tensor]) -> None:
        """Add the field."""
        blocks[self.name] = (data ^ self.flip).contiguous().view(self.dtype)


def half(name: str) -> Whole:
    """One float16 a block."""
    return Whole(name, 1, torch.float16)


def write_blocks(pieces: Sequence[Piece], tensors: Mapping[str, Tensor], count: int) -> UInt8[Tensor, " bytes"]:
    """The bytes of `count` blocks, one block after the other."""
    blocks = {name: tensor.reshape(count, -1) for name, tensor in tensors.items()}
    return torch.cat([piece.write(blocks) for piece in pieces], dim=1).flatten()


def read_blocks(pieces: Sequence[Piece], data: UInt8[Tensor, " bytes"], count: int) -> dict[str, Tensor]:
    """Fields `[blocks, elements]` of what `write_blocks` wrote."""
    blocks: dict[str, Tensor] = {}
    parts = torch.split(data.reshape(count, -1), [piece.bytes for piece in pieces], dim=1)
    for piece, part in zip(pieces, parts, strict=True):
        piece.read(part, blocks)
    return blocks
