"""A weight of four-bit codes, packed as PyTorch's kernel reads it; wider codes as two planes, 16 · high + low.

Scales are held in the type of the arithmetic: in bfloat16 they are rounded to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pennyweight.numerics.kernels import CHUNK, FOUR_UNTIL, op, quick

GROUPS = (256, 128, 64, 32)  # inputs that may share a scale in the kernel
BLOCKS = (64, 32, 16)  # outputs it packs together, by the width of the machine's vectors


@dataclass(frozen=True, eq=False)
class FourBits:
    """One or two planes of four bits, as the kernel packs them.

    Args:
        planes: packed codes, the low one first.
        scales: of each plane `[runs, out, 2]`: number = (code − 8) · first + second, in the type of the arithmetic.
        outputs: of the weight; what is packed is filled up to whole blocks.
        inputs: of the weight.
    """

    planes: tuple[UInt8[Tensor, "padded half"], ...]
    scales: tuple[Float[Tensor, "runs padded 2"], ...]
    outputs: int
    inputs: int

    @classmethod
    def pack(
        cls, codes: UInt8[Tensor, "out n"], step: Float[Tensor, "out runs"], offset: Float[Tensor, "out runs"], *,
        levels: int, dtype: torch.dtype,
    ) -> Self | None:  # fmt: skip
        """Pack step · code + offset; None where runs of inputs are no multiple of 32.

        Args:
            codes: below `levels`.
            step: one for every row and run of inputs of equal length.
            offset: what code zero stands for.
            levels: at most 256.
            dtype: of the arithmetic, in which scales are held.
        """
        (rows, inputs), (block, _) = codes.shape, _layout()
        width = inputs // step.shape[1]
        group = next((size for size in GROUPS if width % size == 0), None)
        if group is None:
            return None
        padded = -(-rows // block) * block
        step, offset = (_filled(t, padded).repeat_interleave(width // group, 1) for t in (step.float(), offset.float()))
        # The middle code becomes the one the kernel subtracts: what is added is small then, and so is its rounding.
        raised = (8 if levels <= 16 else 128) - levels // 2
        codes, offset = codes + raised, offset - raised * step
        if levels <= 16:
            pairs = [(codes, step, offset + 8 * step)]
        else:
            pairs = [(codes & 15, step, 8 * step), (codes >> 4, 16 * step, offset + 128 * step)]
        planes = tuple(_pack(plane, padded, block) for plane, _, _ in pairs)
        scales = tuple(torch.stack([s.T, z.T], -1).contiguous().to(dtype) for _, s, z in pairs)
        return cls(planes, scales, rows, inputs)

    @property
    def bytes(self) -> int:
        """Codes and scales."""
        return sum(tensor.nbytes for tensor in (*self.planes, *self.scales))

    def product(self, x: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens out"]:
        """X Wᵀ in the type of x; by the kernel where that is the quicker way."""
        if quick(x, FOUR_UNTIL):
            group, kernel = self.inputs // len(self.scales[0]), op("_weight_int4pack_mm_for_cpu")
            parts = [kernel(x.contiguous(), p, group, s) for p, s in zip(self.planes, self.scales, strict=True)]
            total: Tensor = parts[0] if len(parts) == 1 else parts[0] + parts[1]
            return total[:, : self.outputs]
        result = x.new_empty(len(x), len(self.planes[0]))
        for start, numbers in self._decoded():
            result[:, start : start + numbers.shape[1]] = (x @ numbers.to(x.dtype))[:, _inverse(numbers.shape[1])]
        return result[:, : self.outputs]

    def rows(self, index: Int[Tensor, " count"]) -> Float[Tensor, "count n"]:
        """Rows by number, in float32."""
        block, order = _layout()
        place = torch.empty_like(order).scatter_(0, order, torch.arange(block))[index % block]
        total = torch.zeros(len(index), self.inputs)
        for plane, scales in zip(self.planes, self.scales, strict=True):
            bytes_ = plane.view(-1, self.inputs, block // 2)[index // block, :, place % (block // 2)]
            codes = (bytes_ >> (4 * (place >= block // 2)).to(torch.uint8)[:, None]) & 15
            step, zero = scales[:, index].float().unbind(-1)
            wide = self.inputs // len(scales)
            total += (codes - 8.0) * step.T.repeat_interleave(wide, 1) + zero.T.repeat_interleave(wide, 1)
        return total

    def _decoded(self) -> Iterator[tuple[int, Tensor]]:
        """First output and numbers `[in, outputs]` of a few blocks at a time, outputs in the order of the packing."""
        block, order = _layout()
        count = max(1, CHUNK // (self.inputs * block))
        for first in range(0, len(self.planes[0]) // block, count):
            total: Tensor | None = None
            for plane, scales in zip(self.planes, self.scales, strict=True):
                pairs = plane.view(-1, self.inputs, block // 2)[first : first + count].permute(1, 0, 2)
                codes = torch.stack([pairs & 15, pairs >> 4], 2).reshape(len(scales), -1, pairs.shape[1] * block)
                own = scales[:, first * block : (first + count) * block].float()
                step, zero = own.view(len(scales), -1, block, 2)[:, :, order].flatten(1, 2)[:, None].unbind(-1)
                numbers = torch.addcmul(zero - 8 * step, codes.float(), step)
                total = numbers if total is None else total.add_(numbers)
            assert total is not None
            yield first * block, total.flatten(0, 1)


@lru_cache(maxsize=1)
def _layout() -> tuple[int, Tensor]:
    """Outputs in a block of the packing, and which of them its nibbles hold, low ones before high ones.

    Found by packing numbers: it differs between machines. A block holds every input one after the other.
    """
    pack = op("_convert_weight_to_int4pack_for_cpu")
    for block in BLOCKS:
        number = torch.arange(block, dtype=torch.int32)[:, None].expand(-1, 2).contiguous()
        low, high = (pack(digit, 2).reshape(2, block // 2) for digit in (number % 16, number // 16))
        order = torch.cat([(low & 15) + 16 * (high & 15), (low >> 4) + (high >> 4) * 16], 1).long()
        if torch.equal(order[0], order[1]):
            return block, order[0]
    raise AssertionError("the kernel packs codes in a way that was never seen")


def _inverse(columns: int) -> Tensor:
    """Where in decoded columns each output stands."""
    block, order = _layout()
    return (torch.arange(0, columns, block)[:, None] + order.argsort()).flatten()


def _pack(codes: Tensor, padded: int, block: int) -> Tensor:
    """Codes by the kernel's own packing, some blocks at a time: it wants them as int32."""
    step = block * max(1, CHUNK // (block * codes.shape[1]))
    pack = op("_convert_weight_to_int4pack_for_cpu")
    parts = [
        pack(_filled(codes[start : start + step].int(), min(step, padded - start)), 2)
        for start in range(0, padded, step)
    ]
    return torch.cat(parts).view(padded, -1)


def _filled(tensor: Tensor, rows: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, 0, 0, rows - len(tensor)))
