"""Progressive group quantization (QoQ): int8 for a row, int4 for its groups, and only integers between the two.

Source: Lin, Tang et al. QServe: W4A8KV4 Quantization and System Co-design for Efficient LLM Serving. arXiv:2405.04532.
Level one is symmetric int8 with a real scale a row, kept to the protective range ±119. Level two is unsigned int4 with
an integer scale and zero point for each group of those int8 codes. An engine computes (codes − zero_point) ·
group_scale in int8 and multiplies in int8.

Departs from it in three ways. The protective range keeps in int8 what the paper's rounding gives, but not every code:
a group from −54 to 119 has scale 12 and zero point 4, and code 15 would be 132. A sweep that compensates, or a clipped
range, does write such codes; so the zero point is moved, by one at most, to where all sixteen stay in int8. A weight is
rounded once, to the nearest value there is, and not to int8 first. And the search shrinks the range of each group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.format import Field, Part, Scalar
from pennyweight.formats.grid import GridColumns
from pennyweight.formats.scale_types import SCALE_TYPES, check_scale_type, read_scale, round_scale, write_scale
from pennyweight.formats.sharing import Sharing
from pennyweight.numerics.integer import Operand

PROTECTIVE = 119  # largest int8 code of level one
TOP = 15  # largest code of level two
NARROWEST, CANDIDATES = 0.64, 14
CHUNK = 1 << 18  # weights searched at once: small enough to stay in the cache


@dataclass(frozen=True, kw_only=True)
class Progressive(Scalar):
    """Four bits that an engine widens to int8 with integers alone (QoQ of QServe).

    Args:
        group_size: inputs that share a group scale; None for a whole row.
        scale_dtype: what the scales of rows are stored in: float16, bfloat16 or float32.

    Raises:
        InvalidFormat: a parameter outside its range.
    """

    name: ClassVar[str] = "progressive"
    group_size: int | None = 128
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        _ = self.sharing
        check_scale_type(self.scale_dtype, "progressive")
        if self.scale_dtype in ("e8m0", "e4m3"):
            raise InvalidFormat(
                f"row scales in {self.scale_dtype}", expected="float16, bfloat16 or float32",
                mend="scale_dtype='float16'; a coarser one would leave the protective range", site="progressive",
            )  # fmt: skip

    @property
    def levels(self) -> int:
        """Sixteen."""
        return TOP + 1

    @property
    def sharing(self) -> Sharing:
        """Which weights share a group scale."""
        return Sharing(1, self.group_size)

    def label(self) -> str:
        """Such as `int4 g128 progressive`; `formats.parse` reads it back."""
        dtype = "" if self.scale_dtype == "float16" else f" {self.scale_dtype}"
        return f"int4 {self.sharing.label()} progressive{dtype}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"int4 (row|g\d+) progressive(?: (\w+))?", label.strip())
        sharing = None if match is None else Sharing.parse(match[1])
        if match is None or sharing is None:
            return None
        return cls(group_size=sharing.columns, scale_dtype=match[2] or "float16")

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Groups and whole rows."""
        return [cls(group_size=32), cls(group_size=48, scale_dtype="bfloat16"), cls(group_size=None)]

    def fields(self, shape: tuple[int, ...]) -> Sequence[Field]:
        """Codes, group scales and zero points (integers), and row scales."""
        tiles = self.sharing.tiles(shape)
        return [
            Field("codes", tuple(shape), self.levels),
            Field("group_scale", tiles),
            Field("zero_point", tiles, self.levels),
            Field("scale", (tiles[0], 1), dtype=SCALE_TYPES[self.scale_dtype]),
        ]

    def fit(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> ProgressiveScales:
        """Choose row scales from the largest weight, then group scales and zero points: see `Scalar.fit`."""
        row_scale = round_scale(weight.float().abs().amax(1, keepdim=True) / PROTECTIVE, self.scale_dtype)
        tiles = self.sharing.split(weight.float() / row_scale)  # int8 codes before they are rounded
        shared = None if importance is None else self.sharing.split(importance.float()[None])
        group_scale, zero = torch.empty(tiles.shape[:2]), torch.empty(tiles.shape[:2])
        step = max(1, CHUNK // tiles[0].numel())
        for start in range(0, len(tiles), step):
            stop = start + step
            group_scale[start:stop], zero[start:stop] = _fit_groups(tiles[start:stop], search, shared)
        return ProgressiveScales(
            self, write_scale(row_scale, self.scale_dtype), group_scale.to(torch.uint8), zero.to(torch.uint8)
        )

    def widened(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Int8[Tensor, "out in"]:
        """(codes − zero_point) · group_scale: the int8 weight an engine multiplies with, before the row scale."""
        codes = tensors["codes"].reshape(*tensors["group_scale"].shape, -1).to(torch.int16)
        zero, scale = tensors["zero_point"].to(torch.int16), tensors["group_scale"].to(torch.int16)
        return ((codes - zero[..., None]) * scale[..., None]).to(torch.int8).reshape(shape)

    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, "out in"]:
        """The int8 weight times the row scale, in float32."""
        return self.widened(tensors, shape).float() * read_scale(tensors["scale"], self.scale_dtype)

    def operand(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Operand:
        """The widened weight as the right side of a product of whole numbers: no groups, a scale a row."""
        return Operand(self.widened(tensors, shape), read_scale(tensors["scale"], self.scale_dtype))


def second_level(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Integer scale and zero point of groups of int8 codes from `low` ≤ 0 to `high` ≥ 0, as float32 whole numbers.

    With these, (code − zero point) · scale is −128 to 127 for every code.
    """
    scale = ((high - low) / TOP).round().clamp(min=1)
    least, most = torch.ceil(TOP - 127 / scale).clamp(min=0), torch.floor(128 / scale).clamp(max=TOP)
    return scale, (-low / scale).round().clamp(least, most)


def _fit_groups(w: Tensor, search: bool, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    whole = w.round().clamp(-PROTECTIVE, PROTECTIVE)
    low, high = whole.amin(-1).clamp(max=0), whole.amax(-1).clamp(min=0)
    scale, zero = second_level(low, high)
    if not search:
        return scale, zero
    best = torch.full_like(low, torch.inf)
    for share in torch.linspace(1, NARROWEST, CANDIDATES).tolist():
        s, z = second_level((low * share).round(), (high * share).round())
        codes = torch.div(w, s[..., None]).round_().add_(z[..., None]).clamp_(0, TOP)
        error = codes.sub_(z[..., None]).mul_(s[..., None]).sub_(w).square_()
        total = (error if importance is None else error.mul_(importance)).sum(-1)
        better = total < best
        best = torch.where(better, total, best)
        scale, zero = torch.where(better, s, scale), torch.where(better, z, zero)
    return scale, zero


@dataclass(frozen=True, eq=False)
class ProgressiveScales:
    """Both levels fitted to one weight.

    Args:
        format: the format.
        scale: `[out, 1]` of rows, in the type it is stored in.
        group_scale: `[out, groups]` integers, 1 to 16.
        zero_point: `[out, groups]` codes of the value zero.
    """

    format: Progressive
    scale: Tensor
    group_scale: UInt8[Tensor, "out groups"]
    zero_point: UInt8[Tensor, "out groups"]

    def _steps(self) -> Float[Tensor, "out groups"]:
        return self.group_scale.float() * read_scale(self.scale, self.format.scale_dtype)

    def columns(self, shape: tuple[int, ...]) -> GridColumns:
        """Both levels multiplied, for a sweep over input columns."""
        sharing, zero = self.format.sharing, self.zero_point.float()
        return GridColumns(
            sharing.by_column(self._steps(), shape), sharing.by_column(zero, shape), sharing.width(shape[1]), TOP
        )

    def round(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        """Codes of the nearest values."""
        grouped = self.format.sharing.split(weight.float())
        codes = torch.div(grouped, self._steps()[..., None]).round_().add_(self.zero_point.float()[..., None])
        return codes.clamp_(0, TOP).to(torch.uint8).reshape(weight.shape)

    def part(self, codes: UInt8[Tensor, "out in"]) -> Part:
        """Codes and parameters as one part of a compressed tensor."""
        stored = {"group_scale": self.group_scale, "zero_point": self.zero_point, "scale": self.scale}
        return Part(self.format, {"codes": codes, **stored})
