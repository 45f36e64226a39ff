"""Every token is rounded over its own range, found as it passes: nothing to calibrate.

Source: Yao et al. ZeroQuant. NeurIPS 2022. arXiv:2206.01861 (tokens); FlexQ. 2025. arXiv:2508.04405 (six bits in groups
of 128 channels); Kurtic et al. "Give Me BF16 or Give Me Death"? 2024. arXiv:2411.02355 (int8 and FP8, the recipes that
hold up).
Departs from it: nothing; ranges include zero, and a token of zeros has a scale of one.

When: the first choice wherever the engine has it. On SmolLM2 (`benchmarks/results/activations.json`) `int8 token` adds
.031 to the KL of int8 weights, `int8 token asym` .015, `fp8 e4m3 token` .011 to that of FP8 weights; the best static
int8 scale adds .58. Groups of 64 make six bits usable (W6A6 .089; .48 with a scale a token). A zero point costs a row
sum of the weights, which is stored once. Cost: one more pass over every activation at run time. Known failures: massive
numbers in a few channels of some tokens (down projections of gated layers) take the range of their token; eight bits
there help tokens (.36) more than groups (.079). `int4 token` asks for a rotation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pennyweight.formats import passing
from pennyweight.formats.passing import Passing
from pennyweight.methods.activations.tiles import check_static
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    """A scale for every token, or for every group of its channels, from the numbers themselves."""

    name: ClassVar[str] = "dynamic"
    paper: ClassVar[str] = "arXiv:2206.01861"
    needs: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[tuple[type[Passing], ...]] = (Passing,)
    over: ClassVar[frozenset[str]] = frozenset({"token", "group"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)

    def fit(self, statistics: Statistics | None, format: Passing) -> passing.Dynamic:
        """Statistics are not looked at.

        Raises:
            InvalidMethod: a format whose scales are fixed beforehand.
        """
        check_static(self, format)
        return passing.Dynamic(format)
