"""Formats whose codes stand for a fixed list of numbers, times a scale: small floats, codebooks, ternary, binary.

A kind of its own says which numbers (`values`, ascending) and how scales are stored; everything else is here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.formats.format import Field, Part, Scalar
from pennyweight.formats.scale_types import SCALE_TYPES, exact_scale, read_scale, round_scale, write_scale
from pennyweight.formats.sharing import Sharing
from pennyweight.formats.whole import LARGEST, Whole

CANDIDATES = 24
CHUNK = 1 << 18  # weights searched at once: small enough to stay in the cache


class Levels(Scalar):
    """A list of numbers, times one scale a tile.

    A kind has `sharing` and `scale_dtype` among its parameters, and answers `values`.
    """

    sharing: Sharing
    scale_dtype: str

    @abstractmethod
    def values(self) -> Float[Tensor, " levels"]:
        """The numbers that codes stand for, ascending, float32."""

    def shares(self) -> tuple[float, float]:
        """Between which shares of the whole range the search looks: below one clips, above one leaves levels unused."""
        return 0.4, 1.1

    def candidates(self) -> Sequence[float]:
        """Shares of the whole range that the search tries; the first of equals wins."""
        narrowest, widest = self.shares()
        return [float(share) for share in torch.linspace(widest, narrowest, CANDIDATES)]

    def borders(self) -> Float[Tensor, " borders"]:
        """Where rounding changes from one number to the next; what lies on a border goes to the lower one."""
        values = self.values()
        return (values[1:] + values[:-1]) / 2

    def largest(self) -> float:
        """The number that the largest weight of a tile gets when the whole range is kept."""
        return float(self.values().abs().max())

    @property
    def levels(self) -> int:
        """Number of codes."""
        return len(self.values())

    def fields(self, shape: tuple[int, ...]) -> Sequence[Field]:
        """Codes and scales."""
        scale = Field(
            "scale", self.sharing.tiles(shape), dtype=SCALE_TYPES[self.scale_dtype], by_row=self.rows_stand_alone
        )
        return [Field("codes", tuple(shape), self.levels), scale]

    def fit(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> LevelScales:
        """Choose scales: see `Scalar.fit`; the search tries shares of each tile's largest weight."""
        scale = torch.empty(self.sharing.tiles(weight.shape))
        for part, tiles, shared in self.sharing.chunks(weight, importance, CHUNK):
            scale[part] = self._fit_tiles(tiles, search, shared)
        return LevelScales(self, {"scale": write_scale(scale, self.scale_dtype)}, scale)

    def _fit_tiles(self, w: Tensor, search: bool, importance: Tensor | None) -> Tensor:
        reach = w.abs().amax(-1) / self.largest()
        whole = self.round_scale(reach)
        if not search:
            return whole
        values, borders = self.values(), self.borders()
        best, scale = torch.full_like(reach, torch.inf), whole
        for share in self.candidates():
            candidate = self.round_scale(reach * share)
            error = (
                (values[torch.bucketize(w / candidate[..., None], borders)] * candidate[..., None]).sub_(w).square_()
            )
            total = (error if importance is None else error.mul_(importance)).sum(-1)
            better = total < best
            best, scale = torch.where(better, total, best), torch.where(better, candidate, scale)
        return scale

    def round_scale(self, scale: Float[Tensor, "down across"]) -> Float[Tensor, "down across"]:
        """Scales as they will be read back."""
        return round_scale(scale, self.scale_dtype)

    def scales(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "down across"]:
        """The scales that are stored, in float32."""
        return read_scale(tensors["scale"], self.scale_dtype)

    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, "out in"]:
        """values[code] · scale in float32."""
        numbers = self.values()[tensors["codes"].reshape(shape).long()]
        return numbers.mul_(self.sharing.spread(self.scales(tensors), shape))

    def whole(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Whole | None:
        """Multiples of the smallest number, where all are that."""
        unit, multiples = self._multiples()
        if multiples is None or shape[1] % self.sharing.width(shape[1]):
            return None
        step = self.sharing.by_column(self.scales(tensors), shape).T.contiguous() * unit
        codes = multiples[tensors["codes"].reshape(shape).long()].to(torch.int16)
        return Whole(codes, torch.zeros(step.shape, dtype=torch.int16), step)

    def hold(self, weight: Float[Tensor, "out in"], whole: Whole | None) -> Part | None:
        """Whole numbers that are on the list; formats with more than one scale a tile hold nothing of others'."""
        unit, multiples = self._multiples()
        tiled = None if whole is None or multiples is None else whole.tiled(self.sharing)
        around = None if tiled is None else tiled.around_zero()
        if around is None or len(self.fields(tuple(weight.shape))) != 2:
            return None
        assert multiples is not None
        wanted, scale = around.numbers.float(), exact_scale(around.step / unit, self.scale_dtype)
        codes = torch.searchsorted(multiples, wanted).clamp_(max=self.levels - 1)
        if scale is None or not torch.equal(multiples[codes], wanted):
            return None
        return Part(self, {"codes": codes.to(torch.uint8), "scale": scale})

    def _multiples(self) -> tuple[float, Tensor | None]:
        """The smallest size among the numbers, and all of them in units of it; None where they are no multiples."""
        values = self.values()
        sizes = values.abs()
        if not bool((sizes > 0).any()):
            return 1.0, None
        unit = float(sizes[sizes > 0].min())
        multiples = values / unit
        whole = torch.equal(multiples, multiples.round()) and float(multiples.abs().max()) <= LARGEST
        return unit, multiples if whole else None


@dataclass(frozen=True, eq=False)
class LevelScales:
    """Such a format fitted to one weight.

    Args:
        format: the format.
        stored: its tensors, without the codes.
        scale: `[down, across]` float32, as the stored tensors say.
    """

    format: Levels
    stored: Mapping[str, Tensor]
    scale: Float[Tensor, "down across"]

    def columns(self, shape: tuple[int, ...]) -> LevelColumns:
        """Scales laid out for a sweep over input columns."""
        sharing, scale = self.format.sharing, self.format.sharing.by_column(self.scale, shape)
        return LevelColumns(scale, self.format.values(), self.format.borders(), sharing.width(shape[1]))

    def round(self, weight: Float[Tensor, "out in"]) -> UInt8[Tensor, "out in"]:
        """Codes of the nearest values."""
        scaled = weight.float() / self.format.sharing.spread(self.scale, weight.shape)
        return torch.bucketize(scaled, self.format.borders()).to(torch.uint8)

    def part(self, codes: UInt8[Tensor, "out in"]) -> Part:
        """Codes and scales as one part of a compressed tensor."""
        return Part(self.format, {"codes": codes, **self.stored})


@dataclass(frozen=True, eq=False)
class LevelColumns:
    """Scales and the borders between levels, for one input column of all rows at a time."""

    scale: Float[Tensor, "across out"]
    values: Float[Tensor, " levels"]
    borders: Float[Tensor, " borders"]
    size: int

    def encode(self, values: Float[Tensor, " out"], column: int) -> Float[Tensor, " out"]:
        """Codes of one column of weights."""
        return torch.bucketize(values / self.scale[column // self.size], self.borders).float()

    def decode(self, codes: Float[Tensor, " out"], column: int) -> Float[Tensor, " out"]:
        """Values of one column of codes."""
        return self.values[codes.long()] * self.scale[column // self.size]
