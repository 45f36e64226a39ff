"""A fixed range chosen for the least squared error on what calibration showed.

Source: common practice, such as Banner, Nahshan, Soudry. Post Training 4-bit Quantization. NeurIPS 2019.
arXiv:1810.05723, and Nagel et al. arXiv:2106.08295, section 3.1, by search instead of a model of the distribution.
Departs from it: both ends shrink by one share of the whole range, which is cheap and keeps skew; ties keep the wider.
Where a format leaves something free, such as the slope of a tangent, that is searched for as well.

When: a static choice that nobody tunes: it never has more squared error than the whole range on the rows it saw. Cost:
40 roundings of those rows. Known failures: the largest numbers are most of the squared error, so
they are kept at the cost of all others: on SmolLM2 at W8A8 it takes a fifth off the KL of the whole range (.60, .78;
`benchmarks/results/activations.json`). A channel with small numbers and large weights is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pennyweight.errors import InvalidMethod
from pennyweight.formats.passing import Passing, Static
from pennyweight.methods.activations.tiles import check_static, squared_error, tiles_of, whole_range
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class StaticMSE:
    """Cover the share of the whole range that has the least squared error.

    Args:
        candidates: shares tried, evenly spaced in logarithm.
        narrowest: the smallest share tried, above 0 and below 1.
    """

    name: ClassVar[str] = "static_mse"
    paper: ClassVar[str] = "arXiv:1810.05723"
    needs: ClassVar[frozenset[str]] = frozenset({"range", "sample"})
    takes: ClassVar[tuple[type[Passing], ...]] = (Passing,)
    over: ClassVar[frozenset[str]] = frozenset({"tensor", "channel"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    candidates: int = 40
    narrowest: float = 0.02

    def __post_init__(self) -> None:
        if self.candidates < 2 or not 0 < self.narrowest < 1:
            raise InvalidMethod(
                f"candidates={self.candidates!r}, narrowest={self.narrowest!r}",
                expected="two candidates at least, and a share above 0 and below 1", mend="static_mse()",
                site=self.name,
            )  # fmt: skip

    def fit(self, statistics: Statistics | None, format: Passing) -> Static:
        """Try all shares on the kept rows.

        Raises:
            InvalidMethod: a format whose scales are found as tokens pass.
            MissingStatistics: no ranges or no rows were collected.
        """
        check_static(self, format)
        low, high = whole_range(statistics, format)
        tiles = tiles_of(statistics, format)
        found = []
        for variant in format.variants():
            best, kept = torch.full(low.shape, torch.inf, dtype=torch.float64), torch.ones_like(low)
            for i in range(self.candidates):
                share = self.narrowest ** (i / (self.candidates - 1))
                error = squared_error(tiles, low * share, high * share, variant)
                kept, best = torch.where(error < best, share, kept), torch.minimum(error, best)
            found.append((float(best.sum()), Static(variant, *variant.ends(low * kept, high * kept))))
        return min(found, key=lambda pair: pair[0])[1]
