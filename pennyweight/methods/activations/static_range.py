"""A fixed range from the smallest to the largest number that calibration showed.

Source: Jacob et al. Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference. CVPR
2018. arXiv:1712.05877; Nagel et al. A White Paper on Neural Network Quantization. arXiv:2106.08295, section 3.1.
Departs from it: ranges are those of all calibration data at once, and no moving average of batches.

When: an engine without dynamic scales, and activations without outliers (after `smoothquant` or a rotation, or behind
a sigmoid). `tensor` is what a product of whole numbers takes. `channel` gives every channel a scale: right for
convolutions over depth and for keys and values in a cache, and for what `repq` folds into weights; a linear layer sums
over channels and cannot use it, which `numerics.integer.linear` says. Cost: nothing beyond the pass that collects
ranges. Known failures: one outlier of the calibration data stretches the range for every token; larger numbers saturate
later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pennyweight.formats.passing import Passing, Static
from pennyweight.methods.activations.tiles import check_static, whole_range
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class StaticRange:
    """Cover everything that calibration showed, with one scale for the tensor or one for each channel."""

    name: ClassVar[str] = "static_range"
    paper: ClassVar[str] = "arXiv:1712.05877"
    needs: ClassVar[frozenset[str]] = frozenset({"range"})
    takes: ClassVar[tuple[type[Passing], ...]] = (Passing,)
    over: ClassVar[frozenset[str]] = frozenset({"tensor", "channel"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)

    def fit(self, statistics: Statistics | None, format: Passing) -> Static:
        """The smallest and the largest number become the ends of the codes.

        Raises:
            InvalidMethod: a format whose scales are found as tokens pass.
            MissingStatistics: no ranges were collected.
        """
        check_static(self, format)
        return Static(format, *format.ends(*whole_range(statistics, format)))
