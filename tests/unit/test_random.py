"""Streams: the same for the same purpose, another for any other, and the same in ten years."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from pennyweight.numerics.random import derived_seed, permutation, stream


def test_the_numbers_never_change() -> None:
    """Certificates name an order by its seed: whoever changes these numbers breaks every certificate there is."""
    assert derived_seed(0) == 3456079177858693020
    assert derived_seed(7, "model.layers.0", "gptq") == 634143933014134500
    assert permutation(8, 7, "order").tolist() == [3, 6, 0, 5, 1, 4, 7, 2]


def test_a_stream_depends_on_its_names_alone() -> None:
    torch.rand(3)  # whatever was drawn from the global stream does not matter
    first = torch.rand(5, generator=stream(3, "a", "b"))
    assert torch.equal(first, torch.rand(5, generator=stream(3, "a", "b")))
    state = torch.random.get_rng_state()
    stream(3, "a")
    assert torch.equal(state, torch.random.get_rng_state())


def test_other_purposes_get_other_streams() -> None:
    purposes = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "ab"), (0, "b", "a"), (0, "a", "b", ""), ("0 a",)]
    seeds = [derived_seed(seed, *names) for seed, *names in purposes]  # type: ignore[arg-type]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    drawn = [torch.rand(1000, generator=stream(seed, "x")) for seed in range(4)]
    for a, b in itertools.combinations(drawn, 2):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.15


def test_permutations_are_permutations_and_uniform() -> None:
    for count in (0, 1, 2, 97):
        assert sorted(permutation(count, 5, "x").tolist()) == list(range(count))
    firsts = np.bincount([permutation(4, seed, "x")[0] for seed in range(2000)], minlength=4)
    assert (abs(firsts - 500) < 100).all()  # five standard deviations
