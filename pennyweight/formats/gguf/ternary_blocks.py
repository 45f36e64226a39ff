"""GGUF's TQ1_0 and TQ2_0: −1, 0 or 1 times a float16 scale for 256 weights, five weights a byte or two bits each.

Source: llama.cpp, ggml/src/ggml-quants.c (pull request 8151 by compilade), and the reference reader in its Python
package `gguf`. Both hold the same numbers, in 1.6875 and 2.0625 bits a weight. A byte of TQ1_0 is a fraction: its
digits in base three, the first the highest, times 256 / 243 and rounded up, so that a multiplication by three pushes
the next digit out above the eighth bit. Bytes 0 to 31 hold weights 0 to 159, bytes 32 to 47 the next 80, five each,
and bytes 48 to 51 the last 16, four each. `search=False` gives the rule of that file: the scale is the largest size of
a weight, which is right for models that are ternary already.

Departs from it: the search finds the least weighted squared error, exactly but for the scale's rounding to float16.
With the weights that are not zero given, the best scale is their mean size, and the best such set of every size is
that of the largest; so sorting finds it.

When to use it: for llama.cpp and models trained to be ternary. Known failures: after plain rounding no other language
model is whole. A file may hold a fourth code in TQ2_0, which some engines read as 2; it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import UInt8
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.format import Field
from pennyweight.formats.gguf.blocks import Blocks
from pennyweight.formats.gguf.layout import Bits, Piece, half
from pennyweight.formats.gguf.numbers import Numbers, whole_numbers
from pennyweight.formats.gguf.pieces import Trits
from pennyweight.formats.gguf.search import as_half

BLOCK = 256
CODES: dict[str, Piece] = {
    "tq1_0": Trits("codes", ((160, 32), (80, 16), (16, 4))),
    "tq2_0": Bits("codes", BLOCK, 0, 2, 32),
}


@dataclass(frozen=True, kw_only=True)
class TernaryBlocks(Blocks):
    """−1, 0 and 1, times a scale for 256 weights (GGUF).

    Args:
        type: tq1_0 or tq2_0.

    Raises:
        InvalidFormat: a type that is neither.
    """

    name: ClassVar[str] = "gguf_ternary"
    inputs_multiple: ClassVar[int] = BLOCK
    type: str = "tq2_0"

    @classmethod
    def types(cls) -> Sequence[str]:
        """TQ1_0 and TQ2_0."""
        return tuple(CODES)

    @classmethod
    def of(cls, type: str) -> Self:
        """The format of this type."""
        return cls(type=type)

    def numbers(self) -> Numbers:
        """−1, 0 and 1."""
        return whole_numbers(-1, 1)

    def fields_of(self, rows: int, blocks: int, columns: int) -> Sequence[Field]:
        """Codes and scales."""
        packed = 8 * rows * blocks * CODES[self.type].bytes
        return [
            Field("codes", (rows, columns), 3, packed=packed), Field("scale", (rows, blocks), dtype=torch.float16)
        ]  # fmt: skip

    def pieces(self) -> Sequence[Piece]:
        """Codes, scale."""
        return [CODES[self.type], half("scale")]

    def unpack(self, data: UInt8[Tensor, " bytes"], shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The fields, from the bytes of a GGUF file.

        Raises:
            InvalidFormat: a code is none of the three.
        """
        found = super().unpack(data, shape)
        if bool((found["codes"] > 2).any()):
            raise InvalidFormat(
                f"a code of {self.type} is 3", expected="0, 1 or 2", mend="get the file again", site=self.type
            )
        return found

    def steps(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scales; no offsets."""
        step = tensors["scale"].float()
        return step, torch.zeros_like(step)

    def search_blocks(self, w: Tensor, importance: Tensor, search: bool) -> dict[str, Tensor]:
        """A scale for every block."""
        size, order = w.abs().sort(dim=-1, descending=True, stable=True)
        whole = as_half(size[..., 0])
        if not search:
            return {"scale": whole}
        weighed = importance.expand_as(size).gather(-1, order)
        total, mass = (weighed * size).cumsum(-1), weighed.cumsum(-1)
        mean = total / torch.where(mass > 0, mass, 1)
        gained = total * mean  # what weights not at zero take from the error
        best = as_half(mean.gather(-1, gained.argmax(-1, keepdim=True))[..., 0])
        error, found = (self.numbers().error(w, importance, step, torch.zeros_like(step)) for step in (whole, best))
        return {"scale": torch.where(found < error, best, whole)}
