"""Static scales for runs of neighbouring channels: B and C of state-space layers, one scale a state group.

Source: Chiang et al. Quamba2. ICML 2025. arXiv:2503.22879: heads of a group share their B and C, so the channels of a
state group share a scale; x gets that of `sort_and_cluster`, all else one a tensor.
Departs from it: ranges cover everything that was seen, as in `static_range`. The permutation that the source folds into
weights (rows of in_proj, channels of the convolution, A_log, D, dt_bias, the norm's gain, columns of out_proj) is not
made: which tensors belong to a head is not found by watching the network, so here a scale serves channels where they
are. Weights of such a layer are rounded by any quantizer.

When: B and C of Mamba2 with more than one group; what is scanned is not summed over channels, so scales of groups are
legal. Cost: none beside the observation. Known failures: with one group it is `static_range` over the tensor; on a
small Mamba2 trained on bytes B and C gain a hundredth by it, and what x gains by clusters is a factor of five
(`benchmarks/results/shelf_scans.json`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pennyweight.errors import InvalidMethod
from pennyweight.formats.passing import Passing, Static
from pennyweight.methods.activations.tiles import check_static, whole_range
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class StateGroups:
    """One scale for every run of channels, all runs of one length.

    Args:
        groups: runs; they divide the channels.
    """

    name: ClassVar[str] = "state_groups"
    paper: ClassVar[str] = "arXiv:2503.22879"
    needs: ClassVar[frozenset[str]] = frozenset({"range"})
    takes: ClassVar[tuple[type[Passing], ...]] = (Passing,)
    over: ClassVar[frozenset[str]] = frozenset({"clusters"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    groups: int = 8

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise InvalidMethod(
                f"groups={self.groups!r}", expected="one at least", mend="state_groups(groups=8)", site=self.name
            )

    def fit(self, statistics: Statistics | None, format: Passing) -> Static:
        """Give every run the range of its channels.

        Raises:
            InvalidMethod: groups do not divide the channels, or another way of sharing scales.
            MissingStatistics: no ranges were collected.
        """
        check_static(self, format)
        low, high = whole_range(statistics, format)
        if len(low) % self.groups:
            raise InvalidMethod(
                f"{len(low)} channels of {self.groups} groups", expected="groups that divide the channels",
                mend="state_groups(groups=...)", site=self.name,
            )  # fmt: skip
        runs = len(low) // self.groups
        scale, zero = format.ends(low.reshape(-1, runs).amin(1), high.reshape(-1, runs).amax(1))
        spread = [None if one is None else one.repeat_interleave(runs) for one in (scale, zero)]
        assert spread[0] is not None
        return Static(format, spread[0], spread[1])
