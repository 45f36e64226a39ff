"""Statistics of an edge: merging counts right, and asking for what is not there."""

from __future__ import annotations

import pytest
import torch

from pennyweight.errors import MissingStatistics
from pennyweight.statistics import Statistics


def test_means_are_weighted_by_their_counts() -> None:
    a = Statistics(
        edge="e", count=1, gram=torch.full((1, 1), 4.0), mean=torch.tensor([2.0]), abs_max=torch.tensor([2.0])
    )
    b = Statistics(
        edge="e", count=3, gram=torch.full((1, 1), 8.0), mean=torch.tensor([6.0]), abs_max=torch.tensor([1.0])
    )
    both = a + b
    assert both.count == 4
    assert both.gram is not None
    assert both.mean is not None
    assert both.abs_max is not None
    assert float(both.gram) == 7
    assert float(both.mean) == 5
    assert float(both.abs_max) == 2


def test_gram_and_fisher_of_two_passes_come_together() -> None:
    gram = Statistics(edge="e", count=100, gram=torch.eye(2))
    fisher = Statistics(edge="e", count=0, fisher=torch.tensor([1.0, 2.0]), fisher_count=8)
    more = Statistics(edge="e", count=0, fisher=torch.tensor([4.0, 5.0]), fisher_count=16)
    for both in (gram + fisher + more, more + (gram + fisher)):
        assert (both.count, both.fisher_count) == (100, 24)
        assert torch.equal(both.require_gram(), torch.eye(2))
        torch.testing.assert_close(both.require_fisher(), torch.tensor([3.0, 4.0]))


def test_other_edges_do_not_add_up() -> None:
    with pytest.raises(ValueError, match=r"a\.b:input.*c:output"):
        Statistics(edge="a.b:input", count=1) + Statistics(edge="c:output", count=1)


def test_missing_statistics_name_the_edge_and_the_need() -> None:
    empty = Statistics(edge="a.b:input", count=0)
    with pytest.raises(MissingStatistics, match=r"a\.b:input.*gram"):
        empty.require_gram()
    with pytest.raises(MissingStatistics, match=r"a\.b:input.*sensitivity"):
        empty.require_fisher()


def test_merging_writes_to_neither() -> None:
    a = Statistics(edge="e", count=2, gram=torch.eye(2))
    b = Statistics(edge="e", count=2, gram=3 * torch.eye(2))
    assert torch.equal((a + b).require_gram(), 2 * torch.eye(2))
    assert torch.equal(a.require_gram(), torch.eye(2))
    assert torch.equal(b.require_gram(), 3 * torch.eye(2))
