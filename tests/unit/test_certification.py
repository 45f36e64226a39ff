"""Certification: published vectors, closed forms, and simulated error rates."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from pennyweight import catalogue
from pennyweight.budget import Budget, Measurement, Terms
from pennyweight.errors import InfeasibleBudget, InvalidBudget, InvalidMeasurement
from pennyweight.methods.certification import (
    PlannedMixture,
    by_document,
    certify,
    choose_cap,
    choose_terms,
    clustered_bound,
    decide,
    needed_windows,
    smallest_margin,
    tail_bound,
)

ENGINE = PlannedMixture()
TERMS = Terms(
    margin=0.02, cap=0.25, pilot_mean=0.003, pilot_sd=0.016, alpha=0.05, tail_alpha=0.01, population=None, n_max=1000
)
VECTOR = np.array([(((7 * i) % 11) - 5) / 200 + 0.003 for i in range(1, 41)])


def terms(**changes):
    return dataclasses.replace(TERMS, **changes)


def measured(x, *, windows=None, documents=None, metric="perplexity"):
    x = np.asarray(x, dtype=float)
    return Measurement(
        metric=metric,
        unit="nats per token",
        reference=np.zeros(len(x)),
        compressed=x,
        drawn=np.arange(len(x)) if windows is None else np.asarray(windows),
        documents=np.arange(len(x)) if documents is None else np.asarray(documents),
        tokens=255,
        fingerprint="f",
    )


# --- the engine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("population", "count", "log_wealth", "bound"),
    [
        (None, 10, 0.405499, 0.108909),
        (None, 20, 0.903086, 0.051960),
        (None, 40, 2.021773, 0.026818),
        (60, 10, 0.436610, 0.101109),
        (60, 20, 1.097739, 0.044040),
        (60, 40, 3.448734, 0.018064),
    ],
)
def test_reference_values(population, count, log_wealth, bound):
    chosen, x = terms(population=population), VECTOR[:count]
    assert ENGINE.start(chosen).update(x).log_wealth == pytest.approx(log_wealth, abs=5e-7)
    assert ENGINE.bound(x, chosen) == pytest.approx(bound, abs=5e-7)


def test_first_certification_of_the_reference_values():
    assert ENGINE.certify_at(VECTOR, terms()) is None
    assert ENGINE.certify_at(VECTOR, terms(population=60)) == 38


def test_bets_of_the_reference_values():
    bets, weights = ENGINE.bets(TERMS)
    assert bets[1] == pytest.approx(4.3043478, abs=5e-8)
    assert bets[0] == bets[1] / 2
    np.testing.assert_allclose(bets[2:], 0.99 / 0.25 * np.array([1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64]))
    np.testing.assert_allclose(weights, [0.4, 0.4] + [0.2 / 7] * 7)


def test_a_pilot_above_the_margin_leaves_the_dyadic_bets():
    bets, weights = ENGINE.bets(terms(pilot_mean=0.03))
    assert len(bets) == 7
    assert bets.min() > 0
    assert weights.sum() == pytest.approx(1)


def test_first_wealth_is_one_and_nothing_is_claimed_of_no_data():
    assert ENGINE.start(TERMS).log_wealth == pytest.approx(0, abs=1e-12)
    assert ENGINE.bound(np.empty(0), TERMS) == TERMS.cap
    assert ENGINE.bound(np.empty(0), terms(population=60)) == TERMS.cap


@pytest.mark.parametrize("population", [None, 20_000])
def test_path_is_what_single_updates_give(population):
    x = np.random.default_rng(0).normal(0.004, 0.03, 9000)  # longer than one chunk
    state = ENGINE.start(terms(population=population))
    path = state.path(x)
    for start, stop in [(0, 1), (1, 100), (100, 8500), (8500, 9000)]:
        state = state.update(x[start:stop])
        assert state.log_wealth == pytest.approx(path[stop - 1], abs=1e-10)
    assert state.count == 9000


def test_all_zero_indicators_have_a_closed_form():
    engine, chosen = PlannedMixture(dyadic=1, planned=0.0), terms(cap=1.0)
    for n in (10, 100, 1000):
        assert engine.bound(np.zeros(n), chosen) == pytest.approx((20 ** (1 / n) - 1) / 0.99, rel=1e-9)
    assert 1000 * engine.bound(np.zeros(1000), chosen) == pytest.approx(3.03, abs=0.01)


@pytest.mark.parametrize("value", [-0.01, 0.0, 0.01, 0.2])
def test_constant_data_pull_the_bound_to_their_value(value):
    gaps = [ENGINE.bound(np.full(n, value), TERMS) - value for n in (100, 1000, 10_000)]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 5e-4


def test_values_above_the_cap_count_as_the_cap():
    assert ENGINE.bound(np.append(VECTOR, 99.0), TERMS) == ENGINE.bound(np.append(VECTOR, TERMS.cap), TERMS)


def test_a_mean_the_population_cannot_reach_is_ruled_out():
    chosen = terms(population=60, pilot_mean=0.0)
    seen = ENGINE.start(chosen, mean=0.1).update(np.full(40, 0.0))  # 20 windows at the cap would make a mean of .0833
    assert seen.log_wealth == math.inf
    # 60 * .1 needs 24 windows at the cap, so the 37th window at zero rules it out
    path = ENGINE.start(chosen, mean=0.1).path(np.full(40, 0.0))
    assert np.flatnonzero(np.isinf(path))[0] + 1 == 37
    assert ENGINE.start(chosen, mean=0.083).update(np.full(40, 0.0)).log_wealth < math.inf


def test_a_population_at_the_cap_is_never_ruled_out_by_rounding():
    x = np.full(100_000, 0.3)  # 0.3 has no finite binary expansion: the sums are off by rounding
    chosen = terms(population=len(x), cap=0.3, margin=0.02)
    assert ENGINE.start(chosen, mean=0.3).path(x).max() < -math.log(0.05)


def test_full_pass_gives_the_mean_itself():
    assert ENGINE.bound(VECTOR, terms(population=40)) == pytest.approx(0.003875, rel=1e-15)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(InvalidMeasurement):
        ENGINE.start(TERMS).update(np.array([0.0, value]))
    with pytest.raises(InvalidMeasurement):
        ENGINE.bound(np.array([0.0, value]), TERMS)


def test_more_windows_than_the_population_are_refused():
    with pytest.raises(InvalidMeasurement, match="41 windows"):
        ENGINE.start(terms(population=40)).update(VECTOR).update(np.zeros(1))


@pytest.mark.parametrize("changes", [{"cap": 0.02}, {"cap": -1.0, "margin": -2.0}, {"cap": math.inf}, {"alpha": 0.0}])
def test_terms_that_leave_nothing_to_bet_on_are_refused(changes):
    with pytest.raises(InvalidBudget):
        ENGINE.bets(terms(**changes))


# --- error rates: the true mean is the margin, so every certificate is false -----------------------------------------

PATHS, UNITS = 1000, 1000
ALLOWED = 0.05 + 3 * math.sqrt(0.05 * 0.95 / PATHS)


def false_certificates(paths, chosen):
    return np.mean([ENGINE.certify_at(x, chosen) is not None for x in paths])


def test_false_certificates_of_independent_windows():
    generator = np.random.default_rng(1)
    chosen = terms(margin=0.02, pilot_mean=0.0, pilot_sd=0.14, cap=1.0)
    rate = false_certificates(generator.random((PATHS, UNITS)) < 0.02, chosen)
    assert 0.005 < rate <= ALLOWED  # a rate near zero would mean that the engine never bets


def test_false_certificates_without_replacement():
    generator = np.random.default_rng(2)
    x = generator.normal(0.0, 0.03, UNITS)
    x += 0.008 - x.mean()  # no value is near the cap, so the capped mean is the margin too
    chosen = terms(margin=0.008, pilot_mean=0.004, pilot_sd=0.03, population=UNITS)
    orders = np.stack([generator.permutation(x) for _ in range(PATHS)])
    rate = false_certificates(orders[:, : UNITS - 1], chosen)
    assert 0.005 < rate <= ALLOWED


def test_a_t_bound_looked_at_after_every_window_is_wrong_far_too_often():
    x = np.random.default_rng(3).normal(0.008, 0.03, (PATHS, UNITS))
    n = np.arange(1, UNITS + 1)
    mean = x.cumsum(axis=1) / n
    spread = np.sqrt(np.maximum((x**2).cumsum(axis=1) / n - mean**2, 0) / np.maximum(n - 1, 1))
    bound = mean + stats.t.isf(0.05, np.maximum(n - 1, 1)) * spread
    assert (bound[:, 49:] < 0.008).any(axis=1).mean() > 0.2


# --- the tail ---------------------------------------------------------------------------------------------------------


def test_tail_bound_costs_a_little_more_than_the_bound_of_a_fixed_size():
    for n, k in [(100, 0), (500, 0), (500, 3), (2000, 20)]:
        fixed = stats.beta.isf(0.01, k + 1, n - k)
        above = np.zeros(n, dtype=bool)
        above[np.linspace(0, n - 1, k, dtype=int)] = True
        assert fixed < tail_bound(above, alpha=0.01, population=None) < 1.5 * fixed


def test_tail_bound_of_a_population_is_tighter_and_ends_in_the_share():
    above = np.zeros(100, dtype=bool)
    above[7] = True
    assert tail_bound(above, alpha=0.01, population=150) < tail_bound(above, alpha=0.01, population=None)
    assert tail_bound(above, alpha=0.01, population=100) == 0.01
    assert tail_bound(above[:0], alpha=0.01, population=100) == 1.0


def test_tail_bound_survives_stopping_where_it_looks_best():
    generator, share = np.random.default_rng(4), 0.05
    stops = np.arange(20, 401, 20)
    above = generator.random((300, 400)) < share
    # the bound at a time is below the share just when the wealth against the share is large: one path tells all times
    chosen = terms(margin=0.01, cap=1.0, pilot_mean=0.0, pilot_sd=0.0)
    paths = np.stack([ENGINE.start(chosen, mean=share).path(a) for a in above])
    assert (paths.max(axis=1) >= -math.log(0.05)).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    assert (tail_bound(above[0], alpha=0.05, population=None) < share) == (paths[0, -1] >= -math.log(0.05))
    counts = above.cumsum(axis=1)[:, stops - 1]
    clopper_pearson = stats.beta.isf(0.05, counts + 1, stops - counts)
    assert (clopper_pearson < share).any(axis=1).mean() > 0.1  # why the bound of a fixed size is not used


# --- clusters ---------------------------------------------------------------------------------------------------------


def test_clustered_bound_of_the_reference_values():
    estimate, error, upper = clustered_bound(np.array([1, -2, 3, 0.5]), np.array([100, 200, 150, 50]), 0.95)
    assert estimate == pytest.approx(0.005, rel=1e-12)
    assert error == pytest.approx(0.008756, abs=5e-7)
    assert upper == pytest.approx(0.025606, abs=5e-7)


def test_clustered_bound_of_single_windows_is_the_t_bound():
    x = np.random.default_rng(5).normal(size=30)
    _, error, upper = clustered_bound(x, np.ones(30), 0.95)
    assert error == pytest.approx(stats.sem(x), rel=1e-12)
    assert upper == pytest.approx(x.mean() + stats.t.ppf(0.95, 29) * stats.sem(x), rel=1e-12)


def test_doubling_every_window_of_a_document_adds_no_confidence():
    x, documents = np.random.default_rng(6).normal(size=40), np.repeat([3, 1, 9, 5], 10)
    once = clustered_bound(*by_document(x, documents), 0.95)
    twice = clustered_bound(*by_document(np.tile(x, 2), np.tile(documents, 2)), 0.95)
    assert twice == pytest.approx(once, rel=1e-12)


def test_one_document_has_no_standard_error():
    with pytest.raises(InvalidMeasurement, match="1 documents"):
        clustered_bound(np.ones(1), np.ones(1), 0.95)


# --- terms ------------------------------------------------------------------------------------------------------------


def test_terms_split_the_error_level_and_take_the_cap_from_the_pilot():
    pilot = np.random.default_rng(7).normal(0.004, 0.03, 200)
    chosen = choose_terms(pilot, 0.02, confidence=0.95, population=100_000)
    assert chosen.alpha == pytest.approx(0.04)
    assert chosen.tail_alpha == pytest.approx(0.01)
    assert chosen.cap == max(2 * pilot.max(), 0.1)
    assert choose_cap(pilot / 100, 0.02) == 0.1
    expected = needed_windows(pilot.mean(), pilot.std(ddof=1), 0.02, chosen.cap, 0.04)
    assert chosen.n_max == math.ceil(3 * expected)
    assert choose_terms(pilot, 0.02, confidence=0.95, population=90).n_max == 90


def test_needed_windows_of_the_power_table():
    # simulated means of the same cases: 408, 1670, 8941
    assert needed_windows(0.004, 0.03, 0.00797, 0.25, 0.05) == pytest.approx(408, rel=0.3)
    assert needed_windows(0.02, 0.14, 0.03, 1.0, 0.05) == pytest.approx(1670, rel=0.3)
    assert needed_windows(0.0, math.sqrt(0.02), 0.004, 1.0, 0.05) == pytest.approx(8941, rel=0.3)
    assert needed_windows(0.02, 0.01, 0.02, 1.0, 0.05) == math.inf


@pytest.mark.parametrize("shift", [-0.01, 0.0, 0.004, 0.3])
@pytest.mark.parametrize("n", [30, 300, 30_000])
def test_smallest_margin_needs_as_many_windows_as_given(shift, n):
    pilot = np.random.default_rng(8).normal(shift, 0.03, 50)
    margin = smallest_margin(pilot, n, 0.04)
    cap, mean, sd = choose_cap(pilot, margin), pilot.mean(), pilot.std(ddof=1)
    if margin > 0:
        assert needed_windows(mean, sd, margin, cap, 0.04) == pytest.approx(n, rel=1e-4)
        assert needed_windows(mean, sd, 1.01 * margin, choose_cap(pilot, 1.01 * margin), 0.04) < n
    else:  # the pilot improves by so much that any margin will do
        assert needed_windows(mean, sd, 1e-9, choose_cap(pilot, 1e-9), 0.04) <= n


def test_no_margin_is_certified_by_a_handful_of_windows():
    assert smallest_margin(np.random.default_rng(9).normal(0.004, 0.03, 50), 10, 0.04) == math.inf


def test_a_pilot_at_the_margin_ends_only_in_a_finite_population():
    pilot = np.full(20, 0.03)
    assert choose_terms(pilot, 0.03, confidence=0.95, population=500).n_max == 500
    with pytest.raises(InfeasibleBudget):
        choose_terms(pilot, 0.03, confidence=0.95, population=None)


def test_terms_refuse_a_pilot_or_a_margin_that_means_nothing():
    with pytest.raises(InvalidMeasurement):
        choose_terms(np.zeros(1), 0.02, confidence=0.95, population=100)
    with pytest.raises(InvalidMeasurement):
        smallest_margin(np.array([0.0, math.nan]), 100, 0.05)
    with pytest.raises(InvalidBudget):
        choose_terms(np.zeros(9), -0.02, confidence=0.95, population=100)


# --- decisions --------------------------------------------------------------------------------------------------------


def test_decisions():
    chosen, noise = terms(n_max=60), np.random.default_rng(10).normal(0, 0.02, 60)
    assert decide(noise[:30] + 0.02, chosen).verdict == "continue"
    assert decide(noise[:30] + 0.2, chosen).verdict == "continue"  # too few to call it futile
    assert decide(noise + 0.2, chosen).verdict == "futile"
    assert decide(noise - noise.mean() + 0.02, chosen).verdict == "exhausted"
    assert decide(noise - 0.02, chosen).verdict == "certified"
    assert decide(noise - 0.02, terms(population=60)).verdict == "exact"
    assert decide(noise[:0], chosen).verdict == "continue"


def test_a_certificate_earned_within_a_batch_is_kept():
    x = np.concatenate([np.full(100, -0.01), np.full(20, 0.25)])
    decision = decide(x, terms())
    assert ENGINE.start(terms()).update(x).log_wealth < -math.log(0.05)
    assert (decision.verdict, decision.decisive) == ("certified", 100)


def test_futility_takes_the_windows_of_a_document_as_dependent():
    x = np.repeat([0.0, 0.0, 0.03, 0.14], 15)
    assert decide(x, terms()).verdict == "futile"
    assert decide(x, terms(), documents=np.repeat([0, 1, 2, 3], 15)).verdict == "continue"
    assert decide(x, terms(), documents=np.zeros(60, dtype=int)).verdict == "futile"


# --- certificates -----------------------------------------------------------------------------------------------------

BUDGET = Budget.lose("2%")
GOOD = np.random.default_rng(11).normal(0.004, 0.01, 200)


def perplexity_terms(**changes):
    return terms(margin=BUDGET.margin, alpha=0.04, **changes)


def certificate(x, chosen, budget=BUDGET, **how):
    metric = catalogue.find(how.get("metric", "perplexity"), "measurement")
    return certify(measured(x, **how), budget, chosen, metric=metric, scope="test.txt (sha256 12ab)")


def test_certified():
    made = certificate(GOOD, perplexity_terms(population=1000))
    assert made.holds
    assert made.verdict == "certified"
    assert made.log_wealth >= -math.log(0.04)
    assert GOOD.mean() < made.bound <= BUDGET.margin
    assert made.estimate == pytest.approx(GOOD.mean())
    assert (made.scored, made.above_cap) == (200, 0)
    assert 0 < made.tail_bound < 0.03
    assert made.statement.startswith(
        "On test.txt (sha256 12ab), with 95 % confidence (anytime-valid; 200 of 1,000 windows, in random order): "
        "perplexity rises by at most "
    )
    assert "excess counted up to 0.25 nats per token in each window" in made.statement
    assert certificate(GOOD, perplexity_terms(population=1000)) == made  # nothing is drawn: it can be made again


def test_wealth_and_bound_agree_when_the_peak_lies_behind():
    made = certificate(np.concatenate([GOOD, np.full(60, 0.24)]), perplexity_terms())
    assert made.holds
    assert made.bound == ENGINE.bound(GOOD, perplexity_terms()) < 0.9 * BUDGET.margin
    assert "260 windows drawn independently" in made.statement


def test_exact_is_strict():
    x = np.array([0.01, 0.02, 0.03])
    at_the_margin = terms(margin=math.fsum(x) / 3, population=3, alpha=0.04)
    made = certificate(x, at_the_margin, Budget.lose("3%"))
    assert (made.verdict, made.holds) == ("exact", False)
    assert made.statement.startswith("Not within the limit of 3 %: on test.txt")
    above = dataclasses.replace(at_the_margin, margin=at_the_margin.margin * (1 + 1e-12))
    made = certificate(x, above, Budget.lose("3%"))
    assert (made.verdict, made.holds, made.bound) == ("exact", True, at_the_margin.margin)
    assert "exactly (all 3 windows): perplexity changes by +2.02 %" in made.statement


def test_exact_states_the_uncapped_mean_and_what_the_cap_hides():
    x = np.append(np.zeros(99), 5.0)
    made = certificate(x, perplexity_terms(population=100))
    assert not made.holds  # nothing was left to chance, so the cap excuses nothing ...
    assert made.bound == pytest.approx(0.0025)
    assert made.estimate == pytest.approx(0.05)  # ... and the sentence says both
    assert made.statement.startswith("Not within the limit of 2 %")
    assert "perplexity changes by +5.127 %;" in made.statement
    assert "1 window exceeds that cap" in made.statement
    assert made.tail_bound == 0.01
    json.dumps({"log_wealth": made.log_wealth}, allow_nan=False)


def test_futile_and_exhausted_make_no_claim():
    futile = certificate(GOOD + 0.1, perplexity_terms())
    assert (futile.verdict, futile.holds) == ("futile", False)
    assert "lies above the limit of 2 %" in futile.statement
    cut_short = certificate(GOOD[:10], perplexity_terms())
    assert (cut_short.verdict, cut_short.holds) == ("exhausted", False)
    assert cut_short.bound > BUDGET.margin
    assert "10 windows do not settle the limit of 2 %; on the source of test.txt" in cut_short.statement


def test_a_budget_on_size_is_measured_only():
    made = certificate(np.abs(GOOD), terms(alpha=0.04), Budget.fit("10MB"), metric="kl")
    assert (made.verdict, made.holds) == ("measured", False)
    assert made.bound < 0.025
    assert made.statement.startswith("No limit on degradation was set; on the source of test.txt")
    assert "the Kullback-Leibler divergence is at most 0.0" in made.statement


def test_an_improvement_is_called_a_fall():
    made = certificate(GOOD - 0.1, perplexity_terms())
    assert made.bound < 0
    assert "perplexity falls by at least" in made.statement


def test_certificates_refuse_terms_and_evidence_that_do_not_fit():
    with pytest.raises(InvalidBudget, match="margin"):
        certificate(GOOD, terms(margin=0.05, alpha=0.04))
    with pytest.raises(InvalidBudget, match="confidence"):
        certificate(GOOD, terms(margin=BUDGET.margin, alpha=0.05))
    with pytest.raises(InvalidMeasurement, match="twice"):
        certificate(GOOD, perplexity_terms(population=1000), windows=np.zeros(200, dtype=int))
    with pytest.raises(InvalidMeasurement, match="kl was measured"):
        certificate(GOOD, perplexity_terms(), metric="kl")
    with pytest.raises(InvalidMeasurement, match="no unit"):
        certificate(GOOD[:0], perplexity_terms())


def test_printed_bounds_are_rounded_up():
    from pennyweight.methods.certification.statement import ceiling

    assert ceiling(0.8) == "0.800"
    assert ceiling(0.80001) == "0.801"
    assert ceiling(123.4) == "124"
    assert ceiling(-0.12345) == "-0.123"
    assert ceiling(0.0) == "0"
    assert ceiling(1.5e-5) == "0.0000150"
