"""GGUF types with blocks of 32 and one float16 scale: Q4_0, Q5_0, Q8_0, IQ4_NL; with a minimum besides Q4_1, Q5_1.

Source: llama.cpp, ggml/src/ggml-quants.c (IQ4_NL: pull request 5590 by I. Kawrakow), and the reference reader in its
Python package `gguf`. Q4_0, Q5_0 and Q8_0 are scale · (code − 2^(b−1)), Q4_1 and Q5_1 scale · code + minimum, and
IQ4_NL is scale · one of sixteen uneven numbers. `search=False` gives the rules of that file: the weight of the largest
size gets the lowest code (its scale may be negative), Q8_0 keeps ±127, Q4_1 and Q5_1 the whole range.

Departs from it: the search tries shares of the range with a least-squares refit, weights count as `importance` says,
never by their size, codes are chosen with the scale as float16 reads it back, and Q8_0 may hold −128 after a search.

When to use it: for llama.cpp, where the number of inputs is a multiple of 32 and not of 256, for which Q4_K loses less
at the same size. On normal weights the relative squared error is .0065 in Q4_0 and .0054 in IQ4_NL. Cost: the search
rounds every weight some 60 times, some 80 with a minimum; an engine looks every code of IQ4_NL up. Known failures:
IQ4_NL has no zero, so weights that were pruned come back as a small number, unless all of a block are zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from pennyweight.formats.format import Field
from pennyweight.formats.gguf.blocks import Blocks
from pennyweight.formats.gguf.layout import Bits, Piece, Whole, half
from pennyweight.formats.gguf.numbers import Numbers, uneven_numbers, whole_numbers
from pennyweight.formats.gguf.search import as_half, extreme, search_ranges, search_steps

BLOCK = 32
BITS = {"q4_0": 4, "q4_1": 4, "q5_0": 5, "q5_1": 5, "q8_0": 8, "iq4_nl": 4}


@dataclass(frozen=True, kw_only=True)
class Legacy(Blocks):
    """Blocks of 32 weights with one scale, and some with a minimum (GGUF).

    Args:
        type: q4_0, q4_1, q5_0, q5_1, q8_0 or iq4_nl.

    Raises:
        InvalidFormat: a type that is none of these.
    """

    name: ClassVar[str] = "gguf_legacy"
    inputs_multiple: ClassVar[int] = BLOCK
    type: str = "q4_0"

    @classmethod
    def types(cls) -> Sequence[str]:
        """Q4_0 to Q8_0, and IQ4_NL."""
        return tuple(BITS)

    @classmethod
    def of(cls, type: str) -> Self:
        """The format of this type."""
        return cls(type=type)

    @property
    def has_minimum(self) -> bool:
        """Whether blocks store a minimum."""
        return self.type in ("q4_1", "q5_1")

    def numbers(self) -> Numbers:
        """Whole numbers, from zero with a minimum, around zero without; those of IQ4_NL are uneven."""
        levels = 1 << BITS[self.type]
        if self.type == "iq4_nl":
            return uneven_numbers()
        return whole_numbers(0, levels - 1) if self.has_minimum else whole_numbers(-levels // 2, levels // 2 - 1)

    def fields_of(self, rows: int, blocks: int, columns: int) -> Sequence[Field]:
        """Codes, scales and minima."""
        stored = [Field("codes", (rows, columns), self.levels), Field("scale", (rows, blocks), dtype=torch.float16)]
        return [*stored, Field("minimum", (rows, blocks), dtype=torch.float16)] if self.has_minimum else stored

    def pieces(self) -> Sequence[Piece]:
        """Scale, minimum, fifth bits, nibbles."""
        head = [half("scale"), half("minimum")] if self.has_minimum else [half("scale")]
        if self.type == "q8_0":
            return [*head, Whole("codes", BLOCK, torch.uint8, flip=0x80)]
        fifth = [Bits("codes", BLOCK, shift=4, bits=1, run=1)] if BITS[self.type] == 5 else []
        return [*head, *fifth, Bits("codes", BLOCK, shift=0, bits=4, run=16)]

    def steps(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scales, and minima with the other sign."""
        step = tensors["scale"].float()
        return step, -tensors["minimum"].float() if self.has_minimum else torch.zeros_like(step)

    def search_blocks(self, w: Tensor, importance: Tensor, search: bool) -> dict[str, Tensor]:
        """Scales, and minima, of every block."""
        numbers, bits = self.numbers(), BITS[self.type]
        if self.has_minimum:
            low, high = w.amin(-1), w.amax(-1)
            whole = as_half((high - low) / float(numbers.values[-1])), as_half(-low)
            if search:
                whole = search_ranges(w, importance, numbers, whole, bits, as_half)
            return {"scale": whole[0], "minimum": -whole[1]}
        reach = extreme(w)
        step = as_half(reach.abs() / 127 if self.type == "q8_0" else reach / float(numbers.values[0]))
        return {"scale": search_steps(w, importance, numbers, step, bits, as_half) if search else step}
