"""A fixed range chosen so that the histogram of codes says as much as possible about the histogram of numbers.

Source: Migacz. 8-bit Inference with TensorRT. GTC 2017 (the entropy calibrator of TensorRT and of many others): of all
thresholds, the one with the least KL(P || Q), P the histogram below the threshold with what lies beyond added to its
last bin, Q the same merged to as many bins as there are codes and spread again over the bins that are not empty.
Departs from it: about 128 thresholds are tried and not all; every bin of Q is smoothed as P's are, so that no logarithm
meets a zero; where there is a zero point the threshold cuts both ends.

When: convolutions with smooth histograms, 8 bits; it is what engines' own tools would choose. Cost: a histogram and 128
small sums an edge. Known failures: it minds how often numbers occur and not how large they are, so it clips outliers
of language models, which carry much: SmolLM2 at W8A8 has a perplexity of 3,147 with it, and 37.2 before
(`benchmarks/results/activations.json`). Below 8 bits it clips far too early or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats.passing import Integers, Passing, Static
from pennyweight.methods.activations.tiles import check_static, tiles_of, whole_range
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics

SMOOTHED = 1e-4  # of a count, in bins that are empty on one side


@dataclass(frozen=True, kw_only=True)
class StaticEntropy:
    """Cover the range whose codes lose the least information about the distribution.

    Args:
        bins: of the histogram of sizes, at least as many as there are codes.
        thresholds: tried at most.
    """

    name: ClassVar[str] = "static_entropy"
    paper: ClassVar[str] = "Migacz, GTC 2017"
    needs: ClassVar[frozenset[str]] = frozenset({"range", "sample"})
    takes: ClassVar[tuple[type[Passing], ...]] = (Integers,)
    over: ClassVar[frozenset[str]] = frozenset({"tensor"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    bins: int = 2048
    thresholds: int = 128

    def __post_init__(self) -> None:
        if self.bins < 128 or self.thresholds < 2:
            raise InvalidMethod(
                f"bins={self.bins!r}, thresholds={self.thresholds!r}", expected="128 bins and 2 thresholds at least",
                mend="static_entropy()", site=self.name,
            )  # fmt: skip

    def fit(self, statistics: Statistics | None, format: Passing) -> Static:
        """Try thresholds on the sizes of the kept rows.

        Raises:
            InvalidMethod: another format than whole numbers with one scale.
            MissingStatistics: no ranges or no rows were collected.
        """
        check_static(self, format)
        low, high = whole_range(statistics, format)
        sizes = tiles_of(statistics, format).abs().flatten()
        largest = float(sizes.max())
        if largest == 0:
            return Static(format, *format.ends(low, high))
        counts = torch.histc(sizes, self.bins, 0, largest).double()
        limit = largest * self.threshold(counts, 1 << (format.bits - 1)) / self.bins  # type: ignore[attr-defined]
        return Static(format, *format.ends(low.clamp(min=-limit), high.clamp(max=limit)))

    def threshold(self, counts: Float[Tensor, " bins"], levels: int) -> int:
        """How many bins are kept."""
        step = max(1, (len(counts) - levels) // (self.thresholds - 1))
        tried = list(range(len(counts), levels - 1, -step))
        divergences = [divergence(counts, kept, levels) for kept in tried]
        return tried[min(range(len(tried)), key=divergences.__getitem__)]


def divergence(counts: Float[Tensor, " bins"], kept: int, levels: int) -> float:
    """KL between the first `kept` bins, the rest added to the last of them, and what `levels` codes make of them."""
    inside, reference = counts[:kept], counts[:kept].clone()
    reference[-1] += counts[kept:].sum()
    code = torch.arange(kept) * levels // kept
    filled = (reference > 0).double()
    per_code = torch.zeros(levels, dtype=torch.float64)
    total, bins = per_code.scatter_add(0, code, inside), per_code.scatter_add(0, code, filled)
    spread = (total / bins.clamp(min=1))[code] * filled
    p, q = (t.clamp(min=SMOOTHED) / t.clamp(min=SMOOTHED).sum() for t in (reference, spread))
    return float((p * (p / q).log()).sum())
