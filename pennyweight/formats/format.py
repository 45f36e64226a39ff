"""What a format is: named fields, exact to the bit, and the numbers they stand for.

Two kinds. Every `Format` can store a weight by itself (`store`). A `Scalar` format gives each weight a code of its own
beside parameters that a tile of weights shares; methods that choose codes one by one work with any of those, through
`fit`, `round`, `columns` and `part`, and know nothing of its name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.sharing import Sharing
from pennyweight.formats.whole import Whole
from pennyweight.numerics.packing import pack_codes, unpack_codes


@dataclass(frozen=True)
class Field:
    """One tensor of what a format stores.

    Args:
        name: of the tensor.
        shape: of it in memory, where a code takes a byte.
        levels: number of different codes, 2 to 256; None for a field of numbers.
        dtype: of numbers.
        by_row: whether its first dimension are the outputs, so that rows of it can be cut out.
        packed: bits of all of it, where `pack` of the format lays it out in another way than the field's.
    """

    name: str
    shape: tuple[int, ...]
    levels: int | None = None
    dtype: Any = torch.uint8
    by_row: bool = True
    packed: int | None = None

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Stored for all elements: ternary codes five a byte, all others in their whole number of bits."""
        if self.packed is not None:
            return self.packed
        if self.levels is None:
            return 8 * int(self.dtype.itemsize) * self.count
        if self.levels == 3:
            return 8 * -(-self.count // 5)
        return (self.levels - 1).bit_length() * self.count

    def pack(self, tensor: Tensor) -> UInt8[Tensor, " bytes"]:
        """Its bytes."""
        if self.levels is None:
            return tensor.to(self.dtype).contiguous().flatten().view(torch.uint8)
        return pack_codes(tensor.flatten(), self.levels)

    def unpack(self, data: UInt8[Tensor, " bytes"]) -> Tensor:
        """What `pack` packed."""
        if self.levels is None:
            return data.clone().view(self.dtype).reshape(self.shape)
        return unpack_codes(data, self.levels, self.count).reshape(self.shape)

    @property
    def bytes(self) -> int:
        """Packed: `bits`, filled up to a byte."""
        return -(-self.bits // 8)


@dataclass(frozen=True, eq=False)
class Lattice:
    """A weight whose numbers lie evenly in every run of inputs: step · code + offset.

    Args:
        codes: uint8, from zero on.
        levels: number of different codes.
        step: float32, one for every row and run of inputs of equal length.
        offset: what code zero stands for.
    """

    codes: UInt8[Tensor, "out in"]
    levels: int
    step: Float[Tensor, "out runs"]
    offset: Float[Tensor, "out runs"]


class Format(ABC):
    """A way to store a weight, exact to the bit; it says nothing of how the stored numbers were chosen."""

    name: ClassVar[str]
    inputs_multiple: ClassVar[int] = 1  # the inputs of a weight it fits are a multiple of this, whatever its parameters

    @classmethod
    @abstractmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else.

        Raises:
            InvalidFormat: it names one of this kind that cannot be.
        """

    @classmethod
    @abstractmethod
    def examples(cls) -> Sequence[Self]:
        """A few of its kind: `pennyweight list` shows them, and the contract tests run them on 24 x 96 weights, or
        as many inputs more as `inputs_multiple` asks for."""

    @abstractmethod
    def label(self) -> str:
        """A short name a person reads and `parse` reads back, such as `int4 g64 asym`."""

    @abstractmethod
    def fields(self, shape: tuple[int, ...]) -> Sequence[Field]:
        """What is stored for a tensor of this shape.

        Raises:
            InvalidFormat: it does not fit this shape.
        """

    @abstractmethod
    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, ...]:
        """The stored numbers as float32, of the given shape."""

    @abstractmethod
    def store(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> Part:
        """Store a weight by rounding it to the nearest numbers there are.

        Args:
            weight: any floating type.
            search: choose parameters for the least squared error; otherwise keep the whole range.
            importance: weight of each input in the squared error, such as E[x²].

        Raises:
            InvalidFormat: it does not fit this shape, or a parameter overflows its type.
        """

    def lattice(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Lattice | None:
        """The same numbers as codes, steps and offsets, up to rounding in float32; None where they are not even, or
        rows share a step."""
        del tensors, shape
        return None

    def whole(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Whole | None:
        """What is stored as whole numbers times steps; None where it is nothing of the kind."""
        del tensors, shape
        return None

    def hold(self, weight: Float[Tensor, "out in"], whole: Whole | None) -> Part | None:
        """Store exactly these numbers, without rounding; None where this format has no room for them.

        Args:
            weight: float32.
            whole: the same numbers as whole ones, where they are that.

        Raises:
            InvalidFormat: it does not fit this shape.
        """
        del weight, whole
        return None

    @property
    def rows_stand_alone(self) -> bool:
        """Whether no two rows share a parameter, so that rows may be split and stacked at will."""
        return True

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Everything that is stored for a tensor of this shape, metadata included, in bits."""
        return sum(field.bits for field in self.fields(shape))

    def rows(self, tensors: Mapping[str, Tensor], start: int, stop: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """What is stored of some rows.

        Raises:
            InvalidFormat: these rows share a parameter with others, so that no part of it is theirs alone.
        """
        by_row = {field.name: field.by_row for field in self.fields(shape)}
        if not self.rows_stand_alone and (start, stop) != (0, shape[0]):
            raise InvalidFormat(f"some rows of {self.label()}", expected="the whole weight: its rows share scales")
        return {key: tensor[start:stop] if by_row[key] else tensor for key, tensor in tensors.items()}

    def pack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> UInt8[Tensor, " bytes"]:
        """The bytes: every field one after the other, each filled up to a whole byte."""
        return torch.cat([field.pack(tensors[field.name]) for field in self.fields(shape)])

    def unpack(self, data: UInt8[Tensor, " bytes"], shape: tuple[int, ...]) -> dict[str, Tensor]:
        """What `pack` packed."""
        fields = self.fields(shape)
        pieces = torch.split(data, [field.bytes for field in fields])
        return {field.name: field.unpack(piece) for field, piece in zip(fields, pieces, strict=True)}


class Scalar(Format):
    """A format with a code for every weight, and parameters that a tile of weights shares."""

    @property
    @abstractmethod
    def levels(self) -> int:
        """Number of codes."""

    @property
    @abstractmethod
    def sharing(self) -> Sharing:
        """Which weights share parameters."""

    @property
    def rows_stand_alone(self) -> bool:
        """Whether no two rows share a parameter."""
        return self.sharing.rows_stand_alone

    @abstractmethod
    def fit(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> Fitted:
        """Choose the shared parameters for a weight; arguments as those of `store`.

        Raises:
            InvalidFormat: it does not fit this shape, or a parameter overflows its type.
        """

    def store(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> Part:
        """Fit, then round: see `Format.store`."""
        fitted = self.fit(weight, search=search, importance=importance)
        return fitted.part(fitted.round(weight))


@runtime_checkable
class Columns(Protocol):
    """Shared parameters laid out for a sweep over input columns, all outputs of one input at a time."""

    def encode(self, values: Float[Tensor, " out"], column: int) -> Float[Tensor, " out"]:
        """Codes, as float32 whole numbers, of one column of weights."""
        ...

    def decode(self, codes: Float[Tensor, " out"], column: int) -> Float[Tensor, " out"]:
        """Values of one column of codes."""
        ...


@runtime_checkable
class Fitted(Protocol):
    """A scalar format whose shared parameters are chosen for one weight."""

    def columns(self, shape: tuple[int, ...]) -> Columns:
        """The same parameters for a sweep over the inputs of a weight of this shape."""
        ...

    def round(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        """Codes of the nearest values."""
        ...

    def part(self, codes: UInt8[Tensor, "out in"]) -> Part:
        """Codes and parameters as one part of a compressed tensor."""
        ...


@runtime_checkable
class Linear(Fitted, Protocol):
    """Fitted, with values linear in real parameters that can be chosen again: Σ parameter(tile) · factor(code)."""

    def parameters(self) -> Float[Tensor, "parameters down across"]:
        """The parameters as they are stored, in float32."""
        ...

    def factors(self, codes: Float[Tensor, "out in"]) -> Float[Tensor, "parameters out in"]:
        """What each parameter is multiplied with, for every code."""
        ...

    def refitted(self, parameters: Float[Tensor, "parameters down across"]) -> Linear:
        """The same format with other parameters, rounded to the type they are stored in."""
        ...


@runtime_checkable
class Refittable(Protocol):
    """A format whose values are linear in parameters, the first of which is a step; it finds them in what it stored.

    Codes of those that are `Scalar` may be learnt too.
    """

    @property
    def reach(self) -> float:
        """How far the outermost values are from the middle, in steps."""
        ...

    @property
    def sharing(self) -> Sharing:
        """Which weights share parameters."""
        ...

    def fitted(self, tensors: Mapping[str, Tensor]) -> Linear:
        """The parameters among what is stored: the inverse of `Fitted.part`."""
        ...

    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, ...]:
        """See `Format.decode`."""
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
        """Some rows of it; see `Format.rows`."""
        parts = tuple(Part(p.format, p.format.rows(p.tensors, start, stop, self.shape)) for p in self.parts)
        return Compressed(parts, (stop - start, *self.shape[1:]), self.record)

    @property
    def bits(self) -> int:
        """Everything stored, in bits."""
        return sum(part.format.stored_bits(self.shape) for part in self.parts)
