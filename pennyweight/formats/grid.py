"""Uniform integer grids: x ≈ scale · (codes − zero_point), one scale a row and group of inputs.

Conventions and their relative errors on normal data: the two that matter here are the symmetric full range (codes
−2^(b−1) … 2^(b−1)−1, zero point fixed) and asymmetric min-max with an integer zero point, so that zero is always
representable. Scales are rounded to the type they are stored in *before* any weight is rounded with them.
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
from pennyweight.formats.format import Field, Lattice, Part, Scalar
from pennyweight.formats.scale_types import (
    SCALE_TYPES,
    check_scale_type,
    exact_scale,
    read_scale,
    round_scale,
    write_scale,
)
from pennyweight.formats.sharing import Sharing
from pennyweight.formats.whole import Whole
from pennyweight.numerics.integer import Operand

NARROWEST = {2: 0.40, 3: 0.52, 4: 0.64, 5: 0.74, 6: 0.82, 7: 0.88, 8: 0.92}  # narrower clips never won
CANDIDATES = 14
CHUNK = 1 << 18  # weights searched at once: small enough to stay in the cache


@dataclass(frozen=True, kw_only=True)
class Grid(Scalar):
    """Integers of `bits` bits, with one scale for every `group_size` inputs of a row.

    Args:
        bits: code width, 2 to 8.
        group_size: inputs that share a scale; None for one scale a row.
        symmetric: zero point fixed in the middle and not stored.
        scale_dtype: what scales are stored in: float16, bfloat16, float32, e8m0 (powers of two) or e4m3.
        rows_shared: outputs that share a scale: 1, or `group_size` for square blocks, or None for one scale in all.

    Raises:
        InvalidFormat: a parameter outside its range.
    """

    name: ClassVar[str] = "grid"
    bits: int
    group_size: int | None = None
    symmetric: bool = True
    scale_dtype: str = "float16"
    rows_shared: int | None = 1

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InvalidFormat(f"{self.bits} bits", expected="2 to 8 bits", mend="choose bits=4", site="grid")
        if self.group_size is not None and self.group_size < 1:
            raise InvalidFormat(f"a group of {self.group_size}", expected="at least one input a group", site="grid")
        check_scale_type(self.scale_dtype, "grid")
        _ = self.sharing

    @property
    def levels(self) -> int:
        """Number of codes."""
        return 1 << self.bits

    @property
    def sharing(self) -> Sharing:
        """Which weights share a scale."""
        return Sharing(self.rows_shared, self.group_size)

    def label(self) -> str:
        """Such as `int4 g64 asym`; `formats.parse` reads it back."""
        kind = "sym" if self.symmetric else "asym"
        dtype = "" if self.scale_dtype == "float16" else f" {self.scale_dtype}"
        return f"int{self.bits} {self.sharing.label()} {kind}{dtype}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The grid a label names, or None when it names something else."""
        match = re.fullmatch(r"int(\d) (\w+) (sym|asym)(?: (\w+))?", label.strip())
        sharing = None if match is None else Sharing.parse(match[2])
        if match is None or sharing is None:
            return None
        return cls(
            bits=int(match[1]), group_size=sharing.columns, symmetric=match[3] == "sym",
            scale_dtype=match[4] or "float16", rows_shared=sharing.rows,
        )  # fmt: skip

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Every width, both kinds, every way of sharing and every type of scales."""
        labels = (
            "int2 g32 asym", "int3 g24 sym", "int4 g96 asym bfloat16", "int4 row sym", "int5 g32 sym float32",
            "int6 g48 asym", "int7 g16 sym", "int8 row asym", "int4 g32 asym e8m0", "int6 g32 sym e4m3",
            "int8 tensor sym float32", "int8 b16 sym", "int4 b40 asym",
        )  # fmt: skip
        return [grid for label in labels if (grid := cls.parse(label)) is not None]

    def groups(self, columns: int) -> int:
        """Scales that a row of `columns` inputs reads.

        Raises:
            InvalidFormat: the group size does not divide the inputs.
        """
        return self.sharing.tiles((1, columns))[1]

    def fields(self, shape: tuple[int, ...]) -> Sequence[Field]:
        """Codes, scales and, unless symmetric, zero points."""
        tiles, by_row = self.sharing.tiles(shape), self.rows_stand_alone
        stored = [
            Field("codes", tuple(shape), self.levels),
            Field("scale", tiles, dtype=SCALE_TYPES[self.scale_dtype], by_row=by_row),
        ]
        return stored if self.symmetric else [*stored, Field("zero_point", tiles, self.levels, by_row=by_row)]

    def fit(
        self,
        weight: Float[Tensor, "out in"],
        *,
        search: bool = True,
        importance: Float[Tensor, " in"] | None = None,
    ) -> Scales:
        """Choose scales and zero points for a weight.

        Args:
            weight: float32.
            search: shrink each group's range to the least squared error; otherwise keep its minimum and maximum.
            importance: weight of each input in the squared error, such as E[x²].

        Raises:
            InvalidFormat: the group size does not divide the inputs, or a scale overflows the type it is stored in.
        """
        scale = torch.empty(self.sharing.tiles(weight.shape))
        zero = torch.empty_like(scale)
        for part, tiles, shared in self.sharing.chunks(weight, importance, CHUNK):
            scale[part], zero[part] = self._fit_tiles(tiles, search, shared)
        return Scales(self, write_scale(scale, self.scale_dtype), zero.to(torch.uint8))

    def _fit_tiles(self, w: Tensor, search: bool, importance: Tensor | None) -> tuple[Tensor, Tensor]:
        low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
        if not search:
            return self._parameters(low, high)
        # Long groups hold larger outliers, and are clipped further in.
        narrow = NARROWEST[self.bits] ** (1.6 if w.shape[-1] > 256 else 1)
        best = torch.full_like(low, torch.inf)
        scale, zero = self._parameters(low, high)
        buffer = torch.empty_like(w)
        for i in range(CANDIDATES):
            share = 1 - (1 - narrow) * i / (CANDIDATES - 1)
            s, z = self._signed(low, high, share) if self.symmetric else self._parameters(low * share, high * share)
            torch.div(w, s[..., None], out=buffer)
            buffer.round_().add_(z[..., None]).clamp_(0, self.levels - 1).sub_(z[..., None]).mul_(s[..., None])
            buffer.sub_(w).square_()
            if importance is not None:
                buffer.mul_(importance)
            error = buffer.sum(-1)
            better = error < best
            best = torch.where(better, error, best)
            scale, zero = torch.where(better, s, scale), torch.where(better, z, zero)
        return scale, zero

    def _parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale, rounded to the type it is stored in, and zero point, both as float32."""
        top = self.levels - 1
        scale = self._stored((2 * torch.maximum(-low, high) if self.symmetric else high - low) / top)
        if self.symmetric:
            return scale, torch.full_like(scale, self.levels // 2)
        return scale, torch.round(-low / scale).clamp_(0, top)

    def _signed(self, low: Tensor, high: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Scale of either sign, so that the largest weight lands on the one code more that the negative side has.

        On normal data at 4 bits this has an eighth less squared error than a positive scale; engines multiply by the
        scale and do not mind its sign.
        """
        extreme = torch.where(-low > high, low, high)
        scale = self._stored(-extreme * (share / (self.levels // 2)))
        return scale, torch.full_like(scale, self.levels // 2)

    def _stored(self, scale: Tensor) -> Tensor:
        return round_scale(scale, self.scale_dtype)

    @property
    def reach(self) -> float:
        """See `Refittable`."""
        return self.levels / 2

    def fitted(self, tensors: Mapping[str, Tensor]) -> Scales:
        """The scales and zero points among what is stored: see `Refittable`."""
        scale = tensors["scale"]
        zero = torch.full(scale.shape, self.levels // 2, dtype=torch.uint8)
        return Scales(self, scale, zero if self.symmetric else tensors["zero_point"])

    def lattice(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Lattice | None:
        """Scales are the steps; see `Format.lattice`."""
        if not self.rows_stand_alone:
            return None
        step = read_scale(tensors["scale"], self.scale_dtype)
        zero = self.levels // 2 if self.symmetric else tensors["zero_point"].float()
        return Lattice(tensors["codes"].reshape(shape), self.levels, step, -step * zero)

    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, "out in"]:
        """(codes − zero_point) · scale in float32."""
        scale = read_scale(tensors["scale"], self.scale_dtype)
        zero = self.levels // 2 if self.symmetric else tensors["zero_point"].float()
        codes = tensors["codes"].reshape(shape).float()
        if self.rows_stand_alone:  # no copy of the scales for every weight
            codes = codes.reshape(*scale.shape, -1)
            zero = zero if isinstance(zero, int) else zero[..., None]
            return ((codes - zero) * scale[..., None]).reshape(shape)
        zero = zero if isinstance(zero, int) else self.sharing.spread(zero, shape)
        return (codes - zero) * self.sharing.spread(scale, shape)

    def whole(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Whole | None:
        """Codes, zero points and scales, unless blocks stand over the edge."""
        if shape[1] % self.sharing.width(shape[1]):
            return None
        step = self.sharing.by_column(read_scale(tensors["scale"], self.scale_dtype), shape).T.contiguous()
        zero = torch.full(step.shape, self.levels // 2, dtype=torch.int16)
        if not self.symmetric:
            zero = self.sharing.by_column(tensors["zero_point"].float(), shape).T.to(torch.int16)
        return Whole(tensors["codes"].reshape(shape).to(torch.int16), zero, step)

    def hold(self, weight: Float[Tensor, "out in"], whole: Whole | None) -> Part | None:
        """Whole numbers without an offset, as wide as the codes; see `Format.hold`."""
        self.sharing.tiles(weight.shape)
        tiled = None if whole is None else whole.tiled(self.sharing)
        around = None if tiled is None else tiled.around_zero()
        scale = None if around is None else exact_scale(around.step, self.scale_dtype)
        if around is None or scale is None:
            return None
        if self.symmetric:
            codes = around.centred(self.levels // 2, self.levels - 1)
            return None if codes is None else Part(self, {"codes": codes, "scale": scale})
        for way in around.zeros(self.levels - 1):
            if int(way.zero.min()) >= 0 and int(way.zero.max()) < self.levels:
                codes, zero = way.codes.to(torch.uint8), way.zero.to(torch.uint8)
                return Part(self, {"codes": codes, "scale": scale, "zero_point": zero})
        return None

    def operand(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Operand:
        """The stored weight as the right side of a product of whole numbers, codes moved to int8.

        Raises:
            InvalidFormat: blocks that stand over the edge: their inputs are no runs of equal length.
        """
        half = self.levels // 2
        scale = self.sharing.by_column(read_scale(tensors["scale"], self.scale_dtype), shape).T
        codes = (tensors["codes"].reshape(shape).to(torch.int16) - half).to(torch.int8)
        if self.symmetric:
            return Operand(codes, scale)
        zero = self.sharing.by_column(tensors["zero_point"].float(), shape).T
        return Operand(codes, scale, (zero - half).to(torch.int8))


@dataclass(frozen=True, eq=False)
class Scales:
    """A grid fitted to one weight: what `encode` and `decode` need, column by column.

    Args:
        grid: the format.
        scale: `[out, groups]` (tiles down and across), in the type it is stored in, never zero.
        zero_point: of the same shape, codes of the value zero.
    """

    grid: Grid
    scale: Tensor
    zero_point: UInt8[Tensor, "out groups"]

    def columns(self, shape: tuple[int, ...]) -> GridColumns:
        """The same parameters laid out for a sweep over the input columns of a weight of this shape."""
        sharing = self.grid.sharing
        scale, zero = read_scale(self.scale, self.grid.scale_dtype), self.zero_point.float()
        return GridColumns(
            sharing.by_column(scale, shape), sharing.by_column(zero, shape), sharing.width(shape[1]),
            self.grid.levels - 1,
        )  # fmt: skip

    def round(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        """Codes of the nearest grid points."""
        scale, zero = read_scale(self.scale, self.grid.scale_dtype), self.zero_point.float()
        if self.grid.rows_stand_alone:
            grouped = weight.float().reshape(*scale.shape, -1)
            codes = torch.div(grouped, scale[..., None]).round_().add_(zero[..., None])
        else:
            spread = self.grid.sharing.spread
            codes = torch.div(weight.float(), spread(scale, weight.shape)).round_().add_(spread(zero, weight.shape))
        return codes.clamp_(0, self.grid.levels - 1).to(torch.uint8).reshape(weight.shape)

    def parameters(self) -> Float[Tensor, "1 out groups"]:
        """The scales, in float32: see `Linear`."""
        return read_scale(self.scale, self.grid.scale_dtype)[None]

    def factors(self, codes: Float[Tensor, "out in"]) -> Float[Tensor, "1 out in"]:
        """Codes minus their zero points."""
        return (codes.float() - self.grid.sharing.spread(self.zero_point.float(), codes.shape))[None]

    def refitted(self, parameters: Float[Tensor, "1 out groups"]) -> Scales:
        """The same zero points with other scales, rounded to the type they are stored in."""
        dtype = self.grid.scale_dtype
        return replace(self, scale=write_scale(round_scale(parameters[0], dtype), dtype))

    def part(self, codes: UInt8[Tensor, "out in"]) -> Part:
        """Codes and parameters as one part of a compressed tensor."""
        tensors = {"codes": codes, "scale": self.scale}
        if not self.grid.symmetric:
            tensors["zero_point"] = self.zero_point
        return Part(self.grid, tensors)


@dataclass(frozen=True, eq=False)
class GridColumns:
    """Scales for encoding one input column of all rows at a time."""

    scale: Float[Tensor, "groups out"]
    zero_point: Float[Tensor, "groups out"]
    size: int
    top: int

    def encode(self, values: Float[Tensor, " out"], column: int) -> Float[Tensor, " out"]:
        """Codes, as float32 whole numbers, of one column of weights."""
        group = column // self.size
        return torch.div(values, self.scale[group]).round_().add_(self.zero_point[group]).clamp_(0, self.top)

    def decode(self, codes: Float[Tensor, " out"], column: int) -> Float[Tensor, " out"]:
        """Values of one column of codes."""
        group = column // self.size
        return (codes - self.zero_point[group]).mul_(self.scale[group])
