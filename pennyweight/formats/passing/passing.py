"""How numbers are written while they pass from one layer to the next: the format of an activation.

A weight is stored once, to the bit, with parameters fitted to it. An activation is rounded again for every token, over
a range that is found as it passes (`token`, `g128`: dynamic) or was fixed beforehand (`tensor`, `channel`, `clusters`:
static). So a format here only says which numbers there are and which of them share a scale; what range a scale covers
is the business of `methods/activations/`. Codes are int8 or float8 tensors, which a product takes as they are.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.numerics.integer import Operand, in_runs

KINDS = ("token", "group", "tensor", "channel", "clusters")
Ends = tuple[Float[Tensor, "*tiles"], Int[Tensor, "*tiles"] | None]  # scale and zero point


@dataclass(frozen=True)
class Over:
    """Which numbers of an activation `[..., n]` share a scale.

    Args:
        kind: `token` (all channels of one), `group` (so many neighbouring channels of a token), `tensor` (everything),
            `channel` (one channel of all tokens) or `clusters` (some channels of all tokens).
        size: channels of a group.

    Raises:
        InvalidFormat: another kind, or a size where there is no group.
    """

    kind: str = "token"
    size: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS or (self.size is not None) != (self.kind == "group") or self.size == 0:
            raise InvalidFormat(
                f"scales over {self.kind} of {self.size}", expected="token, g128, tensor, channel or clusters",
                site="activation",
            )  # fmt: skip

    @property
    def dynamic(self) -> bool:
        """Whether every token has scales of its own, found as it passes."""
        return self.kind in ("token", "group")

    def label(self) -> str:
        """`token`, `g128`, `tensor`, `channel` or `clusters`."""
        return f"g{self.size}" if self.kind == "group" else self.kind

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """What a label names, or None."""
        if match := re.fullmatch(r"g([1-9]\d*)", label):
            return cls("group", int(match[1]))
        return cls(label) if label in KINDS and label != "group" else None

    def runs(self, channels: int) -> int:
        """Scales of one token.

        Raises:
            InvalidFormat: the group size does not divide the channels.
        """
        if self.kind in ("token", "tensor"):
            return 1
        if self.size is None:
            return channels
        if channels % self.size:
            raise InvalidFormat(
                f"{channels} channels do not split into groups of {self.size}",
                expected=f"a size that divides {channels}", mend="choose another size, or token", site="activation",
            )  # fmt: skip
        return channels // self.size


TOKEN = Over()


@dataclass(frozen=True, kw_only=True)
class Passing(ABC):
    """Which numbers an activation is rounded to, up to a scale.

    Args:
        over: which numbers share a scale.
    """

    name: ClassVar[str]
    linear: ClassVar[bool] = True  # numbers are codes minus a zero point, times a scale
    over: Over = TOKEN

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
        """A few of its kind, on which the contract tests run with 96 channels."""

    @abstractmethod
    def label(self) -> str:
        """A short name a person reads and `parse` reads back, such as `int8 token`."""

    def variants(self) -> Sequence[Self]:
        """What a method that searches may choose from, where a label leaves something free; otherwise only this."""
        return [self]

    @property
    @abstractmethod
    def limits(self) -> tuple[float, float]:
        """The codes of the ends of a range."""

    @property
    def least(self) -> float:
        """The smallest code there is: below a range may be one that no range reaches."""
        return self.limits[0]

    @abstractmethod
    def ends(self, low: Float[Tensor, "*tiles"], high: Float[Tensor, "*tiles"]) -> Ends:
        """Scale and zero point with which the codes cover ranges from `low` ≤ 0 to `high` ≥ 0, in float32."""

    @abstractmethod
    def encode(self, x: Float[Tensor, ...], scale: Tensor, zero_point: Tensor | None) -> Shaped[Tensor, ...]:
        """Codes of the nearest numbers; what lies outside of the range gets the code at its end."""

    @abstractmethod
    def decode(self, codes: Shaped[Tensor, ...], scale: Tensor, zero_point: Tensor | None) -> Float[Tensor, ...]:
        """The numbers that codes stand for, in the type of the scale."""

    def round(
        self, x: Float[Tensor, "*batch n"], scale: Float[Tensor, ...], zero_point: Int[Tensor, ...] | None
    ) -> Codes:
        """The codes of a whole activation, whose scales `[..., runs]` each serve a run of channels."""
        runs = scale.shape[-1]
        zero = None if zero_point is None else zero_point[..., None]
        codes = self.encode(in_runs(x, runs), scale[..., None], zero).flatten(-2)
        return Codes(self, codes, scale, zero_point)


@dataclass(frozen=True, eq=False)
class Codes:
    """An activation as it passes: codes, and what they mean.

    Args:
        format: of it.
        codes: int8, or a float8 type.
        scale: `[..., runs]`, float32.
        zero_point: of the same shape, whole numbers; None where the format has none.
    """

    format: Passing
    codes: Shaped[Tensor, "*batch n"]
    scale: Float[Tensor, "*shared runs"]
    zero_point: Int[Tensor, "*shared runs"] | None

    def values(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*batch n"]:
        """The numbers they stand for, computed in the given type or in float32 where that is narrower."""
        wide = torch.promote_types(dtype, torch.float32)
        zero = None if self.zero_point is None else self.zero_point[..., None]
        codes = in_runs(self.codes, self.scale.shape[-1])
        return self.format.decode(codes, self.scale.to(wide)[..., None], zero).flatten(-2).to(dtype)

    def operand(self) -> Operand:
        """The left side of a product, tokens one after the other.

        Raises:
            InvalidFormat: the format's codes are no numbers to multiply with, but exponents.
        """
        if not self.format.linear:
            raise InvalidFormat(
                f"a product of codes of {self.format.label()}", expected="whole numbers or small floats",
                mend="multiply values()", site="activation",
            )  # fmt: skip
        runs = self.scale.shape[-1]
        zero = None if self.zero_point is None else self.zero_point.reshape(-1, runs)
        return Operand(self.codes.flatten(0, -2), self.scale.reshape(-1, runs), zero)


def divisor(scale: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """One in place of zero: a range of no width holds zeros alone."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)
