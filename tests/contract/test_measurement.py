"""Every metric against the contract of its room: two scores a position, nothing worse than oneself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pennyweight import catalogue

METHODS = catalogue.classes("measurement")
every_method = pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)


def scores(seed: int, positions: int = 40, vocabulary: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(positions, vocabulary, generator=generator)
    q = p + torch.randn(positions, vocabulary, generator=generator)
    labels = torch.randint(0, vocabulary, (positions,), generator=generator)
    return p.log_softmax(-1), q.log_softmax(-1), labels


@every_method
def test_it_scores_both_models_at_every_position(kind: type[Any]) -> None:
    p, q, labels = scores(0)
    before = [t.clone() for t in (p, q, labels)]
    first, second = kind().measure(p, q, labels)
    assert first.shape == second.shape == labels.shape
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()
    assert all(torch.equal(a, b) for a, b in zip((p, q, labels), before, strict=True))
    assert kind.unit


@every_method
def test_a_model_is_no_worse_than_itself(kind: type[Any]) -> None:
    p, _, labels = scores(1)
    first, second = kind().measure(p, p.clone(), labels)
    assert torch.equal(first, second)


@every_method
def test_a_worse_model_scores_higher(kind: type[Any]) -> None:
    p, q, _ = scores(2, positions=2000)
    labels = torch.multinomial(p.exp(), 1, generator=torch.Generator().manual_seed(3))[:, 0]
    first, second = kind().measure(p, q, labels)
    assert second.mean() > first.mean()


@every_method
def test_positions_do_not_know_each_other(kind: type[Any]) -> None:
    p, q, labels = scores(4)
    whole = kind().measure(p, q, labels)
    parts = [kind().measure(p[i : i + 7], q[i : i + 7], labels[i : i + 7]) for i in range(0, len(labels), 7)]
    for side in (0, 1):
        torch.testing.assert_close(torch.cat([part[side] for part in parts]), whole[side])
