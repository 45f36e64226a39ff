"""Residual binary codes: a sum of K signs, each times a scale of its own; K bits a weight.

Source: Guo et al. Network Sketching: Exploiting Binary Structure in Deep CNNs. arXiv:1706.02021, for the residual bases
and the refitted scales; Xu et al. Alternating Multi-bit Quantization for Recurrent Neural Networks. arXiv:1802.00150,
for the alternation. Without search every basis is the sign of what those before it left, times its mean size: the
relative squared error on normal weights is .1301 with two bases and .0582 with three. The search alternates: nearest
codes of all bases together, then scales of least squares. With two bases any symmetric list of four numbers can be
had, so it ends where Lloyd and Max do, at .1175; with three at .037.

Two bases without search are the multi-basis binarizer of BinaryDM (Zheng et al. arXiv:2404.05662) as it starts: a sign
times mean |w|, and the sign of the rest times the mean size of the rest, of every row. There both scales are learned;
here `coordinate_descent` refits them to the layer's inputs, and methods of recovery train signs and scales.

Departs from the sources: what is the best of all rounds is kept, tile by tile; the sign of zero is +1.

When to use it: where products are XNOR and popcount, a plane a basis; a model that is trained in it starts from here.
Where an engine multiplies, integers of as many bits are as good.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.binary import mean_size, round_scale_or_zero
from pennyweight.formats.dense import DTYPES
from pennyweight.formats.format import Field
from pennyweight.formats.sharing import Sharing, refuse_blocks
from pennyweight.formats.tables import TableFit, Tables

ROUNDS = 16
CHUNK = 1 << 18  # weights fitted at once
RIDGE = 1e-6  # share of the diagonal: two bases of equal signs have no scales of their own
ROW = Sharing()


@dataclass(frozen=True, kw_only=True)
class ResidualBinary(Tables):
    """A sum of two to four signs, each times a scale.

    Args:
        bases: signs a weight, 2 to 4; bit k of a code is the sign of basis k, set for +1.
        sharing: which weights share their scales: a group, a row or the tensor.
        scale_dtype: what scales are stored in: float16, bfloat16 or float32.

    Raises:
        InvalidFormat: a parameter outside its range.
    """

    name: ClassVar[str] = "residual_binary"
    bases: int = 2
    sharing: Sharing = ROW
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        refuse_blocks(self.sharing, "residual_binary")
        if not 2 <= self.bases <= 4 or self.scale_dtype not in DTYPES:
            raise InvalidFormat(
                f"{self.bases} bases, scales in {self.scale_dtype}", expected=f"2 to 4, {', '.join(DTYPES)}",
                mend="'binary row' is one basis", site="residual_binary",
            )  # fmt: skip

    @property
    def levels(self) -> int:
        """2^bases."""
        return 1 << self.bases

    def label(self) -> str:
        """Such as `binary2 row`, `binary3 g128 bfloat16`."""
        dtype = "" if self.scale_dtype == "float16" else f" {self.scale_dtype}"
        return f"binary{self.bases} {self.sharing.label()}{dtype}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"binary(\d) (\w+)(?: (\w+))?", label.strip())
        sharing = None if match is None else Sharing.parse(match[2])
        if match is None or sharing is None:
            return None
        return cls(bases=int(match[1]), sharing=sharing, scale_dtype=match[3] or "float16")

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Two, three and four bases; rows, groups and the tensor."""
        labels = ("binary2 row", "binary2 g48 bfloat16", "binary3 g32", "binary4 tensor float32")
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def fields(self, shape: tuple[int, ...]) -> Sequence[Field]:
        """Codes, and a scale for each tile and basis."""
        tiles, dtype = (*self.sharing.tiles(shape), self.bases), DTYPES[self.scale_dtype]
        scale = Field("scale", tiles, dtype=dtype, by_row=self.rows_stand_alone)
        return [Field("codes", tuple(shape), self.levels), scale]

    def tables(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "down across levels"]:
        """Σ ± scale over the bases, for every pattern of signs."""
        return tensors["scale"].float() @ patterns(self.bases).T

    def fit(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> BasisScales:
        """Choose scales: see `Scalar.fit`."""
        scale = torch.empty(*self.sharing.tiles(weight.shape), self.bases)
        for part, tiles, share in self.sharing.chunks(weight, importance, CHUNK):
            scale[part] = self._fit_tiles(tiles, search, share)
        return BasisScales(self, {"scale": scale.to(DTYPES[self.scale_dtype])})

    def _fit_tiles(self, w: Tensor, search: bool, importance: Tensor | None) -> Tensor:
        greedy = self._greedy(w, importance if search else None)
        if not search:
            return greedy
        share = torch.ones_like(w[:1]) if importance is None else importance
        starts = [greedy] if importance is None else [greedy, self._fit_tiles(w, True, None)]
        best, kept, table = torch.full(w.shape[:2], torch.inf), greedy, patterns(self.bases)
        for start in starts:
            scale = start
            for _ in range(ROUNDS):
                signs = table[TableFit(self, {"scale": scale}).round_tiles(w).long()]
                error = ((signs @ scale[..., None])[..., 0] - w).square_().mul_(share).sum(-1)
                better = error < best
                best, kept = torch.where(better, error, best), torch.where(better[..., None], scale, kept)
                scale = self.stored(solve_scales(signs, w, share))
        return kept

    def _greedy(self, w: Tensor, importance: Tensor | None) -> Tensor:
        left, scales = w, []
        for _ in range(self.bases):
            scales.append(mean_size(left, importance))
            left = left - torch.where(left >= 0, 1.0, -1.0) * scales[-1][..., None]
        return self.stored(torch.stack(scales, -1))

    def stored(self, scale: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Scales as they will be read back.

        Raises:
            InvalidFormat: one overflows its type.
        """
        return round_scale_or_zero(scale, self.scale_dtype)

    @property
    def reach(self) -> float:
        """The sum of all scales, each half of the one before, in scales of the first basis: see `Refittable`."""
        return float(2 - 0.5 ** (self.bases - 1))

    def fitted(self, tensors: Mapping[str, Tensor]) -> BasisScales:
        """The scales among what is stored: see `Refittable`."""
        return BasisScales(self, {"scale": tensors["scale"]})

    def signs(self, codes: Tensor) -> Float[Tensor, "*shape bases"]:
        """The bases: −1 or 1."""
        return patterns(self.bases)[codes.long()]


@dataclass(frozen=True, eq=False)
class BasisScales(TableFit):
    """Scales that can be chosen again: a weight is the sum of its signs, each times the scale of its basis."""

    format: ResidualBinary

    def parameters(self) -> Float[Tensor, "bases down across"]:
        """The scales, in float32: see `Linear`."""
        return self.stored["scale"].float().movedim(-1, 0)

    def factors(self, codes: Float[Tensor, "out in"]) -> Float[Tensor, "bases out in"]:
        """The signs."""
        return self.format.signs(codes).movedim(-1, 0)

    def refitted(self, parameters: Float[Tensor, "bases down across"]) -> BasisScales:
        """Other scales; they may be negative, and need not descend."""
        scale = self.format.stored(parameters.movedim(0, -1)).to(DTYPES[self.format.scale_dtype])
        return BasisScales(self.format, {"scale": scale})


def patterns(bases: int) -> Float[Tensor, "levels bases"]:
    """Of every code the signs of its bases: bit k is set where the sign of basis k is +1."""
    return (torch.arange(1 << bases)[:, None] >> torch.arange(bases) & 1) * 2.0 - 1


def solve_scales(
    signs: Float[Tensor, "down across n bases"],
    w: Float[Tensor, "down across n"],
    share: Float[Tensor, "rows across n"],
) -> Float[Tensor, "down across bases"]:
    """Scales of least squared error for these signs: normal equations of as many unknowns as there are bases."""
    weighted = (signs * share[..., None]).transpose(-1, -2)
    normal, right = (weighted @ signs).double(), (weighted @ w[..., None]).double()
    ridge = RIDGE * normal.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-30)
    normal = normal + ridge[..., None, None] * torch.eye(signs.shape[-1], dtype=torch.float64)
    solved: Tensor = torch.linalg.solve(normal, right)
    return solved[..., 0].float()
