"""Uniform integer grids: x ≈ scale · (codes − zero_point), one scale a row and group of inputs.

Conventions and their relative errors on normal data: the two that matter here are the symmetric full range (codes
−2^(b−1) … 2^(b−1)−1, zero point fixed) and asymmetric min-max with an integer zero point, so that zero is always
representable. Scales are rounded to the type they are stored in *before* any weight is rounded with them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.compressed import Part

SCALE_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
NARROWEST = {2: 0.40, 3: 0.52, 4: 0.64, 5: 0.74, 6: 0.82, 7: 0.88, 8: 0.92}  # narrower clips never won
CANDIDATES = 14
CHUNK = 1 << 18  # weights searched at once: small enough to stay in the cache


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Integers of `bits` bits, with one scale for every `group_size` inputs of a row.

    Args:
        bits: code width, 2 to 8.
        group_size: inputs that share a scale; None for one scale a row.
        symmetric: zero point fixed in the middle and not stored.
        scale_dtype: what scales are stored in: float16, bfloat16 or float32.

    Raises:
        InvalidFormat: a parameter outside its range.
    """

    name: ClassVar[str] = "grid"
    bits: int
    group_size: int | None = None
    symmetric: bool = True
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InvalidFormat(f"{self.bits} bits", expected="2 to 8 bits", mend="choose bits=4", site="grid")
        if self.group_size is not None and self.group_size < 1:
            raise InvalidFormat(f"a group of {self.group_size}", expected="at least one input a group", site="grid")
        if self.scale_dtype not in SCALE_DTYPES:
            raise InvalidFormat(f"scales in {self.scale_dtype}", expected=", ".join(SCALE_DTYPES), site="grid")

    @property
    def levels(self) -> int:
        """Number of codes."""
        return 1 << self.bits

    def label(self) -> str:
        """Such as `int4 g64 asym`; `formats.parse` reads it back."""
        group = "row" if self.group_size is None else f"g{self.group_size}"
        kind = "sym" if self.symmetric else "asym"
        dtype = "" if self.scale_dtype == "float16" else f" {self.scale_dtype}"
        return f"int{self.bits} {group} {kind}{dtype}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The grid a label names, or None when it names something else."""
        match = re.fullmatch(r"int(\d) (row|g\d+) (sym|asym)(?: (\w+))?", label.strip())
        if match is None:
            return None
        return cls(
            bits=int(match[1]), group_size=None if match[2] == "row" else int(match[2][1:]),
            symmetric=match[3] == "sym", scale_dtype=match[4] or "float16",
        )  # fmt: skip

    def groups(self, columns: int) -> int:
        """Scales a row of `columns` inputs carries.

        Raises:
            InvalidFormat: the group size does not divide the inputs.
        """
        if self.group_size is None:
            return 1
        if columns % self.group_size:
            fitting = [g for g in (32, 48, 64, 96, 128, 192, 256) if columns % g == 0]
            size = self.group_size
            near = min(fitting, key=lambda g: abs(g - size)) if fitting else None
            raise InvalidFormat(
                f"{columns} inputs do not split into groups of {self.group_size} ({columns // self.group_size} groups, "
                f"{columns % self.group_size} left over)",
                expected=f"a group_size that divides {columns}"
                + (f", such as {', '.join(map(str, fitting))}" if fitting else ", or none (one scale a row)"),
                mend=f"set group_size={near} for this site, or keep it dense",
            )
        return columns // self.group_size

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Codes, scales and zero points, in bits, before any padding of a container."""
        rows, columns = shape
        groups = self.groups(columns)
        scale_bits = 8 * SCALE_DTYPES[self.scale_dtype].itemsize
        return rows * (columns * self.bits + groups * (scale_bits + (0 if self.symmetric else self.bits)))

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
        rows, columns = weight.shape
        groups = self.groups(columns)
        grouped = weight.float().reshape(rows, groups, columns // groups)
        shared = None if importance is None else importance.float().reshape(groups, columns // groups)
        scale = torch.empty(rows, groups)
        zero = torch.empty(rows, groups)
        step = max(1, CHUNK // columns)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            scale[start:stop], zero[start:stop] = self._fit_rows(grouped[start:stop], search, shared)
        return Scales(self, scale.to(SCALE_DTYPES[self.scale_dtype]), zero.to(torch.uint8))

    def _fit_rows(self, w: Tensor, search: bool, importance: Tensor | None) -> tuple[Tensor, Tensor]:
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
        """Round scales to the type they are stored in; none comes out zero or infinite."""
        scale = scale.to(SCALE_DTYPES[self.scale_dtype]).float()
        if bool(torch.isinf(scale).any()):
            raise InvalidFormat(
                f"a scale overflows {self.scale_dtype}",
                expected="weights whose range fits the type of the scales",
                mend="store scales as bfloat16: scale_dtype='bfloat16'",
            )
        # A scale that rounds to nothing (all zeros, or far below the type's range) stores zeros, exactly.
        return torch.where(scale == 0, torch.ones_like(scale), scale)

    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, "out in"]:
        """(codes − zero_point) · scale in float32."""
        rows, columns = shape
        scale = tensors["scale"].float()
        codes = tensors["codes"].reshape(rows, scale.shape[1], -1).float()
        zero = tensors["zero_point"].float()[..., None] if not self.symmetric else self.levels // 2
        return ((codes - zero) * scale[..., None]).reshape(rows, columns)


@dataclass(frozen=True, eq=False)
class Scales:
    """A grid fitted to one weight: what `encode` and `decode` need, column by column.

    Args:
        grid: the format.
        scale: `[out, groups]`, in the type it is stored in, never zero.
        zero_point: `[out, groups]`, codes of the value zero.
    """

    grid: Grid
    scale: Float[Tensor, "out groups"]
    zero_point: UInt8[Tensor, "out groups"]

    def columns(self, columns: int) -> Columns:
        """The same parameters laid out for a sweep over input columns."""
        size = columns // self.scale.shape[1]
        return Columns(
            self.scale.float().T.contiguous(), self.zero_point.float().T.contiguous(), size, self.grid.levels - 1
        )

    def round(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        """Codes of the nearest grid points."""
        rows, columns = weight.shape
        grouped = weight.float().reshape(rows, self.scale.shape[1], -1)
        codes = torch.div(grouped, self.scale.float()[..., None]).round_().add_(self.zero_point.float()[..., None])
        return codes.clamp_(0, self.grid.levels - 1).to(torch.uint8).reshape(rows, columns)

    def part(self, codes: UInt8[Tensor, "out in"]) -> Part:
        """Codes and parameters as one part of a compressed tensor."""
        tensors = {"codes": codes, "scale": self.scale}
        if not self.grid.symmetric:
            tensors["zero_point"] = self.zero_point
        return Part(self.grid, tensors)


@dataclass(frozen=True, eq=False)
class Columns:
    """Scales `[groups, out]` for encoding one input column of all rows at a time."""

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
