"""Vector codebooks: one to eight neighbouring inputs of a row share a code into one learned codebook a tensor.

Source: van Baalen et al. GPTVQ: The Blessing of Dimensionality for LLM Quantization. arXiv:2402.15319; Linde, Buzo,
Gray. An algorithm for vector quantizer design. IEEE Trans. Comm., 1980, for the rounds. Weights are divided by a scale
a group, a row or the tensor, the codebook is learned by k-means with every input weighted by its importance, and then
codes, scales and codebook are each set to the least squared error given the other two, in turns. Scales start as the
root of the mean square and as the largest weight, and the better end is kept; the first suits few bits and long rows,
the second groups at three bits and more. Without search they are the largest weight and nothing takes turns.

Departs from it: one codebook a tensor and not one for every few hundred columns; scales of least squares in place of
logarithmic ones of four bits; the start is drawn as in k-means++.

When to use it: two to four bits a weight, with `gptvq`. On normal weights with a scale a row, 256 vectors of four (two
bits a weight) have a relative squared error of .097 and 16 vectors of two .109, where the best four numbers have .1175;
64 vectors of two (three bits) have .030 instead of .0345. In groups of 64, 256 vectors of two have .0065 with 4.25
bits, where integers with a real offset have .0067 with 4.5.

Cost: learning takes some two seconds for half a million weights, most of it distances to 256 vectors. A codebook of 256
vectors of four takes 16384 bits, .03 a weight of 768 x 768. Rows share it, so they cannot be cut apart. Known failures:
a small tensor, whose codebook is as large as itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.binary import round_scale_or_zero
from pennyweight.formats.dense import DTYPES
from pennyweight.formats.format import Field, Format, Part
from pennyweight.formats.sharing import Sharing, refuse_blocks
from pennyweight.numerics.random import stream
from pennyweight.numerics.vectors import centres, learned, nearest

WIDTHS = (1, 2, 4, 8)
ROUNDS = 30  # of k-means
TURNS = 6  # of codes, scales and codebook
GROUP = Sharing(1, 64)


@dataclass(frozen=True, kw_only=True)
class Vectors(Format):
    """Vectors of a learned codebook, times a scale.

    Args:
        width: inputs in a vector: 1, 2, 4 or 8.
        levels: vectors in the codebook, a power of two from 4 to 256.
        sharing: which weights share a scale: a group, a row or the tensor.
        scale_dtype: what scales and the codebook are stored in: float16, bfloat16 or float32.

    Raises:
        InvalidFormat: a parameter outside its range, or groups that cut a vector.
    """

    name: ClassVar[str] = "vectors"
    width: int = 4
    levels: int = 256
    sharing: Sharing = GROUP
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        refuse_blocks(self.sharing, "vectors")
        if (
            self.width not in WIDTHS
            or self.levels not in (4, 8, 16, 32, 64, 128, 256)
            or self.scale_dtype not in DTYPES
        ):
            raise InvalidFormat(
                f"{self.levels} vectors of {self.width} in {self.scale_dtype}",
                expected=f"a width of 1, 2, 4 or 8, a power of two from 4 to 256, and {', '.join(DTYPES)}",
                mend="'vector4 256 g64' is two bits a weight", site="vectors",
            )  # fmt: skip
        self._refuse_cut(self.sharing.columns or self.width)

    @property
    def rows_stand_alone(self) -> bool:
        """No: the codebook is the tensor's."""
        return False

    def label(self) -> str:
        """Such as `vector4 256 g64`, `vector2 64 row bfloat16`."""
        dtype = "" if self.scale_dtype == "float16" else f" {self.scale_dtype}"
        return f"vector{self.width} {self.levels} {self.sharing.label()}{dtype}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"vector(\d) (\d+) (\w+)(?: (\w+))?", label.strip())
        sharing = None if match is None else Sharing.parse(match[3])
        if match is None or sharing is None:
            return None
        return cls(width=int(match[1]), levels=int(match[2]), sharing=sharing, scale_dtype=match[4] or "float16")

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Small codebooks, which small weights can pay for; of one to four inputs; groups, rows and the tensor."""
        labels = ("vector1 8 g32", "vector2 16 row", "vector2 64 g32", "vector4 32 g48 bfloat16", "vector4 64 tensor")
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def fields(self, shape: tuple[int, ...]) -> Sequence[Field]:
        """Codes, scales and the codebook."""
        self._refuse_cut(shape[1])
        dtype = DTYPES[self.scale_dtype]
        return [
            Field("codes", (shape[0], shape[1] // self.width), self.levels),
            Field("scale", self.sharing.tiles(shape), dtype=dtype, by_row=self.sharing.rows_stand_alone),
            Field("codebook", (self.levels, self.width), dtype=dtype, by_row=False),
        ]

    def _refuse_cut(self, columns: int) -> None:
        if columns % self.width:
            raise InvalidFormat(
                f"{columns} inputs do not split into vectors of {self.width}",
                expected=f"inputs and groups that are multiples of {self.width}", site="vectors",
            )  # fmt: skip

    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, "out in"]:
        """Codebook vector · scale in float32."""
        numbers = tensors["codebook"].float()[tensors["codes"].long()].reshape(shape)
        return numbers.mul_(self.sharing.spread(tensors["scale"].float(), shape))

    @property
    def reach(self) -> float:
        """See `Refittable`: scales are the root of the mean square, and few numbers are larger than twice that."""
        return 2.0

    def fitted(self, tensors: Mapping[str, Tensor]) -> VectorFit:
        """Scales and codebook among what is stored: see `Refittable`."""
        return VectorFit(self, tensors["codebook"].float(), tensors["scale"].float())

    def store(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> Part:
        """Learn scales and a codebook, then take the nearest vectors: see `Format.store`."""
        fitted = self.fit(weight, search=search, importance=importance)
        return fitted.part(fitted.round(weight, importance))

    def fit(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> VectorFit:
        """Learn scales and a codebook; arguments as those of `store`."""
        self._refuse_cut(weight.shape[1])
        w = weight.float()
        tiles = self.sharing.split(w)
        mass = torch.ones(w.shape[1]) if importance is None or not float(importance.sum()) > 0 else importance.float()
        largest = self._start(w, tiles.abs().amax(-1), mass)
        if not search:
            return largest
        found = [
            self._turns(start, w, mass) for start in (self._start(w, tiles.square().mean(-1).sqrt(), mass), largest)
        ]
        return min(found, key=lambda pair: pair[1])[0]

    def _start(self, w: Tensor, scale: Tensor, mass: Tensor) -> VectorFit:
        """A codebook for weights over these scales."""
        scale = self.stored(scale)
        codebook = learned(*self.normalised(w, scale, mass), self.levels, ROUNDS, stream(0, self.name))
        return VectorFit(self, self.stored(codebook), scale)

    def _turns(self, fitted: VectorFit, w: Tensor, mass: Tensor) -> tuple[VectorFit, float]:
        """Codes, scales and codebook in turns; the best of all turns and its weighted squared error."""
        best, least = fitted, math.inf
        for turn in range(TURNS + 1):
            codes = fitted.round(w, mass).long()
            chosen = fitted.codebook[codes].reshape(w.shape)
            error = float(((chosen * self.sharing.spread(fitted.scale, w.shape) - w).square() * mass).sum())
            if error < least:
                best, least = fitted, error
            if turn == TURNS:
                break
            norm = self.sharing.split(chosen.square() * mass).sum(-1)
            scale = self.stored(self.sharing.split(chosen * w * mass).sum(-1) / norm.clamp(min=1e-30))
            means = centres(*self.normalised(w, scale, mass), codes.flatten(), fitted.codebook)
            fitted = VectorFit(self, self.stored(means), scale)
        return best, least

    def normalised(self, w: Tensor, scale: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors over their scales, and what a squared error of them then weighs."""
        spread = self.sharing.spread(scale, w.shape)
        x = torch.where(spread == 0, 0, w / torch.where(spread == 0, 1, spread))
        unit = (spread.square() * mass).mean().clamp(min=1e-30)
        return x.reshape(-1, self.width), (spread.square() * mass / unit).reshape(-1, self.width)

    def stored(self, values: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Numbers as they will be read back.

        Raises:
            InvalidFormat: one overflows its type.
        """
        return round_scale_or_zero(values, self.scale_dtype)


@dataclass(frozen=True, eq=False)
class VectorFit:
    """Such a format fitted to one weight.

    Args:
        format: the format.
        codebook: `[levels, width]` float32, as it is stored.
        scale: `[down, across]` float32, as it is stored.
    """

    format: Vectors
    codebook: Float[Tensor, "levels width"]
    scale: Float[Tensor, "down across"]

    def round(
        self, weight: Float[Tensor, "out in"], importance: Float[Tensor, " in"] | None = None
    ) -> UInt8[Tensor, "out vectors"]:
        """Codes of the nearest vectors, each input's squared error weighted by its importance."""
        mass = torch.ones(weight.shape[1]) if importance is None else importance.float()
        x, weighed = self.format.normalised(weight.float(), self.scale, mass)
        return nearest(x, weighed, self.codebook).to(torch.uint8).reshape(len(weight), -1)

    def parameters(self) -> Float[Tensor, "1 down across"]:
        """The scales: see `Linear`; the codebook stays."""
        return self.scale[None]

    def factors(self, codes: Float[Tensor, "out vectors"]) -> Float[Tensor, "1 out in"]:
        """The numbers of every code's vector."""
        return self.codebook[codes.long()].reshape(1, len(codes), -1)

    def refitted(self, parameters: Float[Tensor, "1 down across"]) -> VectorFit:
        """The same codebook with other scales, rounded to the type they are stored in."""
        return replace(self, scale=self.format.stored(parameters[0]))

    def part(self, codes: UInt8[Tensor, "out vectors"]) -> Part:
        """Codes, scales and codebook as one part of a compressed tensor."""
        dtype = DTYPES[self.format.scale_dtype]
        return Part(self.format, {"codes": codes, "scale": self.scale.to(dtype), "codebook": self.codebook.to(dtype)})
