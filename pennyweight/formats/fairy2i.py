"""Fairy2i: a real matrix as two complex ones whose numbers are sums of 1, i, −1 or −i, each times a scale.

Source: Fairy2i: Training Complex LLMs from Real LLMs with All Parameters in {±1, ±i} (2025, arXiv:2512.02901).
Halves of inputs and outputs are real and imaginary parts, so a weight is U x + V conj(x) (see `numerics.fairy2i`), and
U and V together hold half as many complex numbers as it holds real ones: a stage costs one bit a weight. A stage is the
nearest of the four phases by angle; of what turned out real the scale is mean |Re|, of what turned out imaginary mean
|Im|; each later stage does the same to what those before it left. That is what `search=False` gives.

Departs from it: scales belong to a row, a group or the matrix of U and of V, and may be zero where the code has a floor
of 1e-6. The search takes the nearest sum of all stages together and scales of least squares, in turns, and keeps the
best round of every tile. An input's importance is that of both halves together, which is exact where they are equal.

When to use it: as the start of a training in these numbers. After training it gains nothing over signs: on normal
weights the relative squared error is .364 with one stage and .131 with two, as for residual binary (.363, .130), and
after the search .117 with two, where the best four real numbers have .1175, and .036 with three.

Cost: nearest of 4^stages sums a number. Known failures: an odd number of inputs or outputs; rows i and i + out / 2 are
one row of U and of V, so rows cannot be cut apart.
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
from pennyweight.formats.format import Field, Format, Part
from pennyweight.formats.residual_binary import solve_scales
from pennyweight.formats.sharing import Sharing, refuse_blocks
from pennyweight.numerics.fairy2i import to_real, to_widely_linear

ROUNDS = 8
CHUNK = 1 << 20  # distances held at once
ROW = Sharing()


@dataclass(frozen=True, kw_only=True)
class Fairy2i(Format):
    """Widely-linear pairs of complex matrices, rounded to sums of phases.

    Args:
        stages: phases in a sum, 1 to 4; a code counts in fours, the first stage lowest: 1, i, −1, −i.
        sharing: which numbers of U, and of V, share a pair of scales a stage: a row, a group of complex inputs, or all.
        scale_dtype: what scales are stored in: float16, bfloat16 or float32.

    Raises:
        InvalidFormat: a parameter outside its range.
    """

    name: ClassVar[str] = "fairy2i"
    inputs_multiple: ClassVar[int] = 2
    stages: int = 2
    sharing: Sharing = ROW
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        refuse_blocks(self.sharing, "fairy2i")
        if not 1 <= self.stages <= 4 or self.scale_dtype not in DTYPES:
            raise InvalidFormat(
                f"{self.stages} stages, scales in {self.scale_dtype}", expected=f"1 to 4, {', '.join(DTYPES)}",
                site="fairy2i",
            )  # fmt: skip

    @property
    def rows_stand_alone(self) -> bool:
        """No: a row of U holds of two rows of the weight."""
        return False

    def label(self) -> str:
        """Such as `fairy2 row`, `fairy1 tensor bfloat16`."""
        dtype = "" if self.scale_dtype == "float16" else f" {self.scale_dtype}"
        return f"fairy{self.stages} {self.sharing.label()}{dtype}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"fairy(\d) (\w+)(?: (\w+))?", label.strip())
        sharing = None if match is None else Sharing.parse(match[2])
        if match is None or sharing is None:
            return None
        return cls(stages=int(match[1]), sharing=sharing, scale_dtype=match[3] or "float16")

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """One to three stages; rows, groups and the tensor."""
        labels = ("fairy1 row", "fairy2 g24 bfloat16", "fairy2 tensor float32", "fairy3 row")
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def fields(self, shape: tuple[int, ...]) -> Sequence[Field]:
        """Codes of U and of V; for each tile of them and each stage a real and an imaginary scale."""
        half = _halves(shape)
        scales = (2, *self.sharing.tiles(half), self.stages, 2)
        return [
            Field("codes", (2, *half), 4**self.stages, by_row=False),
            Field("scale", scales, dtype=DTYPES[self.scale_dtype], by_row=False),
        ]

    def decode(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, "out in"]:
        """The real matrix of U and V, in float32."""
        half = _halves(shape)
        scale = tensors["scale"].float().flatten(0, 1)  # tiles of V below those of U
        found = self._sums(tensors["codes"].reshape(*scale.shape[:2], -1), scale)
        u, v = torch.complex(*found.reshape(2, 2, *half))
        return to_real(u, v)

    def store(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> Part:
        """Round U and V: see `Format.store`."""
        (rows, columns), split = _halves(tuple(weight.shape)), self.sharing.split
        pair = to_widely_linear(weight.float())
        real, imaginary = (torch.cat([split(part.float()) for part in parts]) for parts in _parts(pair))
        share = torch.ones(columns) if importance is None or not search else importance.float().reshape(2, -1).sum(0)
        weighed = split(share.expand(1 if self.sharing.rows_stand_alone else rows, -1))
        codes = torch.empty(real.shape, dtype=torch.uint8)
        scale = torch.empty(*real.shape[:2], self.stages, 2)
        step = max(1, CHUNK // (4**self.stages * real[0].numel()))
        for start in range(0, len(real), step):
            some = slice(start, start + step)
            codes[some], scale[some] = self._fit_tiles(torch.stack([real[some], imaginary[some]]), weighed, search)
        scale = scale.reshape(2, *self.sharing.tiles((rows, columns)), self.stages, 2)
        return Part(self, {"codes": codes.reshape(2, rows, columns), "scale": scale.to(DTYPES[self.scale_dtype])})

    def _fit_tiles(self, z: Tensor, share: Tensor, search: bool) -> tuple[Tensor, Tensor]:
        """Codes and scales of tiles `[real or imaginary, down, across, n]`."""
        codes, scale = self._greedy(z, share)
        if not search:
            return codes, scale
        best = torch.full(z.shape[1:3], torch.inf)
        kept_codes, kept_scale = codes, scale
        for _ in range(ROUNDS):
            codes = self._nearest(z, scale)
            error = self._sums(codes, scale).sub_(z).square_().sum(0).mul_(share).sum(-1)
            better = error < best
            best, kept_codes = torch.where(better, error, best), torch.where(better[..., None], codes, kept_codes)
            kept_scale = torch.where(better[..., None, None], scale, kept_scale)
            factors = patterns(self.stages)[:, codes.long()]
            solved = [solve_scales(factor, part, share) for factor, part in zip(factors, z, strict=True)]
            scale = self.stored(torch.stack(solved, -1))
        return kept_codes, kept_scale

    def _greedy(self, z: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Stage after stage by angle, as in the paper."""
        left, scales, codes = z, [], torch.zeros(z.shape[1:], dtype=torch.uint8)
        for stage in range(self.stages):
            real = left[0].abs() >= left[1].abs()
            of_real, of_imaginary = (
                mean_size(part * mask, share * mask) for part, mask in zip(left, (real, ~real), strict=True)
            )
            scales.append(torch.stack([of_real, of_imaginary], -1))
            along = torch.where(real, left[0], left[1])
            codes += ((~real).to(torch.uint8) + 2 * (along < 0).to(torch.uint8)) << 2 * stage
            signed = torch.where(along < 0, -1.0, 1.0)
            taken = torch.stack([signed * real * of_real[..., None], signed * ~real * of_imaginary[..., None]])
            left = left - taken
        return codes, self.stored(torch.stack(scales, -2))

    def _nearest(self, z: Tensor, scale: Tensor) -> Tensor:
        """Codes of the nearest sums, some numbers of each tile at a time."""
        table = self._table(scale)
        away = torch.cat([table.square().sum(0, keepdim=True), -2 * table]).movedim(0, -2)  # [down, across, 3, levels]
        z = torch.cat([torch.ones_like(z[:1]), z]).movedim(0, -1)
        step = max(1, CHUNK // table[0].numel())
        return torch.cat([(part @ away).argmin(-1).to(torch.uint8) for part in torch.split(z, step, 2)], 2)

    def _sums(self, codes: Tensor, scale: Tensor) -> Tensor:
        return torch.stack([part.gather(-1, codes.long()) for part in self._table(scale)])

    def _table(self, scale: Float[Tensor, "down across stages 2"]) -> Float[Tensor, "2 down across levels"]:
        """Real and imaginary parts of what every code stands for."""
        return torch.stack([scale[..., part] @ factor.T for part, factor in enumerate(patterns(self.stages))])

    def stored(self, scale: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Scales as they will be read back.

        Raises:
            InvalidFormat: one overflows its type.
        """
        return round_scale_or_zero(scale, self.scale_dtype)


def patterns(stages: int) -> Float[Tensor, "2 levels stages"]:
    """Real and imaginary part of each stage's phase, for every code."""
    phase = torch.arange(4**stages)[:, None] >> 2 * torch.arange(stages) & 3
    return torch.tensor([[1.0, 0, -1, 0], [0, 1, 0, -1]])[:, phase]


def _parts(pair: tuple[Tensor, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return [part.real for part in pair], [part.imag for part in pair]


def _halves(shape: tuple[int, ...]) -> tuple[int, int]:
    if shape[0] % 2 or shape[1] % 2:
        raise InvalidFormat(
            f"a matrix of {shape[0]} by {shape[1]} has no halves",
            expected="even numbers of outputs and inputs", mend="another format, such as 'binary2 row'", site="fairy2i",
        )  # fmt: skip
    return shape[0] // 2, shape[1] // 2
