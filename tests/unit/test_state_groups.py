"""Scales of state groups: between one for all and one for every channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import passing
from pennyweight.methods.activations import StateGroups, StaticRange
from pennyweight.statistics import Statistics

CLUSTERS, TENSOR, CHANNEL = (passing.parse(f"int8 {over}") for over in ("clusters", "tensor", "channel"))


def scanned() -> Tensor:
    """Eight groups of sixteen channels, of sizes between 1 and 40 by group and between 1 and 2 inside."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(0, 1.6, 8)[torch.randperm(8, generator=generator)].repeat_interleave(16)
    sizes = sizes * (1 + torch.rand(128, generator=generator))
    return (torch.rand(256, 128, generator=generator) * 2 - 1) * sizes


def seen(x: Tensor) -> Statistics:
    return Statistics(edge="edge", count=len(x), low=x.amin(0), high=x.amax(0))


def test_its_ends_are_one_scale_and_one_a_channel() -> None:
    x = scanned()
    one = StateGroups(groups=1).fit(seen(x), CLUSTERS)
    assert torch.equal(one.rounded(x), StaticRange().fit(seen(x), TENSOR).rounded(x))
    all_of_them = StateGroups(groups=128).fit(seen(x), CLUSTERS)
    assert torch.equal(all_of_them.rounded(x), StaticRange().fit(seen(x), CHANNEL).rounded(x))


def test_a_scale_covers_its_group_alone() -> None:
    x = scanned()
    scale = StateGroups().fit(seen(x), CLUSTERS).scale.reshape(8, 16)
    assert bool((scale == scale[:, :1]).all())
    torch.testing.assert_close(scale[:, 0], x.abs().reshape(256, 8, 16).amax((0, 2)) / 127)


def test_groups_are_worth_it_where_they_differ() -> None:
    x = scanned()

    def error(method: StateGroups | StaticRange, format: passing.Passing) -> float:
        return float((method.fit(seen(x), format).rounded(x) - x).square().sum())

    grouped, tensor = error(StateGroups(), CLUSTERS), error(StaticRange(), TENSOR)
    assert grouped < 0.25 * tensor
    assert grouped < 3 * error(StaticRange(), CHANNEL)


def test_groups_divide_the_channels() -> None:
    with pytest.raises(InvalidMethod, match="128 channels of 7 groups"):
        StateGroups(groups=7).fit(seen(scanned()), CLUSTERS)
    with pytest.raises(InvalidMethod):
        StateGroups(groups=0)
    with pytest.raises(InvalidMethod, match="does not choose"):
        StateGroups().fit(seen(scanned()), TENSOR)
