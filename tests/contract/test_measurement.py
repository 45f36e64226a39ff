"""Every metric against the contract of its room: two scores a unit, within its limits, nothing worse than oneself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pennyweight import catalogue
from pennyweight.task import Answers, Question

METHODS = catalogue.classes("measurement")
ROUNDING = 1e-6  # kl is left as float32 sums it
every_method = pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
every_token_method = pytest.mark.parametrize(
    "kind", [kind for kind in METHODS if kind.reads == "tokens"], ids=lambda kind: kind.name
)
Case = tuple[Any, Any, Any]


def tokens(seed: int, positions: int = 40, vocabulary: int = 30) -> Case:
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(positions, vocabulary, generator=generator)
    q = p + torch.randn(positions, vocabulary, generator=generator)
    labels = torch.randint(0, vocabulary, (positions,), generator=generator)
    return p.log_softmax(-1), q.log_softmax(-1), labels


def choices(seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    texts = ("a", "tree", "übel", "日本の首都")
    question = Question(question="Which?", choices=texts, answer=seed % 4)
    p = 5 * torch.randn(4, generator=generator)
    q = p + 5 * torch.randn(4, generator=generator)
    return Answers.of_choices(p.tolist(), texts), Answers.of_choices(q.tolist(), texts), question


def text(seed: int) -> Case:
    said = [" Paris", "Rome", "", "paris.", "It is Paris"]
    return (
        Answers(text=said[seed % 5]),
        Answers(text=said[seed // 5 % 5]),
        Question(question="The capital of France is", answer="Paris"),
    )


def outputs(seed: int, kind: type[Any]) -> Case:
    generator = torch.Generator().manual_seed(seed)
    shape = (7, 5) if kind.name == "ranking" else (6,)
    p = torch.randn(shape, generator=generator)
    return p, p + torch.randn(shape, generator=generator), seed % 6


def case(kind: type[Any], seed: int) -> Case:
    made: dict[str, Callable[[int], Case]] = {
        "tokens": tokens, "choices": choices, "text": text, "outputs": lambda seed: outputs(seed, kind),
    }  # fmt: skip
    return made[kind.reads](seed)


def numbers(pair: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    first, second = (torch.as_tensor(side, dtype=torch.float64) for side in pair)
    return first, second


@every_method
def test_it_says_what_certification_needs_to_know(kind: type[Any]) -> None:
    assert kind.reads in {"tokens", "choices", "text", "outputs"}
    assert kind.unit
    assert kind.growth in (0.5, 1.0)
    assert kind.phrase.format(bound="2 %").count("2 %") == 1
    assert isinstance(kind.percent, bool)
    for limit in (kind.lower, kind.upper):
        assert limit is None or isinstance(limit, float)


@every_method
def test_degradations_lie_within_the_limits(kind: type[Any]) -> None:
    seen = []
    for seed in range(25):
        first, second = numbers(kind().measure(*case(kind, seed)))
        assert first.shape == second.shape
        assert torch.isfinite(first).all()
        assert torch.isfinite(second).all()
        seen.append((second - first).reshape(-1))
    degradation = torch.cat(seen)
    assert kind.lower is None or degradation.min() >= kind.lower - ROUNDING
    assert kind.upper is None or degradation.max() <= kind.upper + ROUNDING
    assert degradation.max() > 0, "nothing was measured"


@every_method
def test_arguments_are_not_touched(kind: type[Any]) -> None:
    given = case(kind, 3)
    before = copy.deepcopy(given)
    kind().measure(*given)
    for one, other in zip(given, before, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@every_method
def test_a_model_is_no_worse_than_itself(kind: type[Any]) -> None:
    for seed in range(5):
        one, _, what = case(kind, seed)
        first, second = numbers(kind().measure(one, copy.deepcopy(one), what))
        assert torch.equal(first, second)


@every_token_method
def test_it_scores_both_models_at_every_position(kind: type[Any]) -> None:
    p, q, labels = tokens(0)
    first, second = kind().measure(p, q, labels)
    assert first.shape == second.shape == labels.shape


@every_token_method
def test_a_worse_model_scores_higher(kind: type[Any]) -> None:
    p, q, _ = tokens(2, positions=2000)
    labels = torch.multinomial(p.exp(), 1, generator=torch.Generator().manual_seed(3))[:, 0]
    first, second = kind().measure(p, q, labels)
    assert second.mean() > first.mean()


@every_token_method
def test_positions_do_not_know_each_other(kind: type[Any]) -> None:
    p, q, labels = tokens(4)
    whole = kind().measure(p, q, labels)
    parts = [kind().measure(p[i : i + 7], q[i : i + 7], labels[i : i + 7]) for i in range(0, len(labels), 7)]
    for side in (0, 1):
        torch.testing.assert_close(torch.cat([part[side] for part in parts]), whole[side])


@every_token_method
def test_the_degradation_grows_with_the_divergence_as_declared(kind: type[Any]) -> None:
    """KL is quadratic in a small change of the logits, so a change twice as large does 4 ** growth as much harm."""
    generator = torch.Generator().manual_seed(5)
    p = torch.randn(20_000, 12, generator=generator, dtype=torch.float64)
    noise = torch.randn(20_000, 12, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(p.softmax(-1), 1, generator=generator)[:, 0]
    found = []
    for size in (0.05, 0.1):
        sides = []
        for sign in (1, -1):  # together they remove what the label drawn contributes in the first order
            first, second = kind().measure(p.log_softmax(-1), (p + sign * size * noise).log_softmax(-1), labels)
            sides.append((second - first).mean())
        found.append(float(sum(sides)))
    assert found[1] / found[0] == pytest.approx(4**kind.growth, rel=0.1)
