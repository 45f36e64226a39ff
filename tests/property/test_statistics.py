"""Merging statistics: associative, commutative, and the same as seeing everything at once."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.statistics import Statistics

SIZE = 5


def seen(x: torch.Tensor, gradients: torch.Tensor) -> Statistics:
    return Statistics(
        edge="e", count=len(x), gram=x.T @ x / len(x), mean=x.mean(0), abs_max=x.abs().amax(0),
        fisher=gradients.square().mean(0), fisher_count=len(gradients),
    )  # fmt: skip


def same(a: Statistics, b: Statistics) -> None:
    assert (a.edge, a.count, a.fisher_count) == (b.edge, b.count, b.fisher_count)
    for name in ("gram", "mean", "abs_max", "fisher"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=3, max_size=3), st.integers(0, 2**32))
def test_any_way_of_merging_equals_one_pass(counts: list[tuple[int, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pieces = [
        (torch.randn(n, SIZE, generator=generator) * (i + 1) + i, torch.randn(m, SIZE, generator=generator))
        for i, (n, m) in enumerate(counts)
    ]
    a, b, c = (seen(*piece) for piece in pieces)
    at_once = seen(torch.cat([x for x, _ in pieces]), torch.cat([g for _, g in pieces]))
    for merged in ((a + b) + c, a + (b + c), c + (b + a)):
        same(merged, at_once)
    assert (a + b).require_gram().dtype == torch.float32


@given(st.lists(st.booleans(), min_size=3, max_size=3), st.integers(0, 2**32))
def test_passes_that_saw_different_things_merge_in_any_order(has_fisher: list[bool], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pieces = []
    for both in has_fisher:
        x = seen(torch.randn(4, SIZE, generator=generator), torch.randn(3, SIZE, generator=generator))
        gram = Statistics(edge="e", count=x.count, gram=x.gram, mean=x.mean, abs_max=x.abs_max)
        pieces.append(x if both else gram)
    a, b, c = pieces
    left, right = (a + b) + c, a + (b + c)
    assert left.fisher_count == right.fisher_count == 3 * sum(has_fisher)
    assert (left.fisher is None) is (not any(has_fisher))
    if any(has_fisher):
        torch.testing.assert_close(left.fisher, right.fisher)
    torch.testing.assert_close(left.gram, right.gram)
