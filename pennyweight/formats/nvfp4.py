"""NVFP4: E2M1 in groups of 16 inputs, with an E4M3 scale for each group and a float32 scale for the tensor.

Source: Abecassis et al. Pretraining Large Language Models with NVFP4. arXiv:2509.25149. Their tensor scale is
amax / (6 · 448), so that the group with the largest weight has the largest E4M3 scale; ours is the power of two above
that. It costs at most the last bit of E4M3's range, and makes the product of code, scale and tensor scale exact even
in bfloat16, and exact whether an engine multiplies by the tensor scale (ModelOpt) or divides by its reciprocal
(compressed-tensors' `weight_global_scale`).

The tensor scale belongs to all rows, so rows do not stand alone: cut out they would still decode, but stored by
themselves they would get another tensor scale and other codes. Engines that fuse q, k and v want one tensor scale for
all of them as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.formats.format import Field
from pennyweight.formats.levels import Levels, LevelScales
from pennyweight.formats.minifloat import ELEMENTS, finite, ties_to_even
from pennyweight.formats.scale_types import power_of_two
from pennyweight.formats.sharing import Sharing

GROUP = Sharing(1, 16)
LARGEST = ELEMENTS["e2m1"][3] * ELEMENTS["e4m3"][3]  # of a weight, when the tensor scale is one


@dataclass(frozen=True, kw_only=True)
class NVFP4(Levels):
    """Floats of four bits in groups of 16, scaled by a float of eight bits and the tensor by one of 32."""

    name: ClassVar[str] = "nvfp4"
    sharing: Sharing = field(default=GROUP, init=False)
    scale_dtype: str = field(default="e4m3", init=False)

    def label(self) -> str:
        """`nvfp4`."""
        return "nvfp4"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format, or None when the label names something else."""
        return cls() if label.strip() == "nvfp4" else None

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """The only one."""
        return [cls()]

    @property
    def rows_stand_alone(self) -> bool:
        """No: all rows share the tensor scale."""
        return False

    def values(self) -> Float[Tensor, " levels"]:
        """0, ±0.5, ±1, ±1.5, ±2, ±3, ±4, ±6."""
        return finite("e2m1")[0]

    def borders(self) -> Float[Tensor, " borders"]:
        """Between the numbers; ties go to the even bit pattern."""
        return ties_to_even(*finite("e2m1"))

    def bits_of(self, codes: UInt8[Tensor, ...]) -> UInt8[Tensor, ...]:
        """Bit patterns, sign first, as engines store them (two in a byte, low half first)."""
        return finite("e2m1")[1][codes.long()]

    def fields(self, shape: tuple[int, ...]) -> Sequence[Field]:
        """Codes, scales of groups, and the scale of the tensor."""
        return [*super().fields(shape), Field("tensor_scale", (1,), dtype=torch.float32, by_row=False)]

    def fit(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> LevelScales:
        """Choose scales: the tensor's from its largest weight, then each group's (see `Levels.fit`)."""
        whole = weight.float()
        tensor = power_of_two(whole.abs().max() / LARGEST, up=True)
        groups = super().fit(whole / tensor, search=search, importance=importance)
        stored = {**groups.stored, "tensor_scale": tensor.reshape(1)}
        return LevelScales(self, stored, groups.scale * tensor)

    def scales(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "down across"]:
        """Scales of groups times that of the tensor, in float32."""
        return super().scales(tensors) * tensors["tensor_scale"]
