"""Static scales for groups of heads and groups of their channels: inputs of state-space layers.

Source: Chiang et al. Quamba2. ICML 2025. arXiv:2503.22879. Which channels of a selective scan's input are large is the
same for all tokens: inside every head channels are sorted by size, heads with like profiles are clustered (Ward), and
in each cluster of heads the sorted channels are cut into groups by k-means; every pair of groups has one int8 scale.
Departs from it: a channel's size is the largest number seen and not the largest of means over a sample, so that a
group's scale follows from the same numbers and nothing that was seen saturates; k-means starts from quantiles.

When: inputs of scans (x of Mamba2), one scale of which is too coarse; what is scanned is not summed over channels, so
scales of channels are legal. `order` is the permutation that makes groups neighbours, to be folded into the layer
before it and the norm after; heads may only change places within the state group they share. Cost: seconds. Known
failures: it can only be as good as `channel`, with 16 scales instead of one a channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats.passing import Passing, Static
from pennyweight.methods.activations.tiles import check_static, whole_range
from pennyweight.numerics.clusters import line_means
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class SortAndCluster:
    """One scale for every group of channels of every group of heads.

    Args:
        heads: of the state-space layer; they divide the channels.
        head_groups: clusters of heads, at most.
        channel_groups: groups of channels in a head, at most.
    """

    name: ClassVar[str] = "sort_and_cluster"
    paper: ClassVar[str] = "arXiv:2503.22879"
    needs: ClassVar[frozenset[str]] = frozenset({"range"})
    takes: ClassVar[tuple[type[Passing], ...]] = (Passing,)
    over: ClassVar[frozenset[str]] = frozenset({"clusters"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    heads: int = 8
    head_groups: int = 4
    channel_groups: int = 4

    def __post_init__(self) -> None:
        if min(self.heads, self.head_groups, self.channel_groups) < 1:
            raise InvalidMethod(
                f"heads={self.heads!r}, head_groups={self.head_groups!r}, channel_groups={self.channel_groups!r}",
                expected="one at least of each", mend="sort_and_cluster(heads=8)", site=self.name,
            )  # fmt: skip

    def fit(self, statistics: Statistics | None, format: Passing) -> Static:
        """Cluster, and give every group the range of its channels.

        Raises:
            InvalidMethod: heads do not divide the channels, or another way of sharing scales.
            MissingStatistics: no ranges were collected.
        """
        check_static(self, format)
        low, high = whole_range(statistics, format)
        groups = self.groups(torch.maximum(-low, high))
        count = int(groups.max()) + 1
        ends = (
            torch.zeros(count).scatter_reduce(0, groups, extreme, kind)
            for extreme, kind in ((low, "amin"), (high, "amax"))
        )
        scale, zero = format.ends(*ends)
        return Static(format, scale[groups], None if zero is None else zero[groups])

    def groups(self, sizes: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The group of every channel, numbered by cluster of heads, then by size.

        Raises:
            InvalidMethod: heads do not divide the channels.
        """
        if len(sizes) % self.heads:
            raise InvalidMethod(
                f"{len(sizes)} channels of {self.heads} heads", expected="heads that divide the channels",
                mend="sort_and_cluster(heads=...)", site=self.name,
            )  # fmt: skip
        profiles = sizes.double().reshape(self.heads, -1).sort(1)
        found = torch.zeros(self.heads, profiles.values.shape[1], dtype=torch.long)
        for number, cluster in enumerate(self._clusters(profiles.values)):
            mean = profiles.values[cluster].mean(0)
            means = line_means(mean, min(self.channel_groups, len(mean)))
            group = torch.searchsorted((means[1:] + means[:-1]) / 2, mean)
            ranked = (number * self.channel_groups + group).expand(len(cluster), -1)
            found[cluster] = torch.zeros_like(ranked).scatter(1, profiles.indices[cluster], ranked)
        return found.flatten()

    def order(self, sizes: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The permutation of channels that keeps heads whole and makes groups neighbours inside every head."""
        profiles = sizes.double().reshape(self.heads, -1).sort(1).indices
        heads = torch.cat(self._clusters(sizes.double().reshape(self.heads, -1).sort(1).values))
        return (heads[:, None] * profiles.shape[1] + profiles[heads]).flatten()

    def _clusters(self, profiles: Float[Tensor, "heads channels"]) -> list[Int[Tensor, " some"]]:
        """Heads with like profiles, in order of their first head."""
        if self.heads == 1:
            return [torch.zeros(1, dtype=torch.long)]
        shapes = profiles / profiles.norm(dim=1, keepdim=True).clamp(min=1e-12)
        label = torch.from_numpy(fcluster(linkage(shapes.numpy(), "ward"), self.head_groups, "maxclust"))
        return [torch.nonzero(label == one).flatten() for one in dict.fromkeys(label.tolist())]
