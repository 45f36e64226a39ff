"""What all GGUF block types share: number = step · level(code) − offset, and fields interleaved block by block.

A block is `block` inputs of a row. Steps and offsets belong to its sub-blocks and follow from what is stored; they are
float32, computed in the order in which llama.cpp computes them, so that every number is equal bit for bit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.format import Field, Lattice, Part, Scalar
from pennyweight.formats.gguf.layout import Piece, read_blocks, write_blocks
from pennyweight.formats.gguf.numbers import Numbers
from pennyweight.formats.scale_types import exact_scale
from pennyweight.formats.sharing import Sharing
from pennyweight.formats.whole import Whole

SMALL = "choose q4_0, q4_1, q5_0, q5_1, q8_0 or iq4_nl, whose blocks are of 32 inputs"
CHUNK = 1 << 17  # weights searched at once: small enough to stay in the cache


class Blocks(Scalar):
    """A GGUF block type.

    A kind has `type` among its parameters, and answers which types there are, their fields, pieces, steps and search.
    """

    type: str

    @classmethod
    @abstractmethod
    def types(cls) -> Sequence[str]:
        """Names of the types of this kind, as GGUF spells them, in small letters."""

    @abstractmethod
    def numbers(self) -> Numbers:
        """What codes stand for before they are multiplied with a step."""

    @abstractmethod
    def fields_of(self, rows: int, blocks: int, columns: int) -> Sequence[Field]:
        """Fields of `rows` rows with `blocks` blocks each."""

    @abstractmethod
    def pieces(self) -> Sequence[Piece]:
        """How a block lies in memory."""

    @abstractmethod
    def steps(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Step and offset of every sub-block, `[out, sub-blocks]` float32."""

    @abstractmethod
    def search_blocks(self, w: Tensor, importance: Tensor, search: bool) -> dict[str, Tensor]:
        """Fields without codes, `[out, blocks, ...]`, for weights `[out, blocks, block]`."""

    def __post_init__(self) -> None:
        if self.type not in self.types():
            raise InvalidFormat(f"the type {self.type!r}", expected=", ".join(self.types()), site=self.name)

    def label(self) -> str:
        """The name of the type: `q4_0`, `q4_k`."""
        return self.type

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        return cls.of(label.strip()) if label.strip() in cls.types() else None

    @classmethod
    @abstractmethod
    def of(cls, type: str) -> Self:
        """The format of this type."""

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Every type."""
        return [cls.of(type) for type in cls.types()]

    @property
    def levels(self) -> int:
        """Number of codes."""
        return len(self.numbers().values)

    @property
    def sharing(self) -> Sharing:
        """Whole blocks, which share what lies beside their codes."""
        return Sharing(1, self.inputs_multiple)

    def blocks(self, shape: tuple[int, ...]) -> int:
        """Blocks of a row.

        Raises:
            InvalidFormat: rows do not split into blocks.
        """
        block, columns = self.inputs_multiple, shape[1]
        if columns % block == 0:
            return columns // block
        raise InvalidFormat(
            f"{columns} inputs do not split into blocks of {block} "
            f"({columns // block} blocks, {columns % block} left over)",
            expected=f"a multiple of {block} inputs for {self.type}",
            mend=SMALL if columns % 32 == 0 else "keep it dense: no GGUF block type fits", site=self.type,
        )  # fmt: skip

    def fields(self, shape: tuple[int, ...]) -> Sequence[Field]:
        """Codes, and what each block holds besides."""
        return self.fields_of(shape[0], self.blocks(shape), shape[1])

    def pack(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> UInt8[Tensor, " bytes"]:
        """The bytes that a GGUF file holds for this tensor."""
        return write_blocks(self.pieces(), tensors, shape[0] * self.blocks(shape))

    def unpack(self, data: UInt8[Tensor, " bytes"], shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The fields, from the bytes of a GGUF file."""
        found = read_blocks(self.pieces(), data, shape[0] * self.blocks(shape))
        return {field.name: found[field.name].reshape(field.shape) for field in self.fields(shape)}

    def lattice(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Lattice | None:
        """Sub-blocks are the runs; see `Format.lattice`."""
        numbers = self.numbers()
        if not numbers.uniform:
            return None
        step, offset = self.steps(tensors)
        return Lattice(tensors["codes"].reshape(shape), self.levels, step, step * float(numbers.values[0]) - offset)

    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, "out in"]:
        """Step · level − offset in float32."""
        step, offset = self.steps(tensors)
        levels = self.numbers().values[tensors["codes"].long()].reshape(*step.shape, -1)
        return levels.mul_(step[..., None]).sub_(offset[..., None]).reshape(shape)

    def whole(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Whole | None:
        """Codes and steps; codes whose numbers are uneven are those numbers themselves."""
        step, offset = self.steps(tensors)
        numbers = self.numbers()
        first = 0 if not numbers.uniform else int(-numbers.values[0])
        codes = tensors["codes"].reshape(shape).to(torch.int16)
        if not numbers.uniform:
            codes = numbers.values[codes.long()].to(torch.int16)
        zero = torch.full(step.shape, first, dtype=torch.int16)
        return Whole(codes, zero, step, -offset if bool(offset.any()) else None)

    def hold(self, weight: Float[Tensor, "out in"], whole: Whole | None) -> Part | None:
        """Numbers of this type whose steps are float16, and minima; not where sub-blocks have steps of few bits."""
        names = {field.name for field in self.fields(tuple(weight.shape))}
        tiled = None if whole is None else whole.tiled(self.sharing)
        if tiled is None or names - {"codes", "scale", "minimum"}:
            return None
        scale = exact_scale(tiled.step, "float16")
        if scale is None:
            return None
        if "minimum" in names:
            return self._hold_minima(tiled, scale)
        around = tiled.around_zero()
        codes = None if around is None else self._codes_of(around)
        return None if codes is None else Part(self, {"codes": codes, "scale": scale})

    def _hold_minima(self, tiled: Whole, scale: Tensor) -> Part | None:
        offset = 0 if tiled.offset is None else tiled.offset
        for way in tiled.zeros(self.levels - 1):
            minimum = exact_scale(offset - way.zero.float() * way.step, "float16")
            if minimum is not None:
                return Part(self, {"codes": way.codes.to(torch.uint8), "scale": scale, "minimum": minimum})
        return None

    def _codes_of(self, whole: Whole) -> Tensor | None:
        numbers = self.numbers()
        if numbers.uniform:
            return whole.centred(int(-numbers.values[0]), self.levels - 1)
        wanted = whole.numbers.float()
        codes = torch.searchsorted(numbers.values, wanted).clamp_(max=self.levels - 1)
        return codes.to(torch.uint8) if torch.equal(numbers.values[codes], wanted) else None

    def fit(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> BlockScales:
        """Choose what blocks hold besides codes: see `Scalar.fit`."""
        rows, columns = weight.shape
        blocks = self.blocks((rows, columns))
        w = weight.float().reshape(rows, blocks, -1)
        shared = torch.ones(columns) if importance is None else _of_mean_one(importance)
        step = max(1, CHUNK // columns)
        found = [
            self.search_blocks(w[start : start + step], shared.reshape(1, blocks, -1), search)
            for start in range(0, rows, step)
        ]
        stored = {
            field.name: torch.cat([part[field.name] for part in found]).reshape(field.shape).to(field.dtype)
            for field in self.fields((rows, columns))
            if field.name != "codes"
        }
        if any(bool(torch.isinf(tensor).any()) for tensor in stored.values() if tensor.is_floating_point()):
            raise InvalidFormat(
                f"a scale of {self.type} overflows float16", expected="weights whose range fits float16", site=self.type
            )
        return BlockScales(self, stored)


def _of_mean_one(importance: Tensor) -> Tensor:
    """So that products of several sums stay within float32."""
    mean = importance.double().mean()
    return (importance / torch.where(mean > 0, mean, 1)).float()


class BlockScales:
    """A block type fitted to one weight.

    Args:
        format: the format.
        stored: its tensors, without the codes.
    """

    def __init__(self, format: Blocks, stored: Mapping[str, Tensor]) -> None:
        self.format, self.stored = format, stored
        self.step, self.offset = format.steps(stored)

    def columns(self, shape: tuple[int, ...]) -> BlockColumns:
        """Steps and offsets laid out for a sweep over input columns."""
        width = shape[1] // self.step.shape[1]
        return BlockColumns(self.format.numbers(), self.step.T.contiguous(), self.offset.T.contiguous(), width)

    def round(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        """Codes of the nearest values."""
        grouped = weight.float().reshape(*self.step.shape, -1)
        codes = self.format.numbers().encode(grouped, self.step[..., None], self.offset[..., None])
        return codes.to(torch.uint8).reshape(weight.shape)

    def part(self, codes: UInt8[Tensor, "out in"]) -> Part:
        """Codes and parameters as one part of a compressed tensor."""
        return Part(self.format, {"codes": codes, **self.stored})


@dataclass(frozen=True, eq=False)
class BlockColumns:
    """Steps and offsets for one input column of all rows at a time."""

    numbers: Numbers
    step: Float[Tensor, "across out"]
    offset: Float[Tensor, "across out"]
    size: int

    def encode(self, values: Float[Tensor, " out"], column: int) -> Float[Tensor, " out"]:
        """Codes, as float32 whole numbers, of one column of weights."""
        at = column // self.size
        return self.numbers.encode(values, self.step[at], self.offset[at])

    def decode(self, codes: Float[Tensor, " out"], column: int) -> Float[Tensor, " out"]:
        """Values of one column of codes."""
        at = column // self.size
        return self.numbers.values[codes.long()].mul_(self.step[at]).sub_(self.offset[at])
