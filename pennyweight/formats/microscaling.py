"""Microscaling (MX): blocks of 32 inputs, small floats or integers, and one shared power of two.

Source: OCP Microscaling Formats (MX) Specification v1.0; Rouhani et al. Microscaling Data Formats for Deep
Learning. arXiv:2310.10537. MXFP4, MXFP6 and MXFP8 have the elements of `minifloat`. MXINT8 has integers in
sixty-fourths; the specification lets one leave the code −128 unused, and so both signs are alike here.

The specification's rule for the scale is 2^(floor(log2 amax) − emax), with emax the exponent of the largest element:
`search=False`. It clips what exceeds the largest element, E2M1's largest weight by up to a quarter. The search tries
the powers of two above and below as well and keeps the least error; the same engines read what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.levels import Levels
from pennyweight.formats.minifloat import finite, ties_to_even
from pennyweight.formats.scale_types import power_of_two
from pennyweight.formats.sharing import Sharing

LABELS = {
    "e2m1": "mxfp4", "e3m2": "mxfp6 e3m2", "e2m3": "mxfp6 e2m3", "e4m3": "mxfp8 e4m3", "e5m2": "mxfp8 e5m2",
    "int8": "mxint8",
}  # fmt: skip
BLOCK = Sharing(1, 32)


@dataclass(frozen=True, kw_only=True)
class Microscaling(Levels):
    """MXFP4, MXFP6, MXFP8 or MXINT8: small numbers in blocks of 32, times a power of two.

    Args:
        element: e2m1, e3m2, e2m3, e4m3, e5m2 or int8.

    Raises:
        InvalidFormat: an element the specification does not have.
    """

    name: ClassVar[str] = "microscaling"
    element: str
    sharing: Sharing = field(default=BLOCK, init=False)
    scale_dtype: str = field(default="e8m0", init=False)

    def __post_init__(self) -> None:
        if self.element not in LABELS:
            raise InvalidFormat(f"blocks of {self.element}", expected=", ".join(LABELS), site="microscaling")

    def label(self) -> str:
        """Such as `mxfp4`, `mxfp6 e3m2`, `mxfp8 e4m3`, `mxint8`."""
        return LABELS[self.element]

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        return next((cls(element=element) for element, name in LABELS.items() if name == label.strip()), None)

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """All six of the specification."""
        return [cls(element=element) for element in LABELS]

    def values(self) -> Float[Tensor, " levels"]:
        """Every finite number of the element type; of integers, −127/64 to 127/64."""
        return elements(self.element)[0]

    def borders(self) -> Float[Tensor, " borders"]:
        """Between the numbers; ties go to the even bit pattern."""
        return ties_to_even(*elements(self.element))

    def bits_of(self, codes: UInt8[Tensor, ...]) -> UInt8[Tensor, ...]:
        """Bit patterns as engines store them: sign first, integers in two's complement."""
        return elements(self.element)[1][codes.long()]

    def largest(self) -> float:
        """2^emax, the power of two below the largest number: the specification divides by it."""
        return 2.0 ** (math.frexp(super().largest())[1] - 1)

    def candidates(self) -> Sequence[float]:
        """The specification's scale first, then its neighbours."""
        return 1.0, 2.0, 0.5

    def round_scale(self, scale: Float[Tensor, "down across"]) -> Float[Tensor, "down across"]:
        """The power of two not above it."""
        return power_of_two(scale)


@cache
def elements(element: str) -> tuple[Float[Tensor, " levels"], UInt8[Tensor, " levels"]]:
    """Every finite number of an element type, ascending and once, with its bit pattern."""
    if element != "int8":
        return finite(element)
    integers = torch.arange(-127, 128)
    return integers / 64, integers.to(torch.int8).view(torch.uint8)
