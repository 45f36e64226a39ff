"""A fixed range that leaves out the few largest numbers: they saturate, and all others get smaller steps.

Source: Wu, Judd, Zhang, Isaev, Micikevicius. Integer Quantization for Deep Learning Inference. arXiv:2004.09602,
section 5.
Departs from it: where there is a zero point, both ends are percentiles by themselves, and none crosses zero.

When: one scale for the tensor, and a few numbers far beyond all others that carry nothing. Cost: one sort of the kept
rows. Known failures: outliers of language models carry much, and which percentile is right cannot be told from the
numbers: SmolLM2 at W8A8 has a KL of 1.97 with 99.99, of .95 with 99.999, of .78 with the whole range and of .60 with
`static_mse` (`benchmarks/results/activations.json`). A percentile needs rows to be one: of 256 rows, a channel has
nothing between .996 and its largest number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats.passing import Passing, Static
from pennyweight.methods.activations.tiles import check_static, tiles_of
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class StaticPercentile:
    """Cover a percentile of the numbers that calibration showed.

    Args:
        percentile: of the numbers, above 50 and up to 100; its mirror image is the low end. Where the format is
            symmetric it is that of their sizes.
    """

    name: ClassVar[str] = "static_percentile"
    paper: ClassVar[str] = "arXiv:2004.09602"
    needs: ClassVar[frozenset[str]] = frozenset({"sample"})
    takes: ClassVar[tuple[type[Passing], ...]] = (Passing,)
    over: ClassVar[frozenset[str]] = frozenset({"tensor", "channel"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise InvalidMethod(
                f"percentile={self.percentile!r}", expected="above 50 and up to 100",
                mend="static_percentile(percentile=99.99)", site=self.name,
            )  # fmt: skip

    def fit(self, statistics: Statistics | None, format: Passing) -> Static:
        """Sort, and read the ends off.

        Raises:
            InvalidMethod: a format whose scales are found as tokens pass.
            MissingStatistics: no rows were kept.
        """
        check_static(self, format)
        tiles, share = tiles_of(statistics, format), self.percentile / 100
        if getattr(format, "symmetric", True) and float(tiles.min()) < 0:
            high = quantile(tiles.abs(), share)
            return Static(format, *format.ends(-high, high))
        low, high = -quantile(-tiles, share), quantile(tiles, share)
        return Static(format, *format.ends(low.clamp(max=0), high.clamp(min=0)))


def quantile(tiles: Float[Tensor, "tiles elements"], share: float) -> Float[Tensor, " tiles"]:
    """The share-quantile of every row, between neighbours in proportion."""
    ascending = tiles.sort(1).values  # torch.quantile takes sixteen million numbers at most
    place = share * (tiles.shape[1] - 1)
    below = min(int(place), tiles.shape[1] - 1)
    above = min(below + 1, tiles.shape[1] - 1)
    return ascending[:, below].lerp(ascending[:, above], place - below)
