"""A compressed tensor: a sum of parts, each stored in one format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Format(Protocol):
    """A way to store a tensor, exact to the bit; it says nothing of how the stored numbers were chosen."""

    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, ...]:
        """The stored numbers as float32, of the given shape."""
        ...

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Everything that is stored for a tensor of this shape, metadata included, in bits."""
        ...

    def label(self) -> str:
        """A short name a person reads and `formats.parse` understands, such as `int4 g64 asym`."""
        ...


@dataclass(frozen=True, eq=False)
class Part:
    """One summand: a format and the tensors it stores."""

    format: Format
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Compressed:
    """A tensor as a sum of parts (codes, later outliers and low-rank factors).

    Args:
        parts: the summands.
        shape: of the tensor they add up to.
        record: what the method wants the ledger to say, such as the damping it ended with.
    """

    parts: tuple[Part, ...]
    shape: tuple[int, ...]
    record: Mapping[str, Any] = field(default_factory=dict)

    def dequantize(self) -> Float[Tensor, ...]:
        """The tensor an engine computes with, in float32."""
        first, *rest = (part.format.decode(part.tensors, self.shape) for part in self.parts)
        for other in rest:
            first = first + other
        return first

    def rows(self, start: int, stop: int) -> Compressed:
        """Some rows of it; every format stores a matrix row by row."""
        parts = tuple(Part(part.format, {k: v[start:stop] for k, v in part.tensors.items()}) for part in self.parts)
        return Compressed(parts, (stop - start, *self.shape[1:]), self.record)

    @property
    def bits(self) -> int:
        """Everything stored, in bits."""
        return sum(part.format.stored_bits(self.shape) for part in self.parts)
