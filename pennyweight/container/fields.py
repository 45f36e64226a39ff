"""How the bytes of a tensor fall into streams that are alike inside: exponents, mantissas, codes, scales.

Every layout is a bijection between bytes and streams of bytes; which one was used is stored by name.

Floats are turned left by one bit, so that the sign joins the mantissa: of bfloat16 and float32 the first byte is then
the exponent alone, of float16 the exponent and three bits of mantissa. Packed codes of 1, 2, 4 and 8 bits fill whole
bytes, and a byte of them is one symbol. Codes of other widths straddle bytes, so their stream of bits is dealt into
symbols of 5, 6 (two codes of 3) or 7 bits. Blocks of GGUF files are taken apart into their fields.

Source: ZipNN, arXiv:2411.05239 (turning and planes); ggml-common.h of llama.cpp for the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import gcd
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
CHUNK = 1 << 20  # bytes of a tensor that are coded at once; what is in memory is a few of these

EXPONENTS, MANTISSAS, CODES, SCALES, OTHER = KINDS = ("exponents", "mantissas", "codes", "scales", "other")


class Layout(Protocol):
    """One way to take bytes apart and put them together again."""

    @property
    def name(self) -> str:
        """As the container stores it."""
        ...

    @property
    def stride(self) -> int:
        """Bytes that belong together: only whole records can be split."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """What each stream holds."""
        ...

    def sizes(self, count: int) -> tuple[int, ...]:
        """Bytes of each stream when `count` bytes are split."""
        ...

    def split(self, data: Bytes) -> list[Bytes]:
        """Take whole records apart."""
        ...

    def join(self, streams: Sequence[Bytes]) -> Bytes:
        """Put streams together again."""
        ...


@dataclass(frozen=True)
class Records:
    """Records of fields, each a stream.

    Args:
        name: of the layout.
        fields: kind and bytes of each field, in the order of the record.
    """

    name: str
    fields: tuple[tuple[str, int], ...]

    @property
    def stride(self) -> int:
        """Bytes of a record."""
        return sum(width for _, width in self.fields)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of each field."""
        return tuple(kind for kind, _ in self.fields)

    def sizes(self, count: int) -> tuple[int, ...]:
        """Bytes of each field over all records."""
        return tuple(count // self.stride * width for _, width in self.fields)

    def split(self, data: Bytes) -> list[Bytes]:
        """A stream a field."""
        if len(self.fields) == 1:
            return [data]
        table, ends = data.reshape(-1, self.stride), self._ends()
        return [table[:, end - width : end].reshape(-1) for end, (_, width) in zip(ends, self.fields, strict=True)]

    def join(self, streams: Sequence[Bytes]) -> Bytes:
        """Records of fields."""
        if len(self.fields) == 1:
            return streams[0]
        table = np.empty((len(streams[0]) // self.fields[0][1], self.stride), dtype=np.uint8)
        for stream, end, (_, width) in zip(streams, self._ends(), self.fields, strict=True):
            table[:, end - width : end] = stream.reshape(-1, width)
        return table.reshape(-1)

    def _ends(self) -> list[int]:
        return list(accumulate(width for _, width in self.fields))


@dataclass(frozen=True)
class Floats:
    """Numbers of 2, 4 or 8 bytes, little end first, turned left by one bit; a stream a byte, the highest first."""

    name: str
    stride: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """The exponent's byte, then the rest."""
        return (EXPONENTS, *(MANTISSAS,) * (self.stride - 1))

    def sizes(self, count: int) -> tuple[int, ...]:
        """As many bytes as numbers, each."""
        return (count // self.stride,) * self.stride

    def split(self, data: Bytes) -> list[Bytes]:
        """A stream a byte."""
        words, bits = data.view(f"<u{self.stride}"), 8 * self.stride
        turned = ((words << 1) | (words >> (bits - 1))).view(np.uint8).reshape(-1, self.stride)
        return [turned[:, byte].copy() for byte in reversed(range(self.stride))]

    def join(self, streams: Sequence[Bytes]) -> Bytes:
        """Turned back."""
        turned = np.empty((len(streams[0]), self.stride), dtype=np.uint8)
        for byte, stream in zip(reversed(range(self.stride)), streams, strict=True):
            turned[:, byte] = stream
        words, bits = turned.reshape(-1).view(f"<u{self.stride}"), 8 * self.stride
        return ((words >> 1) | (words << (bits - 1))).view(np.uint8)


@dataclass(frozen=True)
class Symbols:
    """One stream of bits, low bit first, dealt into symbols of `bits` bits, a byte each."""

    bits: int

    @property
    def name(self) -> str:
        """By the width."""
        return f"symbols{self.bits}"

    @property
    def stride(self) -> int:
        """Bytes that a whole number of symbols fills."""
        return self.bits // gcd(self.bits, 8)

    @property
    def kinds(self) -> tuple[str, ...]:
        """One stream."""
        return (CODES,)

    def sizes(self, count: int) -> tuple[int, ...]:
        """A byte a symbol."""
        return (count * 8 // self.bits,)

    def split(self, data: Bytes) -> list[Bytes]:
        """Symbols of every record."""
        records = np.zeros((len(data) // self.stride, 8), dtype=np.uint8)
        records[:, : self.stride] = data.reshape(-1, self.stride)
        words, mask = records.view("<u8"), np.uint64((1 << self.bits) - 1)
        return [((words >> self._shifts()) & mask).astype(np.uint8).reshape(-1)]

    def join(self, streams: Sequence[Bytes]) -> Bytes:
        """Records of symbols; bits beyond the width are dropped."""
        shifts = self._shifts()
        symbols = streams[0].reshape(-1, len(shifts)).astype(np.uint64) & np.uint64((1 << self.bits) - 1)
        words: NDArray[np.uint64] = np.bitwise_or.reduce(symbols << shifts, axis=1)
        return words.view(np.uint8).reshape(-1, 8)[:, : self.stride].reshape(-1)

    def _shifts(self) -> NDArray[np.uint64]:
        return np.arange(0, 8 * self.stride, self.bits, dtype=np.uint64)


HALF = ((SCALES, 1), (SCALES, 1))  # a float16, its low byte first
BLOCKS: Mapping[str, tuple[tuple[str, int], ...]] = {
    "q4_0": (*HALF, (CODES, 16)), "q4_1": (*HALF, *HALF, (CODES, 16)),
    "q5_0": (*HALF, (CODES, 4), (CODES, 16)), "q5_1": (*HALF, *HALF, (CODES, 4), (CODES, 16)),
    "q8_0": (*HALF, (CODES, 32)),
    "q2_k": ((SCALES, 16), (CODES, 64), *HALF, *HALF), "q3_k": ((CODES, 32), (CODES, 64), (SCALES, 12), *HALF),
    "q4_k": (*HALF, *HALF, (SCALES, 12), (CODES, 128)), "q5_k": (*HALF, *HALF, (SCALES, 12), (CODES, 32), (CODES, 128)),
    "q6_k": ((CODES, 128), (CODES, 64), (SCALES, 16), *HALF), "iq4_nl": (*HALF, (CODES, 16)),
    "iq4_xs": (*HALF, (SCALES, 2), (SCALES, 4), (CODES, 128)),
    "tq1_0": ((CODES, 48), (CODES, 4), *HALF), "tq2_0": ((CODES, 64), *HALF),
}  # fmt: skip

PLAIN = Records("bytes", ((OTHER, 1),))
INTEGERS = Records("integers", ((CODES, 1),))
FLOATS = {bits: Floats(f"float{bits}", bits // 8) for bits in (16, 32, 64)}
WIDE = {bits: Records(f"int{bits}", ((CODES, 1),) * (bits // 8)) for bits in (16, 32, 64)}
STRADDLING = tuple(Symbols(bits) for bits in (5, 6, 7))
GGUF = {kind: Records(f"gguf {kind}", fields) for kind, fields in BLOCKS.items()}


def _named(layouts: Iterable[Layout]) -> dict[str, Layout]:
    return {layout.name: layout for layout in layouts}


LAYOUTS: Mapping[str, Layout] = _named([PLAIN, INTEGERS, *FLOATS.values(), *WIDE.values(), *STRADDLING, *GGUF.values()])

# What may be tried on a type of tensor; types that are not listed are bytes. Words of 32 bits may be packed codes.
TRIED: Mapping[str, tuple[Layout, ...]] = {
    "F64": (FLOATS[64],), "F32": (FLOATS[32],), "F16": (FLOATS[16],), "BF16": (FLOATS[16],),
    "I64": (WIDE[64],), "U64": (WIDE[64],), "I16": (INTEGERS, WIDE[16]), "U16": (INTEGERS, WIDE[16]),
    "I32": (INTEGERS, WIDE[32], *STRADDLING), "U32": (INTEGERS, WIDE[32], *STRADDLING), "U8": (INTEGERS, *STRADDLING),
    **{kind.upper(): (layout,) for kind, layout in GGUF.items()},
}  # fmt: skip


def layouts_of(dtype: str, size: int) -> tuple[Layout, ...]:
    """Layouts worth trying on a tensor; `INTEGERS` where nothing more is known of the type.

    Args:
        dtype: as safetensors (`BF16`) or GGUF (`Q4_K`) call it.
        size: bytes of the tensor; layouts whose records do not fill it are left out.
    """
    fitting = tuple(layout for layout in TRIED.get(dtype, ()) if size % layout.stride == 0)
    return fitting or (INTEGERS,)
