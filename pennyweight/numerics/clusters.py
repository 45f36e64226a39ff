"""Clusters of numbers on a line: k-means, and a tensor as a sum of parts that each hold one cluster."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDS = 300


def line_means(values: Float[Tensor, " n"], count: int = 3) -> Float[Tensor, " count"]:
    """Means of the clusters that k-means finds, in ascending order, in float64.

    On a line a cluster is a run of the sorted numbers, so a round costs two look-ups a cluster in running sums. The
    start is even quantiles and even steps of the range, and the better end of the two is taken.

    Args:
        values: at least one.
        count: of clusters; some coincide where there are fewer different values.
    """
    ordered = values.double().sort().values
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)])
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    starts = [
        ordered[(share * len(ordered)).long().clamp(max=len(ordered) - 1)],
        ordered[0] + share * (ordered[-1] - ordered[0]),
    ]
    ends = [_settled(ordered, sums, start) for start in starts]
    return min(ends, key=lambda means: float((ordered - means[_nearest(ordered, means)]).square().sum()))


def _settled(ordered: Tensor, sums: Tensor, means: Tensor) -> Tensor:
    for _ in range(ROUNDS):
        cuts = torch.searchsorted(ordered, (means[1:] + means[:-1]) / 2, right=True)
        ends = torch.cat([torch.zeros(1, dtype=torch.long), cuts, torch.tensor([len(ordered)])])
        sizes = ends[1:] - ends[:-1]
        new = torch.where(sizes > 0, (sums[ends[1:]] - sums[ends[:-1]]) / sizes.clamp(min=1), means)
        if torch.equal(new, means):
            break
        means = new
    return means


def _nearest(values: Tensor, means: Tensor) -> Tensor:
    return torch.searchsorted((means[1:] + means[:-1]) / 2, values)


def split_parts(values: Tensor, count: int = 3) -> list[Tensor]:
    """Tensors of the same shape and type, one a cluster, zero outside of it; their sum is the original bit for bit.

    Every number stands in one part alone, and adding zeros to it changes no bit (a negative zero becomes a plain one).

    Args:
        values: of any shape.
        count: of clusters.
    """
    if not values.numel():
        return [values.clone() for _ in range(count)]
    cluster = _nearest(values.double(), line_means(values.flatten(), count))
    return [torch.where(cluster == number, values, torch.zeros_like(values)) for number in range(count)]
