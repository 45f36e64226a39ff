"""Affine codes: integers with a real scale and a real offset for each group, weight ≈ scale · code + offset.

Source: Guo et al. decoupleQ: Towards 2-bit Post-Training Uniform Quantization via Decoupling Parameters into Integer
and Floating Points. arXiv:2404.12759, whose s and z these are (codes here start at 0); Badri, Shaji. Half-Quadratic
Quantization of Large Machine Learning Models (HQQ), 2023, whose real zero point is −offset / scale.

The offset need not be a multiple of the scale, so the levels may sit where the weights are. That pays at one to three
bits; it costs 16 bits a group, and zero is a level only by chance or where a group is all zeros.

The fit starts from several shares of each group's range and alternates: codes of the nearest levels, then the scale and
offset of least squares for these codes, rounded to the type they are stored in. The best of all that was seen is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.dense import DTYPES
from pennyweight.formats.format import Field, Lattice, Part, Scalar
from pennyweight.formats.sharing import Sharing

STARTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # shares of the range
REFITS = 8  # twice as many gain under 1 % in groups of 64, up to 3 % in long rows
CHUNK = 1 << 18  # weights searched at once: small enough to stay in the cache


@dataclass(frozen=True, kw_only=True)
class Affine(Scalar):
    """Integers of `bits` bits, with a real scale and a real offset for every `group_size` inputs of a row.

    Args:
        bits: code width, 1 to 8.
        group_size: inputs that share a scale and an offset; None for a whole row.
        scale_dtype: what both are stored in: float16, bfloat16 or float32.

    Raises:
        InvalidFormat: a parameter outside its range.
    """

    name: ClassVar[str] = "affine"
    bits: int
    group_size: int | None = 64
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise InvalidFormat(f"{self.bits} bits", expected="1 to 8 bits", mend="choose bits=2", site="affine")
        if self.scale_dtype not in DTYPES:
            raise InvalidFormat(f"offsets in {self.scale_dtype}", expected=", ".join(DTYPES), site="affine")
        _ = self.sharing

    @property
    def levels(self) -> int:
        """Number of codes."""
        return 1 << self.bits

    @property
    def sharing(self) -> Sharing:
        """Which weights share a scale and an offset."""
        return Sharing(1, self.group_size)

    def label(self) -> str:
        """Such as `int2 g64 affine`; `formats.parse` reads it back."""
        dtype = "" if self.scale_dtype == "float16" else f" {self.scale_dtype}"
        return f"int{self.bits} {self.sharing.label()} affine{dtype}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"int(\d) (row|g\d+) affine(?: (\w+))?", label.strip())
        sharing = None if match is None else Sharing.parse(match[2])
        if match is None or sharing is None:
            return None
        return cls(bits=int(match[1]), group_size=sharing.columns, scale_dtype=match[3] or "float16")

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Several widths, groups, rows and types."""
        labels = ("int1 g32 affine", "int2 g32 affine", "int3 g48 affine bfloat16", "int4 row affine float32",
                  "int8 g96 affine")  # fmt: skip
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def fields(self, shape: tuple[int, ...]) -> Sequence[Field]:
        """Codes, scales and offsets."""
        tiles, dtype = self.sharing.tiles(shape), DTYPES[self.scale_dtype]
        return [
            Field("codes", tuple(shape), self.levels),
            Field("scale", tiles, dtype=dtype),
            Field("offset", tiles, dtype=dtype),
        ]

    def fit(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> AffineScales:
        """Choose scales and offsets: see `Scalar.fit`; without search, from minimum to maximum."""
        tiles = self.sharing.split(weight.float())
        shared = torch.ones_like(tiles[:1]) if importance is None else self.sharing.split(importance.float()[None])
        shared = torch.where(shared.sum(-1, keepdim=True) > 0, shared, 1)  # groups that no input reaches
        scale, offset = torch.empty(tiles.shape[:2]), torch.empty(tiles.shape[:2])
        step = max(1, CHUNK // tiles[0].numel())
        for start in range(0, len(tiles), step):
            stop = start + step
            scale[start:stop], offset[start:stop] = self._fit_groups(tiles[start:stop], search, shared)
        return AffineScales(self, scale.to(DTYPES[self.scale_dtype]), offset.to(DTYPES[self.scale_dtype]))

    @property
    def reach(self) -> float:
        """See `Refittable`."""
        return self.levels / 2

    def fitted(self, tensors: Mapping[str, Tensor]) -> AffineScales:
        """The scales and offsets among what is stored: see `Refittable`."""
        return AffineScales(self, tensors["scale"], tensors["offset"])

    def _fit_groups(self, w: Tensor, search: bool, importance: Tensor) -> tuple[Tensor, Tensor]:
        top = self.levels - 1
        low, high = w.amin(-1), w.amax(-1)
        scale, offset = self.stored((high - low) / top), self.stored(low)
        if not search:
            return scale, offset
        best = torch.full_like(low, torch.inf)
        share_of = importance / importance.sum(-1, keepdim=True)
        mean = (w * share_of).sum(-1)
        for share in STARTS:
            s = self.stored((high - low) * (share / top))
            o = self.stored((high + low - (high - low) * share) / 2)
            for _ in range(REFITS + 1):
                codes = nearest(w, s, o, top)
                error = (codes * s[..., None]).add_(o[..., None]).sub_(w).square_().mul_(share_of).sum(-1)
                better = error < best
                best = torch.where(better, error, best)
                scale, offset = torch.where(better, s, scale), torch.where(better, o, offset)
                s, o = self._least_squares(w, codes, share_of, mean, s)
        return scale, offset

    def _least_squares(
        self, w: Tensor, codes: Tensor, share: Tensor, mean: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scale and offset of least squared error for these codes; the scale stays where all codes are alike."""
        centre = (codes * share).sum(-1)
        apart = (codes - centre[..., None]).mul_(share)
        spread = (apart * codes).sum(-1)
        slope = (apart * w).sum(-1) / spread
        s = self.stored(torch.where(spread > 1e-6, slope, scale))
        return s, self.stored(mean - s * centre)

    def stored(self, values: Float[Tensor, "out groups"]) -> Float[Tensor, "out groups"]:
        """Scales or offsets as they will be read back.

        Raises:
            InvalidFormat: one overflows the type.
        """
        rounded = values.to(DTYPES[self.scale_dtype]).float()
        if bool(torch.isinf(rounded).any()):
            raise InvalidFormat(
                f"a scale or an offset overflows {self.scale_dtype}",
                expected="weights whose range fits the type",
                mend="store them as bfloat16: scale_dtype='bfloat16'",
            )
        return rounded

    def lattice(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Lattice | None:
        """As it is stored; see `Format.lattice`."""
        codes = tensors["codes"].reshape(shape)
        return Lattice(codes, self.levels, tensors["scale"].float(), tensors["offset"].float())

    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, "out in"]:
        """Code · scale + offset in float32."""
        scale, offset = tensors["scale"].float(), tensors["offset"].float()
        codes = tensors["codes"].float().reshape(*scale.shape, -1)
        return codes.mul_(scale[..., None]).add_(offset[..., None]).reshape(shape)


def nearest(w: Tensor, scale: Tensor, offset: Tensor, top: int) -> Tensor:
    """Codes of the nearest levels as float32; a scale of zero has one level, code 0."""
    step = torch.where(scale == 0, torch.inf, scale)
    return (w - offset[..., None]).div_(step[..., None]).round_().clamp_(0, top)


@dataclass(frozen=True, eq=False)
class AffineScales:
    """Such a format fitted to one weight.

    Args:
        format: the format.
        scale: `[out, groups]`, in the type it is stored in; it may be negative, or zero where a group is constant.
        offset: of the same shape and type: the value of code 0.
    """

    format: Affine
    scale: Float[Tensor, "out groups"]
    offset: Float[Tensor, "out groups"]

    def with_parameters(self, scale: Float[Tensor, "out groups"], offset: Float[Tensor, "out groups"]) -> AffineScales:
        """The same format with other scales and offsets, rounded to the type they are stored in.

        Raises:
            InvalidFormat: one overflows the type.
        """
        dtype = DTYPES[self.format.scale_dtype]
        return replace(
            self, scale=self.format.stored(scale.float()).to(dtype), offset=self.format.stored(offset.float()).to(dtype)
        )

    def parameters(self) -> Float[Tensor, "2 out groups"]:
        """Scales and offsets, in float32: see `Linear`."""
        return torch.stack([self.scale.float(), self.offset.float()])

    def factors(self, codes: Float[Tensor, "out in"]) -> Float[Tensor, "2 out in"]:
        """Codes, and ones."""
        return torch.stack([codes.float(), torch.ones(codes.shape)])

    def refitted(self, parameters: Float[Tensor, "2 out groups"]) -> AffineScales:
        """Other scales and offsets: see `with_parameters`."""
        return self.with_parameters(parameters[0], parameters[1])

    def columns(self, shape: tuple[int, ...]) -> AffineColumns:
        """Scales and offsets laid out for a sweep over input columns."""
        sharing = self.format.sharing
        return AffineColumns(
            sharing.by_column(self.scale, shape), sharing.by_column(self.offset, shape), sharing.width(shape[1]),
            self.format.levels - 1,
        )  # fmt: skip

    def round(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        """Codes of the nearest levels."""
        tiles = self.format.sharing.split(weight.float())
        codes = nearest(tiles, self.scale.float(), self.offset.float(), self.format.levels - 1)
        return codes.to(torch.uint8).reshape(weight.shape)

    def part(self, codes: UInt8[Tensor, "out in"]) -> Part:
        """Codes and parameters as one part of a compressed tensor."""
        return Part(self.format, {"codes": codes, "scale": self.scale, "offset": self.offset})


@dataclass(frozen=True, eq=False)
class AffineColumns:
    """Scales and offsets for one input column of all rows at a time."""

    scale: Float[Tensor, "groups out"]
    offset: Float[Tensor, "groups out"]
    size: int
    top: int

    def encode(self, values: Float[Tensor, " out"], column: int) -> Float[Tensor, " out"]:
        """Codes, as float32 whole numbers, of one column of weights."""
        group = column // self.size
        return nearest(values[:, None], self.scale[group], self.offset[group], self.top)[:, 0]

    def decode(self, codes: Float[Tensor, " out"], column: int) -> Float[Tensor, " out"]:
        """Values of one column of codes."""
        group = column // self.size
        return codes * self.scale[group] + self.offset[group]
