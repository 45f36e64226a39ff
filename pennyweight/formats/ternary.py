"""Ternary weights: −1, 0 or 1, times a scale of a group, a row or the tensor; five of them fit into a byte.

Source: Li et al. Ternary Weight Networks (TWN). arXiv:1605.04711, for the least squared error; Ma et al. The Era of
1-bit LLMs: All Large Language Models are in 1.58 Bits. arXiv:2402.17764, for the scale mean |w| ("absmean"), which is
what `search=False` gives. Rounding to the nearest of 0 and ±scale is a threshold of half the scale.

Departs from TWN: its threshold 0.7 · mean |w| is an approximation. With the weights that are not zero given, the best
scale is their mean |w|, and the best such set of every size is that of the largest |w|; so sorting finds the optimum.
On normal weights the relative squared error is .190, and .263 with absmean.

When to use it: where an engine adds instead of multiplying. At 1.6 bits nothing that rounds after training keeps a
language model whole; it needs a method that compensates, and as a rule training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.formats.levels import Levels, LevelScales
from pennyweight.formats.scale_types import check_scale_type, write_scale
from pennyweight.formats.sharing import Sharing, refuse_blocks

GROUP = Sharing(1, 128)


@dataclass(frozen=True, kw_only=True)
class Ternary(Levels):
    """−1, 0 and 1, times a scale.

    Args:
        sharing: which weights share a scale: a group, a row or the tensor.
        scale_dtype: what scales are stored in.

    Raises:
        InvalidFormat: square blocks, or a type of scales that does not exist.
    """

    name: ClassVar[str] = "ternary"
    sharing: Sharing = GROUP
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        refuse_blocks(self.sharing, "ternary")
        check_scale_type(self.scale_dtype, "ternary")

    def label(self) -> str:
        """Such as `ternary g128`, `ternary row bfloat16`."""
        dtype = "" if self.scale_dtype == "float16" else f" {self.scale_dtype}"
        return f"ternary {self.sharing.label()}{dtype}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"ternary (\w+)(?: (\w+))?", label.strip())
        sharing = None if match is None else Sharing.parse(match[1])
        return None if match is None or sharing is None else cls(sharing=sharing, scale_dtype=match[2] or "float16")

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Groups, rows and the whole tensor."""
        labels = ("ternary g32", "ternary g48 bfloat16", "ternary row", "ternary tensor float32")
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def values(self) -> Float[Tensor, " levels"]:
        """−1, 0, 1."""
        return torch.tensor([-1.0, 0.0, 1.0])

    @property
    def reach(self) -> float:
        """One step: see `Refittable`."""
        return 1.0

    def fit(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> TernaryScales:
        """Choose scales: see `Scalar.fit`."""
        return self.fitted(super().fit(weight, search=search, importance=importance).stored)

    def fitted(self, tensors: Mapping[str, Tensor]) -> TernaryScales:
        """The scales among what is stored: see `Refittable`."""
        return TernaryScales(self, {"scale": tensors["scale"]}, self.scales(tensors))

    def _fit_tiles(self, w: Tensor, search: bool, importance: Tensor | None) -> Tensor:
        size = w.abs()
        absmean = self.round_scale(size.mean(-1))
        if not search:
            return absmean
        share = torch.ones_like(size[:1]) if importance is None else importance
        candidates = torch.stack([absmean, self.round_scale(least_squares(size, share))])
        kept = torch.where(size > candidates[..., None] / 2, size - candidates[..., None], size)
        best = kept.square_().mul_(share).sum(-1).argmin(0, keepdim=True)
        return candidates.gather(0, best)[0]


@dataclass(frozen=True, eq=False)
class TernaryScales(LevelScales):
    """Scales that can be chosen again: a weight is its sign or 0, times the scale of its tile."""

    format: Ternary

    def parameters(self) -> Float[Tensor, "1 down across"]:
        """The scales: see `Linear`."""
        return self.scale[None].clone()

    def factors(self, codes: Float[Tensor, "out in"]) -> Float[Tensor, "1 out in"]:
        """−1, 0 or 1."""
        return codes[None] - 1

    def refitted(self, parameters: Float[Tensor, "1 down across"]) -> TernaryScales:
        """Other scales, without their sign."""
        scale = self.format.round_scale(parameters[0].abs())
        return self.format.fitted({"scale": write_scale(scale, self.format.scale_dtype)})


def least_squares(size: Float[Tensor, "*tiles n"], share: Float[Tensor, "*ones n"]) -> Float[Tensor, "*tiles"]:
    """The scale of the least squared error: of all counts k, the weighted mean of the k largest |w|.

    With k weights kept the error is Σ m w² − (Σ m |w|)² / Σ m, sums of the second term over those kept; at the k of the
    largest second term exactly the weights above half the scale are kept.

    Args:
        size: |w| of each tile.
        share: weight of each input in the squared error.
    """
    ordered, places = size.sort(dim=-1, descending=True, stable=True)
    weight = share.expand(size.shape).gather(-1, places).double()
    total, count = (weight * ordered).cumsum(-1), weight.cumsum(-1)
    best = (total.square() / count.clamp(min=1e-300)).argmax(-1, keepdim=True)
    return (total.gather(-1, best) / count.gather(-1, best).clamp(min=1e-300))[..., 0].float()
