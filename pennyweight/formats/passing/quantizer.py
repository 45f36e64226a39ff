"""A rounding of activations that is ready to be used: codes of whatever passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pennyweight.errors import InvalidFormat, InvalidMeasurement
from pennyweight.formats.passing.passing import Codes, Passing
from pennyweight.numerics.integer import in_runs


@runtime_checkable
class Quantizer(Protocol):
    """What fitting a method of `methods/activations/` gives.

    Attributes:
        format: what activations are written in.
    """

    @property
    def format(self) -> Passing:
        """What activations are written in."""
        ...

    def codes(self, x: Float[Tensor, "*batch n"]) -> Codes:
        """The codes of an activation, its last dimension the channels."""
        ...

    def rounded(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """The numbers that these codes stand for, in the type of x."""
        ...


@dataclass(frozen=True)
class Dynamic:
    """Every token, or group of its channels, is rounded over its own range.

    Args:
        format: with scales over `token` or groups.

    Raises:
        InvalidFormat: the format's scales are fixed beforehand.
    """

    format: Passing

    def __post_init__(self) -> None:
        if not self.format.over.dynamic:
            raise InvalidFormat(
                f"{self.format.label()} has scales that are fixed beforehand", expected="token or g128",
                mend="fit a static method", site="activation",
            )  # fmt: skip

    def codes(self, x: Float[Tensor, "*batch n"]) -> Codes:
        """Find the ranges, then round.

        Raises:
            InvalidFormat: groups do not divide the channels.
            InvalidMeasurement: NaN or infinite numbers.
        """
        _check(x)
        tiles = in_runs(x, self.format.over.runs(x.shape[-1]))
        low, high = tiles.amin(-1).clamp(max=0), tiles.amax(-1).clamp(min=0)
        return self.format.round(x, *self.format.ends(low, high))

    def rounded(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """The nearest numbers there are."""
        return self.codes(x).values(x.dtype)


@dataclass(frozen=True, eq=False)
class Static:
    """All tokens are rounded over ranges that were fixed beforehand; what lies outside saturates.

    Args:
        format: with scales over `tensor`, `channel` or `clusters`.
        scale: one, or one for every channel.
        zero_point: of the same shape, or None.
    """

    format: Passing
    scale: Float[Tensor, " runs"]
    zero_point: Int[Tensor, " runs"] | None

    def codes(self, x: Float[Tensor, "*batch n"]) -> Codes:
        """Round.

        Raises:
            InvalidFormat: another number of channels.
            InvalidMeasurement: NaN or infinite numbers.
        """
        if len(self.scale) not in (1, x.shape[-1]):
            raise InvalidFormat(f"{x.shape[-1]} channels, scales for {len(self.scale)}", site="activation")
        _check(x)
        return self.format.round(x, self.scale, self.zero_point)

    def rounded(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """The nearest numbers there are."""
        return self.codes(x).values(x.dtype)


def _check(x: Tensor) -> None:
    """Codes have no NaN: rounding would hide it."""
    if not bool(torch.isfinite(x).all()):
        raise InvalidMeasurement(
            "NaN or infinite numbers pass through here", expected="finite activations", site="activation"
        )
