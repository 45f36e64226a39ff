"""Patches with outliers, and widths of feature maps within a memory."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pennyweight.errors import InfeasibleBudget, InvalidMethod
from pennyweight.methods.activations.value_driven import FeatureMap, entropy, losses, outlying, widths

MAPS = (
    FeatureMap(4000, 90_000, {8: 0.0, 4: 0.1, 2: 0.5}),
    FeatureMap(2000, 400_000, {8: 0.0, 4: 0.3, 2: 0.6}),
    FeatureMap(1000, 10_000, {8: 0.0, 4: 0.4, 2: 0.9}),
    FeatureMap(3000, 50_000, {8: 0.0, 4: 0.02, 2: 0.05}),
)


def peak(bits: tuple[int, ...]) -> float:
    sizes = [one.elements * b / 8 for one, b in zip(MAPS, bits, strict=True)]
    return max(a + b for a, b in itertools.pairwise(sizes))


def test_a_patch_with_an_outlier_is_found() -> None:
    x = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    assert not outlying(x, (2, 3)).any()
    x[1, 2, 5, 9] = 40.0
    found = outlying(x, (2, 3))
    assert found.shape == (2, 2, 3)
    assert found.nonzero().tolist() == [[1, 1, 2]]
    with pytest.raises(InvalidMethod, match="divide"):
        outlying(x, (3, 3))


def test_normal_maps_hold_as_many_outliers_as_a_normal_has() -> None:
    x = torch.randn(1, 1, 1000, 1000, generator=torch.Generator().manual_seed(1))
    share = float(outlying(x, (1000, 1000), deviations=2.0).double().mean())
    assert share == pytest.approx(math.erfc(2 / math.sqrt(2)), rel=0.03)


def test_entropy_never_exceeds_the_bits() -> None:
    uniform = torch.linspace(0, 1, 1 << 14)
    for bits in (2, 4, 8):
        assert bits - 0.1 < entropy(uniform, bits) <= bits
    assert entropy(torch.zeros(10), 8) == 0
    assert entropy(torch.tensor([0.0, 1.0]), 8) == pytest.approx(1)


def test_losses_grow_as_bits_shrink() -> None:
    found = losses(torch.randn(5000, generator=torch.Generator().manual_seed(2)))
    assert found[8] == 0 < found[4] < found[2] < 1
    assert losses(torch.zeros(3)) == {8: 0.0, 4: 0.0, 2: 0.0}


def test_the_ends_of_the_balance() -> None:
    """λ = 1: eight bits everywhere; λ = 0: the fewest operations."""
    assert widths(MAPS, memory=math.inf, balance=1) == (8, 8, 8, 8)
    assert widths(MAPS, memory=math.inf, balance=0) == (2, 2, 2, 2)


@pytest.mark.parametrize("balance", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("memory", [1500, 2200, 3000, 4500, 6000])
def test_memory_is_kept(balance: float, memory: float) -> None:
    bits = widths(MAPS, memory=memory, balance=balance)
    assert peak(bits) <= memory
    if balance == 1:  # nothing could be wider by itself
        for i, one in enumerate(bits):
            wider = [b for b in (4, 8) if b > one]
            assert all(peak((*bits[:i], b, *bits[i + 1 :])) > memory for b in wider)


def test_without_a_limit_every_map_gets_its_best_score() -> None:
    total = sum(one.products * 64 for one in MAPS)
    expected = tuple(
        max(one.losses, key=lambda b, one=one: -0.5 * one.losses[b] + 0.5 * one.products * (8 - b) * 8 / total)
        for one in MAPS
    )
    assert widths(MAPS, memory=math.inf) == expected
    assert len(set(expected)) > 1


def test_what_does_not_fit_is_said_with_the_least_that_does() -> None:
    with pytest.raises(InfeasibleBudget, match="1500 bytes"):
        widths(MAPS, memory=1499)
    with pytest.raises(InvalidMethod, match="balance"):
        widths(MAPS, memory=1e9, balance=1.5)
