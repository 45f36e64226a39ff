"""Probability: estimators against exact values, simulations and the slow way to compute the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from pennyweight.errors import InvalidMeasurement, InvalidMethod
from pennyweight.methods.probability import (
    Brier,
    ExpectedCalibrationError,
    ExpectedShortfall,
    ImportanceSampling,
    TemperatureScaling,
    clopper_pearson,
    upper_bound,
)


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def calibrated(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    q = generator.beta(4, 1, count)
    return q, generator.random(count) < q


@pytest.mark.parametrize(("count", "plug_in"), [(500, 0.047), (2000, 0.024), (10_000, 0.011)])
def test_the_plug_in_error_of_a_calibrated_model_is_not_zero(count: int, plug_in: float) -> None:
    generator, found = draw(1), []
    for _ in range(100):
        result = ExpectedCalibrationError(resamples=100).measure(*calibrated(count, generator))
        found.append((result.plug_in, result.debiased, result.squared))
    mean = np.mean(found, axis=0)
    assert mean[0] == pytest.approx(plug_in, rel=0.06)
    assert mean[1] < 0.7 * mean[0]
    assert abs(mean[2]) < 3 * np.std(found, axis=0)[2] / 10 + 1e-5
    assert abs(mean[2]) < 3e-4


def test_a_shift_of_confidence_is_found_by_every_estimator() -> None:
    generator = draw(2)
    q = generator.uniform(0.5, 0.8, 20_000)
    result = ExpectedCalibrationError().measure(q + 0.1, generator.random(20_000) < q)
    for value in (result.plug_in, result.debiased, result.ks, result.squared**0.5):
        assert value == pytest.approx(0.1, abs=0.012)
    gaps = [point.confidence - point.accuracy for point in result.curve]
    assert all(gap > 0 for gap in gaps)
    assert sum(not point.low <= point.confidence <= point.high for point in result.curve) >= 12


def test_the_curve_by_hand() -> None:
    q = np.array([0.05, 0.15, 0.55, 0.65, 0.75, 0.95])
    y = np.array([0, 0, 1, 0, 1, 1])
    result = ExpectedCalibrationError(bins=2, equal_mass=False).measure(q, y)
    assert [(p.count, p.accuracy) for p in result.curve] == [(2, 0.0), (4, 0.75)]
    assert result.plug_in == pytest.approx(2 / 6 * 0.1 + 4 / 6 * abs(0.725 - 0.75))
    assert result.squared == pytest.approx(2 / 6 * 0.01 + 4 / 6 * (0.025**2 - 0.75 * 0.25 / 3))
    assert result.ks == pytest.approx(max(0.05, 0.2, 0.25, 0.4, 0.15, 0.1) / 6)
    assert (result.curve[1].low, result.curve[1].high) == clopper_pearson(3, 4, 0.95)
    assert result.notes == ()


def test_bins_that_are_too_small_are_merged_and_ties_stay_together() -> None:
    q = np.array([0.1, 0.5, 0.5, 0.5, 0.5, 0.9])
    y = np.array([0, 1, 0, 1, 0, 1])
    width = ExpectedCalibrationError(bins=10, equal_mass=False).measure(q, y)
    assert [p.count for p in width.curve] == [6]
    assert "merged" in width.notes[0]
    generator = draw(3)
    q, y = generator.integers(1, 6, 400) / 6, generator.integers(0, 2, 400)
    one, order = ExpectedCalibrationError().measure(q, y), generator.permutation(400)
    assert len(one.curve) == 5
    other = ExpectedCalibrationError().measure(q[order], y[order])
    assert other.plug_in == pytest.approx(one.plug_in, abs=1e-12)
    assert other.ks == pytest.approx(one.ks, abs=1e-12)
    assert ExpectedCalibrationError().measure(np.full(9, 0.5), np.arange(9) % 2).curve[0].count == 9


def test_clopper_pearson_against_known_values() -> None:
    assert upper_bound(np.array([1.0] * 3 + [0.0] * 497), 0.95)[0] == pytest.approx(0.015434, abs=1e-6)
    assert upper_bound(np.zeros(500), 0.95)[0] == pytest.approx(0.005974, abs=1e-6)
    low, high = clopper_pearson(7, 40, 0.9)
    assert stats.binom.sf(6, 40, low) == pytest.approx(0.05)
    assert stats.binom.cdf(7, 40, high) == pytest.approx(0.05)
    assert clopper_pearson(0, 5, 0.9)[0] == 0
    assert clopper_pearson(5, 5, 0.9)[1] == 1


def test_the_bound_of_fractional_scores_is_never_below_that_of_their_extremes() -> None:
    values = np.array([0.5] * 4 + [0.0] * 96)
    bound, rule = upper_bound(values, 0.95)
    assert rule == "hoeffding"
    assert 0.02 < upper_bound(np.array([1.0, 1.0] + [0.0] * 98), 0.95)[0] < bound < 0.12
    assert upper_bound(np.array([1e-9] + [0.0] * 99), 0.95)[0] == pytest.approx(1 - 0.05**0.01, rel=1e-6)
    assert upper_bound(np.array([0.5]), 0.95)[0] <= 1
    generator, missed = draw(4), 0
    for _ in range(2000):
        missed += upper_bound(generator.choice([0, 0.25, 1.0], 60, p=[0.7, 0.2, 0.1]), 0.9)[0] < 0.15
    assert missed < 0.1 * 2000


STRINGS = list(itertools.product((0, 1), repeat=12))


def chain(target: np.ndarray, other: np.ndarray, mix: float, switch: int) -> np.ndarray:
    """Log-probabilities of all strings of twelve bits whose next bit depends on the last two, mixed bit by bit."""
    logs = []
    for string in STRINGS:
        total, before = 0.0, (0, 0)
        for position, bit in enumerate(string):
            share = mix if position < switch else 0.0
            one = share * other[before] + (1 - share) * target[before]
            total += np.log(one if bit else 1 - one)
            before = (before[1], bit)
        logs.append(total)
    return np.array(logs)


@pytest.mark.parametrize("switch", [5, 12])
def test_importance_sampling_is_unbiased_on_a_chain_that_can_be_enumerated(switch: int) -> None:
    tables = draw(5).uniform(0.1, 0.4, (2, 2))
    target, proposal = chain(tables, tables, 0.0, 0), chain(tables, tables + 0.4, 0.7, switch)
    assert np.exp(target).sum() == pytest.approx(1)
    assert np.exp(proposal).sum() == pytest.approx(1)
    ones = np.array([sum(string) for string in STRINGS])
    bad = np.where(ones >= 8, 1.0, np.where(ones == 7, 0.5, 0.0))
    exact = float(np.exp(target) @ bad)
    assert 1e-4 < exact < 0.05
    generator, estimates, weights = draw(7), [], []
    for _ in range(500):
        drawn = generator.choice(len(proposal), 100, p=np.exp(proposal) / np.exp(proposal).sum())
        result = ImportanceSampling(resamples=2).estimate(target[drawn], proposal[drawn], bad[drawn])
        estimates.append(result.value)
        weights.append(result.mean_weight)
    for values, truth in ((estimates, exact), (weights, 1.0)):
        assert abs(np.mean(values) - truth) < 3 * np.std(values) / 500**0.5
    plain_sd = (float(np.exp(target) @ bad**2) - exact**2) ** 0.5 / 10
    assert np.std(estimates) < plain_sd


def test_equal_proposal_and_target_give_weights_of_one() -> None:
    generator = draw(8)
    logs, bad = -generator.exponential(9, 300), (generator.random(300) < 0.1).astype(float)
    result = ImportanceSampling().estimate(logs, logs, bad)
    assert result.value == bad.mean()
    assert result.effective == pytest.approx(300)
    assert result.mean_weight == 1
    side = 1.96 * (bad.mean() * (1 - bad.mean()) / 300) ** 0.5
    assert result.low == pytest.approx(bad.mean() - side, abs=0.006)
    assert result.high == pytest.approx(bad.mean() + side, abs=0.006)
    assert result.notes == ()


def test_what_weights_cannot_be_trusted_is_said() -> None:
    logs = np.full(100, -5.0)
    nothing = ImportanceSampling().estimate(logs, logs, np.zeros(100))
    assert (nothing.value, nothing.low, nothing.high, nothing.largest_share) == (0, 0, 0, 0)
    assert "says nothing" in nothing.notes[0] or "say nothing" in nothing.notes[0]
    bad = np.zeros(100)
    bad[:3] = 1
    few = ImportanceSampling().estimate(logs, logs, bad)
    assert few.dominated
    assert few.largest_share == pytest.approx(1 / 3)
    missed = ImportanceSampling().estimate(logs - 1, logs, np.ones(100))
    assert any("mean weight" in note for note in missed.notes)
    with pytest.raises(InvalidMeasurement, match="weight"):
        ImportanceSampling().estimate(np.array([-1.0, -1.0]), np.array([-900.0, -1.0]), np.ones(2))
    never = ImportanceSampling().estimate(np.array([-np.inf, -1.0]), np.array([-1.0, -1.0]), np.ones(2))
    assert never.value == 0.5


def test_expected_shortfall_by_hand() -> None:
    x = np.arange(1, 11) / 10
    result = ExpectedShortfall(share=0.25).measure(x, low=0, cap=1)
    assert result.estimate == pytest.approx((1.0 + 0.9 + 0.5 * 0.8) / 2.5)
    assert result.bound == 1  # the band of ten units is wider than the share
    large = ExpectedShortfall(share=1.0, confidence=0.95).measure(np.full(1000, 0.3), low=0, cap=1)
    assert large.estimate == pytest.approx(0.3)
    assert large.bound == pytest.approx(0.3 + 0.7 * np.sqrt(np.log(20) / 2000))


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_the_bound_of_the_expected_shortfall_covers(share: float) -> None:
    law = stats.beta(2, 5)
    edge = law.ppf(1 - share)
    truth = float(law.expect(lambda x: x, lb=edge, ub=1)) / share
    generator, missed, method = draw(9), 0, ExpectedShortfall(share=share, confidence=0.9)
    estimates = []
    for _ in range(2000):
        x = generator.beta(2, 5, 200)
        result = method.measure(x, low=0, cap=1)
        missed += result.bound < truth
        estimates.append(result.estimate)
        if share == 1:
            assert result.estimate < result.bound <= x.mean() + np.sqrt(np.log(10) / 400)  # Hoeffding
    assert missed <= 0.1 * 2000
    assert np.mean(estimates) == pytest.approx(truth, abs=0.01)


def test_the_brier_difference_of_two_classes_is_that_of_one_event() -> None:
    generator = draw(10)
    b, c, y = generator.random(50), generator.random(50), generator.integers(0, 2, 50)
    binary = Brier().measure(b, c, y)
    np.testing.assert_allclose(binary, (c - y) ** 2 - (b - y) ** 2)
    both = Brier().measure(np.stack([1 - b, b], 1), np.stack([1 - c, c], 1), y)
    np.testing.assert_allclose(both, binary, atol=1e-12)
    three = Brier().measure([[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]], [0])
    np.testing.assert_allclose(three, [1.0])
    with pytest.raises(InvalidMeasurement, match="sum to"):
        Brier().measure([[0.5, 0.6]], [[0.5, 0.5]], [0])


def test_the_true_probability_has_the_best_brier_score() -> None:
    generator = draw(11)
    truth = generator.random(20_000)
    y = generator.random(20_000) < truth
    difference = Brier().measure(truth, truth**2, y)
    assert difference.mean() > 4 * difference.std() / 20_000**0.5


def labelled(seed: int, count: int = 600, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax."""
    generator = draw(seed)
    z = generator.normal(0, 1.5, (count, classes))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return z, (p.cumsum(1) < generator.random((count, 1))).sum(1)


def nll(z: np.ndarray, y: np.ndarray, temperature: float) -> float:
    z = z / temperature
    return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), y]).mean())


def test_the_temperature_minimises_the_likelihood() -> None:
    z, y = labelled(12)
    found = TemperatureScaling().fit(z, y)
    assert found == pytest.approx(1, abs=0.15)
    assert nll(z, y, found) <= min(nll(z, y, found * factor) for factor in (0.99, 1, 1.01))
    assert TemperatureScaling().fit(2 * z, y) == pytest.approx(2 * found, rel=1e-6)
    assert TemperatureScaling().fit(30 * z, y) == pytest.approx(30 * found, rel=1e-6)
    assert TemperatureScaling().fit(z / 30, y) == pytest.approx(found / 30, rel=1e-6)
    log_probabilities = torch.tensor(z).log_softmax(-1)
    assert TemperatureScaling().fit(log_probabilities, torch.tensor(y)) == pytest.approx(found, rel=1e-6)
    assert TemperatureScaling().loss(lambda: [(z, y)], 1.7) == pytest.approx(nll(z, y, 1.7))


def test_chunks_give_the_temperature_of_the_whole_in_few_passes() -> None:
    z, y = labelled(13)
    passes = []

    def chunks() -> list[tuple[np.ndarray, np.ndarray]]:
        passes.append(1)
        return [(1.3 * z[i : i + 100].astype(np.float32), y[i : i + 100]) for i in range(0, 600, 100)]

    assert TemperatureScaling().fit_streaming(chunks) == pytest.approx(TemperatureScaling().fit(1.3 * z, y), rel=1e-5)
    assert len(passes) <= 7


def test_matching_the_reference_finds_what_was_done_to_it() -> None:
    z, _ = labelled(14)
    reference = torch.tensor(z).log_softmax(-1)
    assert TemperatureScaling().match(1.25 * z, reference) == pytest.approx(1.25, rel=1e-6)
    noisy = torch.tensor(z + draw(15).normal(0, 0.8, z.shape))
    found = TemperatureScaling().match(noisy, reference)

    def divergence(temperature: float) -> float:
        return float((reference.exp() * (reference - (noisy / temperature).log_softmax(-1))).sum(-1).mean())

    assert divergence(found) <= min(divergence(found * factor) for factor in (0.99, 1.01))
    assert divergence(found) < divergence(1.0)


def test_a_loss_without_minimum_is_refused() -> None:
    z = np.eye(3) * 4.0
    for rows, labels in ((z, [0, 1, 2]), (z, [1, 2, 0]), (np.zeros((3, 3)), [0, 1, 2])):
        with pytest.raises(InvalidMeasurement, match="no temperature"):
            TemperatureScaling().fit(rows, np.array(labels))
    used_up = iter([labelled(16)])
    with pytest.raises(InvalidMeasurement, match="no rows"):
        TemperatureScaling().fit_streaming(lambda: used_up)


def test_hyperparameters_outside_their_range_are_refused() -> None:
    for make in (
        lambda: ExpectedCalibrationError(bins=0), lambda: ExpectedCalibrationError(confidence=1.0),
        lambda: ExpectedShortfall(share=0.0), lambda: ExpectedShortfall(confidence=0.4),
        lambda: ImportanceSampling(resamples=0), lambda: ImportanceSampling(confidence=float("nan")),
        lambda: TemperatureScaling(lowest=0.0), lambda: TemperatureScaling(lowest=3.0, highest=2.0),
    ):  # fmt: skip
        with pytest.raises(InvalidMethod):
            make()
