"""Certification: what holds for all data."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pennyweight.budget import Terms
from pennyweight.methods.certification import PlannedMixture

ENGINE = PlannedMixture()
CAP = 0.25
VALUES = arrays(np.float64, st.integers(2, 60), elements=st.floats(-CAP, CAP, allow_subnormal=False))
few = settings(max_examples=60, deadline=None)


def terms(population=None):
    return Terms(
        margin=0.02, cap=CAP, pilot_mean=0.003, pilot_sd=0.016, alpha=0.05, tail_alpha=0.01,
        population=population, n_max=1000,
    )  # fmt: skip


@few
@given(VALUES, st.floats(-0.3, 0.25), st.floats(-0.3, 0.25), st.sampled_from([None, 60, 61, 500]))
def test_wealth_rises_with_the_candidate_mean(x, a, b, population):
    low, high = sorted((a, b))
    assert (
        ENGINE.start(terms(population), mean=low).update(x).log_wealth
        <= ENGINE.start(terms(population), mean=high).update(x).log_wealth + 1e-9
    )


@few
@given(VALUES, st.randoms(use_true_random=False))
def test_independent_windows_may_come_in_any_order(x, random):
    shuffled = np.array(random.sample(list(x), len(x)))
    assert math.isclose(
        ENGINE.start(terms()).update(x).log_wealth, ENGINE.start(terms()).update(shuffled).log_wealth, abs_tol=1e-9
    )


@few
@given(VALUES, st.sampled_from([None, 60, 500]))
def test_the_bound_is_where_the_wealth_reaches_the_threshold(x, population):
    chosen = terms(population)
    bound, threshold = ENGINE.bound(x, chosen), -math.log(chosen.alpha)
    assert bound <= CAP
    if population == len(x):
        return
    reachable = CAP if population is None else (x.sum() + (population - len(x)) * CAP) / population
    if bound < reachable - 1e-9:
        assert ENGINE.start(chosen, mean=bound).update(x).log_wealth >= threshold - 1e-9
    assert ENGINE.start(chosen, mean=bound - 1e-6).update(x).log_wealth < threshold


@few
@given(VALUES)
def test_the_bound_of_independent_windows_is_above_their_mean(x):
    assert ENGINE.bound(x, terms()) >= x.mean() - 1e-12


@few
@given(VALUES)
def test_a_full_pass_ends_at_the_mean(x):
    chosen = terms(population=len(x))
    assert math.isclose(ENGINE.bound(x, chosen), x.mean(), rel_tol=1e-12, abs_tol=1e-15)
    # one window is missing: it can move the mean by at most twice the cap
    assert ENGINE.bound(x[:-1], chosen) <= x.mean() + 2 * CAP / len(x) + 1e-12


@few
@given(VALUES, st.integers(0, 60), st.sampled_from([None, 60, 500]))
def test_batches_change_nothing(x, cut, population):
    start = ENGINE.start(terms(population))
    whole, parts = start.update(x), start.update(x[:cut]).update(x[cut:])
    assert (whole.total, whole.count) == (parts.total, parts.count)
    np.testing.assert_allclose(parts.log_products, whole.log_products, rtol=0, atol=1e-12)
