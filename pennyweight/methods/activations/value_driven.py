"""Bits for the feature maps of a small device: patches that hold outliers keep eight, the others get what they need.

Source: QuantMCU. DATE 2024. arXiv:2401.13714: value-driven patch classification (VDPC) and quantization search (VDQS).
Reconstructed from its abstract and what others report of it: a patch is outlying if one of its values lies outside of
so many standard deviations of the whole map; a map i and a width b score S = −λ Ω + (1 − λ) Φ, Ω the share of the map's
entropy that rounding to b bits loses, Φ the share of all bit operations that it saves; widths are chosen in the order
in which maps are computed, within the memory of two neighbouring maps, and again until none changes.
Departs from it: the entropy of a map is that of its histogram at the widest choice, so that the loss is never negative.

These are functions, not a method of the room: widths are then named map by map, `int4 tensor` and the like. Known
failures: entropy minds how often values occur and not what they do to the output; borders of patches of unlike widths
are to be rounded to a common scale where they meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pennyweight.errors import InfeasibleBudget, InvalidMethod
from pennyweight.formats.passing import Integers, Over

WEIGHT_BITS = 8


@dataclass(frozen=True)
class FeatureMap:
    """What the search knows of a map.

    Args:
        elements: of the map.
        products: multiplications of the layer that reads it.
        losses: by width, the share of its entropy that is lost.
    """

    elements: int
    products: int
    losses: Mapping[int, float]


def outlying(
    x: Float[Tensor, "n channels height width"], patches: tuple[int, int], *, deviations: float = 3.5
) -> Bool[Tensor, "n down across"]:
    """Which patches of a map hold a value that a normal distribution of the whole map makes rare.

    Args:
        x: the map where the network is split into patches.
        patches: down and across; they divide the map.
        deviations: from the mean, beyond which a value is an outlier.

    Raises:
        InvalidMethod: the patches do not divide the map.
    """
    height, width = x.shape[-2:]
    down, across = patches
    if down < 1 or across < 1 or height % down or width % across:
        raise InvalidMethod(
            f"{height} x {width} in {down} x {across} patches", expected="patches that divide the map",
            mend="choose others", site="value_driven",
        )  # fmt: skip
    mean, spread = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
    rare = ((x - mean).abs() > deviations * spread).any(1)
    tiles = rare.reshape(len(x), down, height // down, across, width // across)
    return tiles.any(4).any(2)


def entropy(x: Float[Tensor, ...], bits: int) -> float:
    """Bits that the codes of a map carry when it is rounded from its smallest to its largest number; at most `bits`."""
    format = Integers(bits=bits, symmetric=False, over=Over("tensor"))
    flat = x.reshape(1, -1).float()
    scale, zero = format.ends(flat.amin(1).clamp(max=0), flat.amax(1).clamp(min=0))
    counts = torch.unique(format.round(flat, scale, zero).codes, return_counts=True)[1].double()
    share = counts / counts.sum()
    return float(-(share * share.log2()).sum())


def losses(x: Float[Tensor, ...], widths: Sequence[int] = (8, 4, 2)) -> dict[int, float]:
    """Ω of every width: the share of the entropy at the widest that is lost."""
    whole = entropy(x, max(widths))
    return {bits: 1 - entropy(x, bits) / whole if whole else 0.0 for bits in widths}


def widths(maps: Sequence[FeatureMap], *, memory: float, balance: float = 0.5) -> tuple[int, ...]:
    """Bits of every map, in the order in which they are computed.

    Args:
        maps: in the order in which they are computed.
        memory: bytes of a map and the next together, at most.
        balance: λ, from 0 (fewest operations) to 1 (most entropy).

    Raises:
        InvalidMethod: a balance outside its range.
        InfeasibleBudget: the narrowest widths do not fit either.
    """
    if not 0 <= balance <= 1:
        raise InvalidMethod(f"balance={balance!r}", expected="from 0 to 1", mend="0.5", site="value_driven")
    chosen = [min(one.losses) for one in maps]
    need = _peak(maps, chosen)
    if need > memory:
        raise InfeasibleBudget(
            f"{need:.0f} bytes at the narrowest, {memory:.0f} allowed", expected=f"{need:.0f} bytes at least",
            mend="more and smaller patches", site="value_driven",
        )  # fmt: skip
    total = sum(one.products * max(one.losses) * WEIGHT_BITS for one in maps) or 1

    def score(one: FeatureMap, bits: int) -> float:
        saved = one.products * (max(one.losses) - bits) * WEIGHT_BITS / total
        return -balance * one.losses[bits] + (1 - balance) * saved

    for _ in range(len(maps) * max(len(one.losses) for one in maps) + 1):
        before = list(chosen)
        for i, one in enumerate(maps):
            fitting = [b for b in one.losses if _peak(maps, [*chosen[:i], b, *chosen[i + 1 :]]) <= memory]
            chosen[i] = max(fitting, key=lambda bits, one=one: (score(one, bits), bits))  # type: ignore[misc]
        if chosen == before:
            break
    return tuple(chosen)


def _peak(maps: Sequence[FeatureMap], bits: Sequence[int]) -> float:
    """Bytes of the largest pair of neighbours, of which one is read while the other is written."""
    sizes = [one.elements * b / 8 for one, b in zip(maps, bits, strict=True)]
    return max(a + b for a, b in zip(sizes, [*sizes[1:], 0.0], strict=True)) if sizes else 0.0
