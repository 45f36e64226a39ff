"""Engines one by one: published numbers, closed forms, other people's code, and what each is known for."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq

from pennyweight.budget import Terms
from pennyweight.errors import InvalidBudget, InvalidMeasurement, InvalidMethod
from pennyweight.methods.certification import (
    Bootstrap,
    ClopperPearson,
    ClusteredT,
    HedgedCapital,
    Hoeffding,
    MaurerPontil,
    PlannedMixture,
    PredictablePlugIn,
    Tango,
    TwoOneSidedTests,
    by_document,
    clustered_bound,
)
from pennyweight.numerics.random import stream

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "certification.json").read_text())
N = np.arange(1, 121)
X = ((7 * N * N + 3 * N) % 101) / 250  # the values the golden numbers were made from
TERMS = Terms(
    margin=0.3, cap=1.0, pilot_mean=0.2, pilot_sd=0.1, alpha=0.05, tail_alpha=0.01, population=None, n_max=1000,
    floor=0.0,
)  # fmt: skip
STEP = 2 / GOLDEN["breaks"]  # the published code widens its grid by one step on each side


def terms(**changes):
    return dataclasses.replace(TERMS, **changes)


def pairs(worse, better, n):
    return np.concatenate([np.ones(worse), -np.ones(better), np.zeros(n - worse - better)])


# --- betting: numbers of the authors' code ----------------------------------------------------------------------------


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: f"{row['population']}-{row['n']}")
def test_betting_engines_give_the_numbers_of_their_authors_code(row):
    x, chosen = X[: row["n"]], terms(population=row["population"])
    assert HedgedCapital().path(x, chosen)[-1] == pytest.approx(row["log_capital_at_0_3"], rel=1e-12)
    assert row["one_sided"] - STEP <= HedgedCapital().bound(x, chosen) <= row["one_sided"]
    low, high = HedgedCapital().interval(x, chosen)
    assert row["two_sided"][0] <= low <= row["two_sided"][0] + STEP
    assert row["two_sided"][1] - STEP <= high <= row["two_sided"][1]
    assert PredictablePlugIn().bound(x, chosen) == pytest.approx(row["predictable_plug_in"], rel=1e-12)


@pytest.mark.parametrize("population", [None, 150])
def test_capital_grows_with_the_candidate_mean(population):
    x, engine = np.random.default_rng(0).beta(1, 6, 100), HedgedCapital()
    last = [engine.path(x, terms(margin=m, population=population))[-1] for m in np.linspace(0, 0.9, 200)]
    assert all(a <= b for a, b in pairwise(last))


def test_a_mean_far_above_the_margin_is_no_evidence_for_it():
    x = np.full(200, 0.9)
    assert HedgedCapital().path(x, terms(margin=0.1)).max() < 0
    assert PredictablePlugIn().path(x, terms(margin=0.1)).max() < 0
    assert HedgedCapital().interval(x, terms())[0] > 0.5  # the other side knows


@pytest.mark.parametrize("engine", [HedgedCapital(), PredictablePlugIn(), PlannedMixture()])
def test_a_margin_that_a_corpus_cannot_reach_is_certified_at_once(engine):
    chosen = terms(margin=0.5, population=100)
    path = engine.path(np.zeros(60), chosen)  # after 51 zeros the mean cannot reach .5
    assert np.flatnonzero(np.isinf(path))[0] + 1 == 51


def test_hedged_capital_is_tighter_than_plug_in_and_both_than_hoeffding():
    x = np.random.default_rng(1).beta(2, 30, 1000)
    bounds = [engine.bound(x, TERMS) for engine in (HedgedCapital(), PredictablePlugIn(), Hoeffding())]
    assert bounds[0] < bounds[1] < bounds[2]


@pytest.mark.parametrize("population", [None, 5000])
@pytest.mark.parametrize("seed", range(3))
def test_the_quick_bound_of_the_mixture_is_the_root_of_its_wealth(population, seed):
    x, engine = np.random.default_rng(seed).normal(0.02, 0.1, 3000), PlannedMixture()
    chosen = terms(margin=0.05, cap=0.5, floor=None, population=population)
    root = brentq(
        lambda m: engine.start(chosen, mean=m).update(np.minimum(x, 0.5)).log_wealth + math.log(0.05), x.min(), 0.4,
        xtol=1e-15, rtol=1e-14,
    )  # fmt: skip
    assert engine.bound(x, chosen) == pytest.approx(root, rel=3e-12)


# --- a number of units fixed beforehand -------------------------------------------------------------------------------


def test_hoeffding_and_maurer_pontil_are_their_formulas():
    chosen, n, mean, sd = terms(floor=-0.5, cap=0.5), 120, X.mean(), X.std(ddof=1)
    assert Hoeffding().bound(X, chosen) == pytest.approx(mean + math.sqrt(math.log(20) / 240), rel=1e-12)
    level = math.log(40)
    expected = mean + sd * math.sqrt(2 * level / n) + 7 * level / (3 * (n - 1))
    assert MaurerPontil().bound(X, chosen) == pytest.approx(expected, rel=1e-12)
    assert MaurerPontil().bound(X[:1], chosen) == 0.5  # one unit has no spread


@pytest.mark.parametrize(("k", "n", "expected"), [(3, 500, 0.015434), (0, 500, 0.005974)])
def test_clopper_pearson_reference_values(k, n, expected):
    assert ClopperPearson().bound(pairs(k, 0, n), TERMS) == pytest.approx(expected, abs=5e-7)


def test_clopper_pearson_gives_what_scipy_and_statsmodels_give():
    for k, n, expected in GOLDEN["statsmodels"]["clopper_pearson"]:
        bound = ClopperPearson().bound(pairs(k, 0, n), TERMS)
        assert bound == pytest.approx(expected, rel=1e-10)
        interval = stats.binomtest(k, n, alternative="less").proportion_ci(0.95, method="exact")
        assert bound == pytest.approx(interval.high, rel=1e-10)


@pytest.mark.parametrize(("k", "n", "population"), [(0, 30, 100), (3, 50, 120), (10, 60, 61), (40, 40, 90), (0, 1, 9)])
def test_the_hypergeometric_bound_is_the_largest_number_that_is_not_rejected(k, n, population):
    allowed = [
        total
        for total in range(k, population - n + k + 1)
        if stats.hypergeom.cdf(k, population, total, n) > TERMS.alpha
    ]
    bound = ClopperPearson().bound(pairs(k, 0, n), terms(population=population))
    assert bound == max(allowed) / population
    assert bound <= ClopperPearson().bound(pairs(k, 0, n), TERMS) + 1 / population


@pytest.mark.parametrize(
    ("worse", "better", "n", "expected"), [(12, 9, 400, 0.027718), (30, 18, 1319, 0.018157), (0, 0, 300, 0.008938)]
)
def test_tango_reference_values(worse, better, n, expected):
    assert Tango().bound(pairs(worse, better, n), terms(floor=-1.0)) == pytest.approx(expected, abs=6e-7)


def test_tango_at_the_ends():
    z2 = stats.norm.isf(0.05) ** 2
    assert Tango().bound(np.zeros(300), TERMS) == pytest.approx(z2 / (300 + z2), rel=1e-9)
    assert Tango().bound(np.ones(300), TERMS) == 1.0
    assert Tango().bound(-np.ones(300), terms(floor=-1.0)) < -0.97
    with pytest.raises(InvalidBudget, match="upper bound"):
        Tango().bound(np.zeros(300), TERMS, 0.6)


@pytest.mark.parametrize("engine", [ClopperPearson(), Hoeffding(), PlannedMixture(), Tango()])
def test_raising_one_unit_never_lowers_the_bound(engine):
    g, chosen = np.random.default_rng(3), terms(floor=-1.0)
    for n in (5, 40, 200):
        for _ in range(20):
            x = g.choice([0.0, 1.0] if isinstance(engine, ClopperPearson) else [-1.0, 0.0, 1.0], n)
            higher, at = x.copy(), int(g.integers(n))
            higher[at] = min(x[at] + 1, 1.0)
            assert engine.bound(higher, chosen) >= engine.bound(x, chosen) - 1e-12


@pytest.mark.parametrize("engine", [ClopperPearson(), Tango()])
def test_engines_that_count_take_whole_units_only(engine):
    with pytest.raises(InvalidMeasurement, match="counts units"):
        engine.bound(np.array([0.0, 0.5]), TERMS)
    with pytest.raises(InvalidBudget, match="cuts the values"):
        engine.bound(np.array([0.0, 1.0]), terms(cap=0.5))


# --- documents as clusters --------------------------------------------------------------------------------------------

V = X / 100 - 0.0015


def test_clustered_t_gives_what_statsmodels_gives():
    both, golden = TwoOneSidedTests(), GOLDEN["statsmodels"]
    assert both.interval(V, terms(floor=None)) == pytest.approx(golden["t_interval_90"], rel=1e-9)
    clustered = both.interval(V, terms(floor=None), documents=(N - 1) // 4)
    assert clustered == pytest.approx(golden["clustered_interval_90"], rel=1e-9)


def test_units_repeated_inside_their_document_say_nothing_new():
    documents = (N - 1) // 4
    once = ClusteredT().bound(X, TERMS, documents=documents)
    twice = ClusteredT().bound(np.repeat(X, 2), TERMS, documents=np.repeat(documents, 2))
    assert twice == pytest.approx(once, rel=1e-12)
    assert ClusteredT().bound(np.repeat(X, 2), TERMS) < once  # taken as independent, they would


@pytest.mark.parametrize("engine", [Bootstrap(), ClusteredT(), TwoOneSidedTests()])
def test_few_documents_are_refused(engine):
    with pytest.raises(InvalidMeasurement, match="14 documents"):
        engine.bound(X, TERMS, documents=N % 14)
    with pytest.raises(InvalidMeasurement, match="documents of shape"):
        engine.bound(X, TERMS, documents=N[:-1])
    assert engine.bound(X, TERMS, documents=N % 15) > X.mean()


def test_bootstrap_agrees_with_the_t_bound_over_many_documents():
    g = np.random.default_rng(4)
    documents = np.repeat(np.arange(150), g.integers(1, 9, 150))
    x = g.normal(0, 0.02, 150)[documents] + g.normal(0.01, 0.03, len(documents))
    sums, counts = by_document(x, documents)
    estimate, _, bound = clustered_bound(sums, counts, 0.95)
    studentised = Bootstrap().bound(x, terms(floor=None), documents=documents)
    assert studentised - estimate == pytest.approx(bound - estimate, rel=0.05)


def test_bootstrap_is_the_loop_that_it_stands_for():
    g, engine, groups = np.random.default_rng(5), Bootstrap(replicates=199, seed=3), 20
    documents = np.arange(60) % groups
    x = g.exponential(0.02, 60)
    sums, counts = by_document(x, documents)
    estimate, error, _ = clustered_bound(sums, counts, 0.5)
    drawn = torch.randint(groups, (199, groups), generator=stream(3, "certification", "bootstrap")).numpy()
    statistics = []
    for row in drawn:
        again, its_error, _ = clustered_bound(sums[row], counts[row], 0.5)
        statistics.append((again - estimate) / its_error)
    expected = estimate - np.sort(statistics)[10 - 1] * error  # floor(.05 * 200) = 10
    assert engine.bound(x, TERMS, documents=documents) == pytest.approx(expected, rel=1e-10)


def test_bootstrap_repeats_itself_and_listens_to_its_seed():
    assert Bootstrap().bound(X, TERMS) == Bootstrap().bound(X, TERMS)
    assert Bootstrap().bound(X, TERMS) != Bootstrap(seed=1).bound(X, TERMS)


def test_bootstrap_corrects_the_t_bound_upwards_where_the_tail_is_on_the_bad_side():
    x = np.random.default_rng(6).lognormal(0, 1.2, 60)
    assert Bootstrap().bound(x, TERMS) > ClusteredT().bound(x, TERMS)


def test_bootstrap_refuses_what_it_cannot_say():
    with pytest.raises(InvalidBudget, match="replicates"):
        Bootstrap(replicates=10).bound(X, TERMS)
    with pytest.raises(InvalidMethod):
        Bootstrap(replicates=0)
    with pytest.raises(InvalidMeasurement, match="too few documents differ"):
        Bootstrap().bound(np.eye(1, 40)[0], TERMS)  # a third of the replicates never see the one that differs
    assert Bootstrap().bound(np.full(40, 0.3), TERMS) == pytest.approx(0.3)


# --- equivalence ------------------------------------------------------------------------------------------------------


def test_equivalence_asks_for_both_sides():
    both = TwoOneSidedTests()
    x = np.random.default_rng(8).normal(0.0, 0.02, 400)
    assert both.equivalent(x, terms(margin=0.01, floor=None))
    assert not both.equivalent(x + 0.02, terms(margin=0.01, floor=None))
    assert not both.equivalent(x - 0.02, terms(margin=0.01, floor=None))  # better by more than the margin
    with pytest.raises(InvalidBudget, match="margin"):
        both.equivalent(x, terms(margin=0.0))


@pytest.mark.parametrize("mean", [-0.01, 0.01])
def test_equivalence_at_the_margin_is_claimed_no_more_often_than_the_level(mean):
    g, both = np.random.default_rng(9), TwoOneSidedTests()
    claims = [both.equivalent(g.normal(mean, 0.03, 300), terms(margin=0.01, floor=None)) for _ in range(400)]
    assert 0 < np.mean(claims) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize(
    "engine", [Hoeffding(), HedgedCapital(), MaurerPontil(), PredictablePlugIn(), PlannedMixture()]
)
def test_an_exact_engine_bounds_both_sides_too(engine):
    x, chosen = np.random.default_rng(10).normal(0.0, 0.02, 2000), terms(margin=0.01, floor=-0.2, cap=0.2)
    low, high = TwoOneSidedTests(engine=engine).interval(x, chosen)
    assert low < x.mean() < high
    turned_low, turned_high = TwoOneSidedTests(engine=engine).interval(-x, chosen)
    if not isinstance(engine, PlannedMixture):  # its pilot believes in one sign
        assert (turned_low, turned_high) == pytest.approx((-high, -low), rel=1e-9)


def test_an_engine_with_a_cap_needs_a_floor_for_the_other_side():
    with pytest.raises(InvalidBudget, match="cap of inf"):
        TwoOneSidedTests(engine=PlannedMixture()).interval(X, terms(floor=None))


@pytest.mark.parametrize(
    "make",
    [
        lambda: HedgedCapital(share=1.0),
        lambda: HedgedCapital(theta=0.0),
        lambda: PredictablePlugIn(largest=1.0),
    ],
)
def test_hyperparameters_out_of_range_are_refused(make):
    with pytest.raises(InvalidMethod):
        make()
