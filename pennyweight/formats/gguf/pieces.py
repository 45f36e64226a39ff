"""Pieces of GGUF blocks that lie in memory in a way of their own; see `layout.py` for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

POWERS = (1, 3, 9, 27, 81)


@dataclass(frozen=True)
class NibblePairs:
    """Sixteen scales in the lower and sixteen minima in the upper nibbles of 16 bytes (Q2_K)."""

    @property
    def bytes(self) -> int:
        """Of one block."""
        return 16

    def write(self, blocks: Mapping[str, Tensor]) -> UInt8[Tensor, "blocks bytes"]:
        """Its bytes."""
        return blocks["sub_scale"] | (blocks["sub_minimum"] << 4)

    def read(self, data: UInt8[Tensor, "blocks bytes"], blocks: dict[str, Tensor]) -> None:
        """Add both fields."""
        blocks["sub_scale"], blocks["sub_minimum"] = data & 15, data >> 4


@dataclass(frozen=True)
class ScalesAndMinima:
    """Eight scales and eight minima of 6 bits in 12 bytes (Q4_K, Q5_K).

    Bytes 0 to 3 hold scales 0 to 3, bytes 4 to 7 minima 0 to 3, and in their two upper bits the upper bits of scales
    and minima 4 to 7; bytes 8 to 11 hold the lower nibbles of those, scales low and minima high.
    """

    @property
    def bytes(self) -> int:
        """Of one block."""
        return 12

    def write(self, blocks: Mapping[str, Tensor]) -> UInt8[Tensor, "blocks bytes"]:
        """Its bytes."""
        scale, minimum = blocks["sub_scale"], blocks["sub_minimum"]
        first = [x[:, :4] | ((x[:, 4:] >> 4) << 6) for x in (scale, minimum)]
        return torch.cat([*first, (scale[:, 4:] & 15) | ((minimum[:, 4:] & 15) << 4)], dim=1)

    def read(self, data: UInt8[Tensor, "blocks bytes"], blocks: dict[str, Tensor]) -> None:
        """Add both fields."""
        scale, minimum, nibbles = data[:, :4], data[:, 4:8], data[:, 8:]
        blocks["sub_scale"] = torch.cat([scale & 63, (nibbles & 15) | ((scale >> 6) << 4)], dim=1)
        blocks["sub_minimum"] = torch.cat([minimum & 63, (nibbles >> 4) | ((minimum >> 6) << 4)], dim=1)


@dataclass(frozen=True)
class Trits:
    """Codes of three levels as fractions in base three, rounded up to 1/256 (TQ1_0).

    Args:
        name: of the field.
        stretches: elements and bytes of each; byte j of a stretch holds element j of each of its runs.
    """

    name: str
    stretches: tuple[tuple[int, int], ...]

    @property
    def bytes(self) -> int:
        """Of one block."""
        return sum(run for _, run in self.stretches)

    def write(self, blocks: Mapping[str, Tensor]) -> UInt8[Tensor, "blocks bytes"]:
        """Its bytes."""
        parts, start = [], 0
        for count, run in self.stretches:
            runs = blocks[self.name][:, start : start + count].reshape(-1, count // run, run)
            digits = (runs * torch.tensor(POWERS[::-1])[: count // run, None]).sum(1)
            parts.append((digits * 256 + 242) // 243)
            start += count
        return torch.cat(parts, dim=1).to(torch.uint8)

    def read(self, data: UInt8[Tensor, "blocks bytes"], blocks: dict[str, Tensor]) -> None:
        """Add the codes."""
        parts, start = [], 0
        for count, run in self.stretches:
            fractions = (
                data[:, None, start : start + run] * torch.tensor(POWERS, dtype=torch.uint8)[: count // run, None]
            )
            parts.append(((fractions.int() * 3) >> 8).flatten(1))
            start += run
        blocks[self.name] = torch.cat(parts, dim=1).to(torch.uint8)
