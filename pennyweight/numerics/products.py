"""x Wᵀ with a weight that stays small in memory: codes as they are stored, by kernels where there are some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pennyweight.numerics.four_bits import FourBits
from pennyweight.numerics.kernels import CHUNK, EIGHT_UNTIL, op, quick

EIGHT_MULTIPLE = 16  # inputs of the eight-bit kernel


class Weight(Protocol):
    """A weight `[out, in]` held as codes."""

    @property
    def bytes(self) -> int:
        """In memory."""
        ...

    def product(self, x: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens out"]:
        """X Wᵀ in the type of x."""
        ...

    def rows(self, index: Int[Tensor, " count"]) -> Float[Tensor, "count n"]:
        """Some rows of it, in float32."""
        ...


@dataclass(frozen=True, eq=False)
class EightBits:
    """One code of eight bits a weight and one scale a row.

    Args:
        codes: int8.
        scale: of every row, in the type of the arithmetic.
        shift: what is added to every number of a row; None where it is zero everywhere.
    """

    codes: Int[Tensor, "out n"]
    scale: Float[Tensor, " out"]
    shift: Float[Tensor, " out"] | None

    @classmethod
    def pack(
        cls, codes: UInt8[Tensor, "out n"], step: Float[Tensor, "out runs"], offset: Float[Tensor, "out runs"], *,
        levels: int, dtype: torch.dtype,
    ) -> Self | None:  # fmt: skip
        """Hold step · code + offset; None where rows have several steps, or inputs the kernel cannot take."""
        if step.shape[1] != 1 or codes.shape[1] % EIGHT_MULTIPLE:
            return None
        middle = levels // 2
        shift = (offset + middle * step)[:, 0].to(dtype)
        signed = (codes.to(torch.int16) - middle).to(torch.int8)
        return cls(signed, step[:, 0].to(dtype), shift if bool(shift.any()) else None)

    @property
    def bytes(self) -> int:
        """Codes and scales."""
        return self.codes.nbytes + self.scale.nbytes + (0 if self.shift is None else self.shift.nbytes)

    def product(self, x: Float[Tensor, "tokens n"]) -> Float[Tensor, "tokens out"]:
        """X Wᵀ in the type of x; by the kernel where that is the quicker way."""
        if quick(x, EIGHT_UNTIL):
            result: Tensor = op("_weight_int8pack_mm")(x.contiguous(), self.codes, self.scale)
        else:
            step = max(1, CHUNK // self.codes.shape[1])
            parts = [x @ part.to(x.dtype).T for part in torch.split(self.codes, step)]  # whole numbers: exact
            result = torch.cat(parts, -1) * self.scale
        return result if self.shift is None else result + x.sum(-1, keepdim=True) * self.shift

    def rows(self, index: Int[Tensor, " count"]) -> Float[Tensor, "count n"]:
        """Rows by number, in float32."""
        numbers = self.codes[index].float() * self.scale[index].float()[:, None]
        return numbers if self.shift is None else numbers + self.shift[index].float()[:, None]


def held(
    codes: UInt8[Tensor, "out n"], step: Float[Tensor, "out runs"], offset: Float[Tensor, "out runs"], *, levels: int,
    dtype: torch.dtype,
) -> FourBits | EightBits | None:  # fmt: skip
    """Step · code + offset in the smallest way that a kernel takes; None where there is none. See `FourBits.pack`."""
    kinds: Sequence[type[FourBits] | type[EightBits]] = (FourBits,) if levels <= 16 else (EightBits, FourBits)
    found = (kind.pack(codes, step, offset, levels=levels, dtype=dtype) for kind in kinds)
    return next((weight for weight in found if weight is not None), None)
