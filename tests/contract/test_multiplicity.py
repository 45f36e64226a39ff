"""Every rule of the room against its contract: family-wise error at most alpha, whatever the dependence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pennyweight import catalogue
from pennyweight.errors import InvalidBudget, InvalidMeasurement
from pennyweight.methods.multiplicity import AlphaLedger, AlphaSplit, FixedSequence, LearnThenTest

METHODS = catalogue.classes("multiplicity")
VARIANTS = [
    *(kind() for kind in METHODS),
    AlphaLedger(reserve=True),
    AlphaSplit(weights=(8, 4, 2, 1, 1, 1, 1, 1)),
    FixedSequence(starts=3),
    LearnThenTest(method=FixedSequence(starts=2)),
]
every_rule = pytest.mark.parametrize("rule", VARIANTS, ids=str)
ALPHA, RUNS, K = 0.05, 4000, 8
ALLOWED = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)


def p_values(kind: str, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """P-values `[RUNS, K]` and which of the K nulls are true."""
    uniform, one = generator.random((RUNS, K)), generator.random((RUNS, 1))
    true = np.ones(K, dtype=bool)
    if kind == "independent":
        return uniform, true
    if kind == "equal":
        return np.broadcast_to(one, uniform.shape).copy(), true
    if kind == "exclusive":  # at most one p-value in K is small: Bonferroni's inequality becomes an equality
        return (one + np.arange(K) / K) % 1.0, true
    true[::2] = False  # half of the nulls are false, and rejected at any level: a step-down rule moves on
    return np.where(true, uniform if kind == "half independent" else one, 0.0), true


@every_rule
@pytest.mark.parametrize("kind", ["independent", "equal", "exclusive", "half independent", "half equal"])
def test_a_true_null_is_rejected_with_probability_alpha_at_most(rule: Any, kind: str) -> None:
    p, true = p_values(kind, np.random.default_rng(0))
    rejected = np.stack([rule.rejected(row, ALPHA) for row in p])
    assert rejected[:, true].any(axis=1).mean() <= ALLOWED


def test_no_correction_at_all_is_far_beyond_what_is_allowed() -> None:
    p, _ = p_values("independent", np.random.default_rng(0))
    assert (p <= ALPHA).any(axis=1).mean() > 0.3


@every_rule
def test_a_smaller_p_value_never_takes_a_rejection_back(rule: Any) -> None:
    generator = np.random.default_rng(1)
    for _ in range(300):
        p = generator.random(K) ** 4 * 0.2
        before, lower = rule.rejected(p, ALPHA), p.copy()
        lower[generator.integers(K)] *= generator.random()
        assert not (before & ~rule.rejected(lower, ALPHA)).any()


@every_rule
def test_a_larger_alpha_never_takes_a_rejection_back(rule: Any) -> None:
    generator = np.random.default_rng(2)
    for _ in range(300):
        p = generator.random(K) ** 4 * 0.2
        assert not (rule.rejected(p, 0.01) & ~rule.rejected(p, 0.05)).any()


@every_rule
def test_certainty_is_rejected_and_no_evidence_is_not(rule: Any) -> None:
    assert rule.rejected(np.zeros(K), ALPHA).all()
    assert not rule.rejected(np.ones(K), ALPHA).any()
    assert not rule.rejected(np.full(K, 1e-6), 1e-9).any()


@every_rule
def test_the_answer_is_one_truth_value_a_hypothesis(rule: Any) -> None:
    p = np.random.default_rng(3).random(K) * 0.02
    p.flags.writeable = False
    kept = p.copy()
    result = rule.rejected(p, ALPHA)
    assert result.shape == (K,)
    assert result.dtype == np.bool_
    np.testing.assert_array_equal(p, kept)
    np.testing.assert_array_equal(rule.rejected(p, ALPHA), result)
    np.testing.assert_array_equal(rule.rejected(p.tolist(), ALPHA), result)


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
def test_one_hypothesis_and_very_many(kind: Any) -> None:
    assert kind().rejected(np.array([0.02]), ALPHA).tolist() == [True]
    assert kind().rejected(np.array([0.06]), ALPHA).tolist() == [False]
    assert kind().rejected(np.random.default_rng(4).random(20_000), ALPHA).sum() <= 2


@every_rule
@pytest.mark.parametrize("wrong", [math.nan, -0.1, 1.1, math.inf])
def test_numbers_that_are_no_p_values_are_refused(rule: Any, wrong: float) -> None:
    p = np.full(K, 0.5)
    p[3] = wrong
    with pytest.raises(InvalidMeasurement, match="p-value 3"):
        rule.rejected(p, ALPHA)


@every_rule
@pytest.mark.parametrize("shape", [(0,), (), (2, 2, 2)])
def test_arrays_that_are_no_list_of_hypotheses_are_refused(rule: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidMeasurement):
        rule.rejected(np.full(shape, 0.01), ALPHA)


@every_rule
@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.05, 1.5, math.nan, math.inf])
def test_levels_that_mean_nothing_are_refused(rule: Any, alpha: float) -> None:
    with pytest.raises(InvalidBudget):
        rule.rejected(np.full(K, 0.01), alpha)
