"""Plain floating-point storage: the tensor as it is, or rounded to a 16-bit type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.format import Field, Format, Part
from pennyweight.formats.whole import Whole

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Dense(Format):
    """Every element in `dtype`: float32, float16 or bfloat16.

    Raises:
        InvalidFormat: another type.
    """

    name: ClassVar[str] = "dense"
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidFormat(f"dense tensors in {self.dtype}", expected=", ".join(DTYPES), site="dense")

    def label(self) -> str:
        """The type's name; `formats.parse` reads it back."""
        return self.dtype

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        return cls(dtype=label.strip()) if label.strip() in DTYPES else None

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Every type."""
        return [cls(dtype=name) for name in DTYPES]

    def fields(self, shape: tuple[int, ...]) -> Sequence[Field]:
        """The elements."""
        return [Field("values", tuple(shape), dtype=DTYPES[self.dtype])]

    def store(
        self, weight: Float[Tensor, ...], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> Part:
        """Round a tensor to the type.

        Raises:
            InvalidFormat: a finite element overflows it.
        """
        values = weight.to(DTYPES[self.dtype])
        if bool(torch.isinf(values).any()) and not bool(torch.isinf(weight).any()):
            raise InvalidFormat(
                f"an element of {float(weight.abs().max()):.3g} overflows {self.dtype}",
                expected=f"elements up to {torch.finfo(DTYPES[self.dtype]).max:.3g}",
                mend="store dense tensors as bfloat16: --dtype bfloat16",
            )
        return Part(self, {"values": values})

    def hold(self, weight: Float[Tensor, "out in"], whole: Whole | None) -> Part | None:
        """Numbers that the type has; see `Format.hold`."""
        del whole
        values = weight.to(DTYPES[self.dtype])
        return Part(self, {"values": values}) if torch.equal(values.float(), weight.float()) else None

    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, ...]:
        """The elements in float32."""
        return tensors["values"].float().reshape(shape)
