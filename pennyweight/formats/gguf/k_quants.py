"""GGUF types with blocks of 256 whose sub-blocks have scales of few bits: the K types and IQ4_XS.

Source: llama.cpp, ggml/src/ggml-quants.c (pull requests 1684 and 5747 by I. Kawrakow), and the reference reader in its
Python package `gguf`. With d and m in float16, one a block, a number is (d · sub_scale) · code − m · sub_minimum in
Q2_K, Q4_K and Q5_K, (d · sub_scale) · (code − 2^(b−1)) in Q3_K and Q6_K, and (d · sub_scale) · one of sixteen uneven
numbers in IQ4_XS, whose sub-scales have a sign.

    type     bits a weight   code   sub-block   sub-scales, and minima
    q2_k     2.625           2      16          4 bits each
    q3_k     3.4375          3      16          6 bits, −32 to 31
    iq4_xs   4.25            4      32          6 bits, −32 to 31
    q4_k     4.5             4      32          6 bits each
    q5_k     5.5             5      32          6 bits each
    q6_k     6.5625          6      16          8 bits, −128 to 127

`search=False` keeps the whole range of every sub-block, zero included. Departs from llama.cpp, whose search fits each
sub-block by itself and then rounds its scale: here sub-scales, minima and the float16 numbers are chosen together, for
the error that is left when codes are rounded with what is stored; and weights count as `importance` says, never by
their own size. Its quantizer leaves more error in every type, by 4 to 40 per cent on normal weights and those of a
heavier tail (benchmarks/gguf_types.py), in a half to a sixth of the time.

When to use it: for llama.cpp, where the number of inputs is a multiple of 256. On normal weights the relative squared
error of 2 to 6 bits is .067, .021, .0048, .0012 and .00028, and .0055 in IQ4_XS. Cost: the search rounds every weight
some 130 times with minima, some 80 without. Known failures: where sub-blocks of one block are of very different size,
the small ones have few whole numbers left for their scale, and may come back as zeros. IQ4_XS has no zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from pennyweight.formats.format import Field
from pennyweight.formats.gguf.blocks import Blocks
from pennyweight.formats.gguf.layout import Bits, Piece, Whole, half
from pennyweight.formats.gguf.numbers import Numbers, uneven_numbers, whole_numbers
from pennyweight.formats.gguf.pieces import NibblePairs, ScalesAndMinima
from pennyweight.formats.gguf.search import extreme, search_ranges, search_steps, unchanged
from pennyweight.formats.gguf.super_blocks import Joint

BLOCK = 256


class Kind(NamedTuple):
    """Bits of a code, inputs of a sub-block, and the range of the whole numbers that are its scales."""

    bits: int
    sub: int
    low: int
    high: int
    minima: bool


KINDS = {
    "q2_k": Kind(2, 16, 0, 15, True), "q3_k": Kind(3, 16, -32, 31, False), "iq4_xs": Kind(4, 32, -32, 31, False),
    "q4_k": Kind(4, 32, 0, 63, True), "q5_k": Kind(5, 32, 0, 63, True), "q6_k": Kind(6, 16, -128, 127, False),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class KQuant(Blocks):
    """Blocks of 256 weights whose sub-blocks have scales, and some minima, of few bits (GGUF).

    Args:
        type: q2_k, q3_k, iq4_xs, q4_k, q5_k or q6_k.

    Raises:
        InvalidFormat: a type that is none of these.
    """

    name: ClassVar[str] = "gguf_k"
    inputs_multiple: ClassVar[int] = BLOCK
    type: str = "q4_k"

    @classmethod
    def types(cls) -> Sequence[str]:
        """Q2_K to Q6_K, and IQ4_XS."""
        return tuple(KINDS)

    @classmethod
    def of(cls, type: str) -> Self:
        """The format of this type."""
        return cls(type=type)

    @property
    def kind(self) -> Kind:
        """Its row of the table."""
        return KINDS[self.type]

    def numbers(self) -> Numbers:
        """Whole numbers, from zero with minima, around zero without; those of IQ4_XS are uneven."""
        levels = 1 << self.kind.bits
        if self.type == "iq4_xs":
            return uneven_numbers()
        return whole_numbers(0, levels - 1) if self.kind.minima else whole_numbers(-levels // 2, levels // 2 - 1)

    def fields_of(self, rows: int, blocks: int, columns: int) -> Sequence[Field]:
        """Codes, the whole numbers of sub-blocks, and the float16 numbers of blocks."""
        kind, one, subs = self.kind, (rows, blocks), (rows, columns // self.kind.sub)
        stored = [
            Field("codes", (rows, columns), self.levels), Field("sub_scale", subs, kind.high - kind.low + 1),
            Field("scale", one, dtype=torch.float16),
        ]  # fmt: skip
        if kind.minima:
            stored += [Field("sub_minimum", subs, kind.high + 1), Field("minimum_scale", one, dtype=torch.float16)]
        return stored

    def pieces(self) -> Sequence[Piece]:
        """In the order of llama.cpp's structures."""
        both, pairs = [half("scale"), half("minimum_scale")], Bits("codes", BLOCK, 0, 2, run=32)
        layouts: dict[str, list[Piece]] = {
            "q2_k": [NibblePairs(), pairs, *both],
            "q3_k": [
                Bits("codes", BLOCK, 2, 1, run=32), pairs,
                Bits("sub_scale", 16, 0, 4, run=8), Bits("sub_scale", 16, 4, 2, run=4), half("scale"),
            ],
            "iq4_xs": [
                half("scale"), Bits("sub_scale", 8, 4, 2, run=1), Bits("sub_scale", 8, 0, 4, run=1),
                Bits("codes", BLOCK, 0, 4, run=16),
            ],
            "q4_k": [*both, ScalesAndMinima(), Bits("codes", BLOCK, 0, 4, run=32)],
            "q5_k": [*both, ScalesAndMinima(), Bits("codes", BLOCK, 4, 1, run=32), Bits("codes", BLOCK, 0, 4, run=32)],
            "q6_k": [
                Bits("codes", BLOCK, 0, 4, run=64), Bits("codes", BLOCK, 4, 2, run=32),
                Whole("sub_scale", 16, torch.uint8, flip=0x80), half("scale"),
            ],
        }  # fmt: skip
        return layouts[self.type]

    def steps(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Products of the two levels, in float32."""
        step = _product(tensors["scale"], tensors["sub_scale"].float() + self.kind.low)
        if not self.kind.minima:
            return step, torch.zeros_like(step)
        return step, _product(tensors["minimum_scale"], tensors["sub_minimum"].float())

    def search_blocks(self, w: Tensor, importance: Tensor, search: bool) -> dict[str, Tensor]:
        """Sub-blocks by themselves, then both levels together."""
        kind, numbers = self.kind, self.numbers()
        w, importance = (x.reshape(*x.shape[:-1], -1, kind.sub) for x in (w, importance))
        joint = Joint(w, importance, numbers, kind.low, kind.high, kind.minima)
        if kind.minima:
            low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
            step, offset = (high - low) / float(numbers.values[-1]), -low
        else:
            step = extreme(w) / float(numbers.values[0])
            offset = torch.zeros_like(step)
        found = joint.plain(step, offset)
        if search and kind.minima:
            ranges = search_ranges(w, importance, numbers, (step, offset), kind.bits, unchanged, signed=False)
            found = joint.search(*ranges, found)
        elif search:
            steps = search_steps(w, importance, numbers, step, kind.bits, unchanged)
            found = joint.search(steps, offset, found)
        stored = {"scale": found.scale, "sub_scale": found.units - kind.low}
        if kind.minima:
            stored |= {"minimum_scale": found.minimum_scale, "sub_minimum": found.minimum_units}
        return stored


def _product(scale: Tensor, units: Tensor) -> Tensor:
    """Of each block's float16 number and the whole numbers of its sub-blocks."""
    return (scale.float()[..., None] * units.reshape(*scale.shape, -1)).reshape(units.shape)
