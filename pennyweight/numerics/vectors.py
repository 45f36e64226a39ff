"""Clusters of short vectors: the nearest of a codebook, and codebooks learned by k-means with a mass a coordinate."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

DISTANCES = 1 << 18  # held at once: what stays in the cache is several times as fast
SEEDS = 1 << 14  # vectors that starts are drawn from
SAMPLE = 1 << 15  # vectors that rounds look at


def nearest(
    x: Float[Tensor, "n width"], mass: Float[Tensor, "n width"], codebook: Float[Tensor, "count width"]
) -> Int64[Tensor, " n"]:
    """Of every vector the number of that of least Σ mass · (x − c)²; the first of equals."""
    table = torch.cat([codebook.square(), -2 * codebook], 1).T.contiguous()
    found = torch.empty(len(x), dtype=torch.long)
    for part in _chunks(len(x), len(codebook)):
        found[part] = _least(torch.cat([mass[part], mass[part] * x[part]], 1) @ table)
    return found


def nearest_scaled(
    x: Float[Tensor, "n width"], scale: Float[Tensor, " n"], codebook: Float[Tensor, "count width"]
) -> Int64[Tensor, " n"]:
    """Of every vector the number of that of least |x − scale · c|²; the first of equals."""
    table = torch.cat([codebook.square().sum(1, keepdim=True), -2 * codebook], 1).T.contiguous()
    features = torch.cat([scale.square()[:, None], scale[:, None] * x], 1)
    found = torch.empty(len(x), dtype=torch.long)
    for part in _chunks(len(x), len(codebook)):
        found[part] = _least(features[part] @ table)
    return found


def centres(
    x: Float[Tensor, "n width"],
    mass: Float[Tensor, "n width"],
    codes: Int64[Tensor, " n"],
    before: Float[Tensor, "count width"],
) -> Float[Tensor, "count width"]:
    """Means of the vectors with each code, weighted by mass and summed in float64; what has no mass stays."""
    sums = torch.zeros(len(before), 2 * before.shape[1], dtype=torch.float64)
    sums.index_add_(0, codes, torch.cat([mass, mass * x], 1).double())
    total, moment = sums.chunk(2, 1)
    return torch.where(total > 0, moment / total.clamp(min=1e-300), before.double()).float()


def learned(
    x: Float[Tensor, "n width"], mass: Float[Tensor, "n width"], count: int, rounds: int, generator: Generator
) -> Float[Tensor, "count width"]:
    """A codebook: starts drawn far from one another (k-means++), then Lloyd's rounds on a sample.

    Arthur, Vassilvitskii. k-means++: The Advantages of Careful Seeding. SODA 2007.
    """
    if len(x) > SAMPLE:
        some = torch.randperm(len(x), generator=generator)[:SAMPLE]
        x, mass = x[some], mass[some]
    seeds, weight = x[:SEEDS], mass[:SEEDS]
    codebook = torch.zeros(count, x.shape[1])
    distance = torch.full((len(seeds),), torch.inf)
    for number in range(count):
        odds = weight.sum(1) if number == 0 else distance
        odds = odds if float(odds.sum()) > 0 else torch.ones_like(odds)  # fewer different vectors than count
        codebook[number] = seeds[torch.multinomial(odds, 1, generator=generator)]
        distance = torch.minimum(distance, ((seeds - codebook[number]).square() * weight).sum(1))
    for _ in range(rounds):
        new = centres(x, mass, nearest(x, mass, codebook), codebook)
        if torch.equal(new, codebook):
            break
        codebook = new
    return codebook


def _chunks(total: int, count: int) -> Iterator[slice]:
    step = max(1, DISTANCES // count)
    return (slice(start, start + step) for start in range(0, total, step))


def _least(distances: Float[Tensor, "n count"]) -> Int64[Tensor, " n"]:
    """Where each row is least; numpy's search is four times as fast as torch's."""
    return torch.from_numpy(distances.numpy().argmin(1))
