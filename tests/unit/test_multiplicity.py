"""Multiplicity: closed forms, published numbers, and the experiments that show why each rule is needed."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pennyweight.errors import InvalidBudget, InvalidMeasurement, InvalidMethod
from pennyweight.methods.multiplicity import (
    METHODS,
    AlphaLedger,
    AlphaSplit,
    FixedSequence,
    Holm,
    IntersectionUnion,
    LearnThenTest,
    WorstGroup,
    hoeffding_bentkus,
    learn_path,
    p_from_e,
    p_from_log_e,
    smallest,
    spread,
)

ALPHA = 0.05


def allowed(runs):
    return ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def log_wealth(x, *, margin, mean, sd, cap):
    """The largest log E so far at the margin `[..., n]` of the planned mixture; a twin written out for many paths."""
    gap = margin - mean
    planned = min(gap / (sd**2 + gap**2), 0.99 / (cap - margin))
    bets = [planned / 2, planned, *(min(0.99 / cap * 2.0**-k, 0.99 / (cap - margin)) for k in range(7))]
    total = None
    for bet, weight in zip(bets, [0.4, 0.4] + [0.2 / 7] * 7, strict=True):
        term = np.log1p(bet * (margin - np.minimum(x, cap))).cumsum(axis=-1) + math.log(weight)
        total = term if total is None else np.logaddexp(total, term)
    return np.maximum.accumulate(total, axis=-1)


def test_the_room_lists_its_methods():
    assert [m.name for m in METHODS] == [
        "alpha-ledger", "alpha-split", "fixed-sequence", "holm", "intersection-union", "learn-then-test", "worst-group",
    ]  # fmt: skip


# --- p-values from e-values -------------------------------------------------------------------------------------------


def test_p_values_from_e_values():
    e = np.array([0.0, 0.5, 1.0, 20.0, math.inf])
    np.testing.assert_array_equal(p_from_e(e), [1, 1, 1, 0.05, 0])
    np.testing.assert_allclose(p_from_log_e([-math.inf, math.log(0.5), 0, math.log(20), math.inf]), p_from_e(e))
    assert p_from_log_e(1000.0) == 0.0


@pytest.mark.parametrize("wrong", [-1.0, math.nan])
def test_e_values_are_not_negative(wrong):
    with pytest.raises(InvalidMeasurement, match="e-value"):
        p_from_e([2.0, wrong])
    with pytest.raises(InvalidMeasurement):
        p_from_log_e(math.nan)


# --- fixed sequence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "last", "tested"),
    [([True, True, False, True], 1, 3), ([False, True], None, 1), ([True, True], 1, 2), ([], None, 0)],
)
def test_fixed_sequence_stops_at_the_first_failure(verdicts, last, tested):
    calls = []

    def certified(rung):
        calls.append(rung)
        return verdicts[rung]

    assert FixedSequence().last_pass(iter(range(len(verdicts))), certified) == last
    assert calls == list(range(tested))


def test_fixed_sequence_of_p_values_is_the_walk():
    p = np.array([0.01, 0.05, 0.06, 0.0])
    assert FixedSequence().rejected(p, ALPHA).tolist() == [True, True, False, False]
    walked = FixedSequence().last_pass(range(4), lambda k: p[k] <= ALPHA)
    assert np.flatnonzero(FixedSequence().rejected(p, ALPHA))[-1] == walked


def test_fixed_sequence_from_several_places():
    p = np.array([0.9, 0.01, 0.02, 0.024, 0.9, 0.0, 0.9, 0.0])
    assert np.flatnonzero(FixedSequence(starts=4).rejected(p, 0.1)).tolist() == [2, 3]  # from 0, 2, 4, 6 at .025
    assert np.flatnonzero(FixedSequence(starts=8).rejected(p, 0.1)).tolist() == [1, 5, 7]  # Bonferroni
    np.testing.assert_array_equal(FixedSequence(starts=99).rejected(p, 0.1), FixedSequence(starts=8).rejected(p, 0.1))
    p = np.array([0.9, 0.9, 0.9, 0.0, 0.0])
    assert np.flatnonzero(FixedSequence(starts=3).rejected(p, 0.1)).tolist() == [3, 4]  # from 0, 1 and 3


def test_fixed_sequence_refuses_places_it_cannot_walk_from():
    with pytest.raises(InvalidMethod, match="starts is 0"):
        FixedSequence(starts=0)
    with pytest.raises(InvalidMethod, match="2 places"):
        FixedSequence(starts=2).last_pass([1], lambda rung: True)


# --- Holm, the gate, the split ----------------------------------------------------------------------------------------


def test_holm_by_hand():
    p = np.array([0.04, 0.011, 0.03, 0.005])  # thresholds .0125, .0167, .025, .05
    assert Holm().rejected(p, ALPHA).tolist() == [False, True, False, True]
    assert Holm().rejected(np.array([0.02, 0.03, 0.05]), ALPHA).tolist() == [False, False, False]
    assert Holm().rejected(np.array([0.05, 0.025]), ALPHA).tolist() == [True, True]


def test_holm_contains_bonferroni():
    generator = np.random.default_rng(0)
    gained = 0
    for _ in range(200):
        p = generator.random(6) ** 3 * 0.1
        holm, bonferroni = Holm().rejected(p, ALPHA), AlphaSplit().rejected(p, ALPHA)
        assert (holm | ~bonferroni).all()
        assert holm.any() == bonferroni.any()  # the first step is Bonferroni's
        gained += int(holm.sum() - bonferroni.sum())
    assert gained > 50


def test_e_values_pass_bonferroni_at_k_over_alpha():
    e = np.array([79.0, 80.0, 1.0, math.inf])
    assert AlphaSplit().rejected(p_from_e(e), ALPHA).tolist() == [False, True, False, True]
    assert Holm().rejected_by_e_values(e, ALPHA).tolist() == [True, True, False, True]


def test_the_gate_passes_all_or_none():
    gate = IntersectionUnion()
    assert gate.all_hold(np.array([0.05, 0.01]), ALPHA)
    assert not gate.all_hold(np.array([0.051, 0.0]), ALPHA)
    assert gate.rejected(np.array([0.05, 0.01]), ALPHA).tolist() == [True, True]
    assert gate.rejected(np.array([0.051, 0.0]), ALPHA).tolist() == [False, False]


def test_the_gate_uses_its_whole_level_where_one_margin_just_fails():
    runs = 20_000
    p = np.random.default_rng(1).random(runs)
    passed = np.mean([IntersectionUnion().all_hold(np.array([0.0, one, 0.0]), ALPHA) for one in p])
    assert abs(passed - ALPHA) < 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def test_split_in_the_proportions_asked_for():
    np.testing.assert_allclose(AlphaSplit().split(0.05, [2, 1, 1, 1]), [0.02, 0.01, 0.01, 0.01], rtol=1e-15)
    weighted = AlphaSplit(weights=(3, 1))
    assert weighted.rejected(np.array([0.037, 0.013]), ALPHA).tolist() == [True, False]
    assert AlphaSplit().split(0.3, [1e308, 1e308]).tolist() == [0.15, 0.15]  # the sum of the weights is infinite


@given(
    st.floats(1e-12, 0.999),
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40),
)
def test_shares_never_add_to_more_than_the_total(total, weights):
    shares = AlphaSplit().split(total, weights).tolist()
    exact = sum(map(Fraction, shares))
    assert exact <= Fraction(total)
    assert exact >= Fraction(total) * (1 - Fraction(len(shares), 2**50))  # and nothing to speak of is lost
    assert math.fsum(shares) <= total


def test_rounding_alone_would_exceed_the_total():
    total, count = 0.05, 7  # so the property above is not free
    assert count * Fraction(total / count) > Fraction(total)
    assert sum(map(Fraction, AlphaSplit().split(total, np.ones(count)).tolist())) <= Fraction(total)


@pytest.mark.parametrize("weights", [(0.0, 1.0), (-1.0, 2.0), (math.nan,), (math.inf,), (1e-320, 1e308)])
def test_split_refuses_weights_that_give_nothing(weights):
    with pytest.raises(InvalidMethod):
        AlphaSplit().split(ALPHA, weights)


def test_split_refuses_no_weights_wrong_numbers_and_totals():
    with pytest.raises(InvalidMethod):
        AlphaSplit().split(ALPHA, [])
    with pytest.raises(InvalidMethod, match="2 weights for 3"):
        AlphaSplit(weights=(1, 2)).rejected(np.zeros(3), ALPHA)
    with pytest.raises(InvalidMethod):
        AlphaSplit(weights=(0,))
    with pytest.raises(InvalidBudget):
        AlphaSplit().split(1.0, [1, 2])


# --- the ledger's rule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reserve", "levels", "limit"),
    [
        (False, [0.04, 0.01, 0.04 / 9, 0.0025], 0.04 * math.pi**2 / 6),
        (True, [0.24 / math.pi**2, 0.06 / math.pi**2, 0.08 / 3 / math.pi**2, 0.015 / math.pi**2], 0.04),
    ],
)
def test_levels_fall_with_the_square_and_add_up(reserve, levels, limit):
    rule = AlphaLedger(reserve=reserve)
    assert [rule.level(0.04, k) for k in range(1, 5)] == pytest.approx(levels, rel=1e-14)
    for count in range(5):
        assert rule.spent(0.04, count) == pytest.approx(math.fsum(levels[:count]), rel=1e-15)
    assert rule.spent(0.04, 40) < limit
    assert 0.999 * limit < rule.spent(0.04, 2000) <= limit


def test_ledger_refuses_what_is_no_opening():
    for opening in (0, -1):
        with pytest.raises(InvalidMethod):
            AlphaLedger().level(ALPHA, opening)
    with pytest.raises(InvalidMethod):
        AlphaLedger().spent(ALPHA, -1)
    with pytest.raises(InvalidBudget):
        AlphaLedger().level(0.0, 1)


# --- Learn then Test --------------------------------------------------------------------------------------------------


def test_hoeffding_bentkus_of_the_reference_values():
    p = hoeffding_bentkus([0.02, 0.04], 500, 0.05)
    assert p[0] == pytest.approx(0.00125043, abs=5e-9)
    assert p[1] == pytest.approx(0.486167, abs=5e-7)


def test_hoeffding_bentkus_at_its_ends():
    assert hoeffding_bentkus(0.0, 100, 0.05) == pytest.approx(0.95**100)  # h(0, b) = -log(1 - b)
    assert hoeffding_bentkus([0.05, 0.5, 1.0], 100, 0.05).tolist() == [1.0, 1.0, 1.0]
    p = hoeffding_bentkus(np.linspace(0, 1, 101).reshape(1, 101), 100, 0.3)
    assert p.shape == (1, 101)
    assert (np.diff(p) >= 0).all()


@pytest.mark.parametrize("wrong", range(1, 100))
def test_a_whole_number_of_losses_is_counted_as_it_is(wrong):
    # 100 * .28 is 28.000000000000004, 100 * .29 is 28.999999999999996
    p = hoeffding_bentkus(wrong / 100, 100, 0.999)
    bentkus = math.e * stats.binom.cdf(wrong, 100, 0.999)
    hoeffding = (0.999 * 100 / wrong) ** wrong * (0.1 / (100 - wrong)) ** (100 - wrong)
    assert p == pytest.approx(min(1, hoeffding, bentkus), rel=1e-9)


def test_part_of_a_loss_is_rounded_up():
    n, limit = 100, 0.3
    bentkus = math.e * stats.binom.cdf(10, n, limit)
    rough, fine = hoeffding_bentkus([0.0999, 0.1], n, limit)
    assert fine == pytest.approx(bentkus)
    assert rough == pytest.approx(bentkus)


@pytest.mark.parametrize(
    ("risks", "n", "limit", "error"),
    [
        ([math.nan], 10, 0.1, InvalidMeasurement),
        ([1.1], 10, 0.1, InvalidMeasurement),
        ([-0.1], 10, 0.1, InvalidMeasurement),
        ([0.1], 0, 0.1, InvalidMeasurement),
        ([0.1], 10, 0.0, InvalidBudget),
        ([0.1], 10, 1.0, InvalidBudget),
    ],
)
def test_hoeffding_bentkus_refuses(risks, n, limit, error):
    with pytest.raises(error):
        hoeffding_bentkus(risks, n, limit)


@pytest.mark.parametrize("method", [Holm(), AlphaSplit(), FixedSequence(), FixedSequence(starts=4)], ids=str)
def test_forty_configurations_at_the_limit_are_rarely_called_safe(method):
    runs, n, limit = 1000, 300, 0.1
    risks = np.random.default_rng(2).binomial(n, limit, (runs, 40)) / n
    p = hoeffding_bentkus(risks, n, limit)
    rule = LearnThenTest(method=method)
    assert np.mean([rule.safe(row, ALPHA).any() for row in p]) <= allowed(runs)
    assert (p <= ALPHA).any(axis=1).mean() > 0.3  # what happens without a rule: the best of 40 is taken for safe
    better = hoeffding_bentkus(np.full(40, 0.02), n, limit)
    assert rule.safe(better, ALPHA).all()


def test_a_configuration_is_as_safe_as_the_largest_of_its_risks():
    p = np.array([[0.001, 0.001, 0.5], [0.001, 0.5, 0.001]])
    assert LearnThenTest().safe(p, ALPHA).tolist() == [True, False, False]
    np.testing.assert_array_equal(LearnThenTest().safe(p, ALPHA), LearnThenTest().rejected(p.max(axis=0), ALPHA))
    with pytest.raises(InvalidMeasurement):
        LearnThenTest().safe(np.full((2, 2), math.nan), ALPHA)


def test_the_path_goes_from_safe_to_unsafe_and_ties_go_from_the_first_cell():
    assert learn_path(np.array([[0.0, 0.3], [0.1, 0.2]])).tolist() == [0, 2, 3, 1]
    assert learn_path(np.zeros((2, 3))).tolist() == [0, 1, 3, 2, 4, 5]
    with pytest.raises(InvalidMeasurement):
        learn_path(np.zeros(4))


def test_walking_a_path_stops_at_the_first_failure():
    p, rule = np.array([[0.01, 0.02], [0.9, 0.01]]), LearnThenTest()
    assert rule.along_path(np.array([0, 1, 2, 3]), p, ALPHA).tolist() == [[True, True], [False, False]]
    assert rule.along_path(np.array([3, 0]), p, ALPHA).tolist() == [[True, False], [False, True]]
    for path in ([0, 0], [4], [-1], [], [[0, 1]], [0.5]):
        with pytest.raises(InvalidMeasurement, match="no path"):
            rule.along_path(np.array(path), p, ALPHA)


def test_a_path_learned_on_one_half_controls_the_error_on_the_other():
    runs, n, limit, shape = 1000, 300, 0.1, (4, 5)
    generator = np.random.default_rng(3)
    risk = np.full(shape, limit)  # a grid of nothing but configurations at the limit
    halves = hoeffding_bentkus(generator.binomial(n, risk, (2, runs, *shape)) / n, n, limit)
    rule = LearnThenTest()
    honest = [rule.along_path(learn_path(a), b, ALPHA).any() for a, b in zip(*halves, strict=True)]
    assert np.mean(honest) <= allowed(runs)
    cheating = [rule.along_path(learn_path(b), b, ALPHA).any() for b in halves[1]]
    assert np.mean(cheating) > 0.2  # a path learned on the data it is walked on


def test_a_learned_path_finds_more_than_holm_on_a_grid():
    n, limit = 1000, 0.1  # six levels of bits by seven of group size: riskier to the right and below
    risk = 0.01 + 0.015 * (np.arange(6)[:, None] + np.arange(7)[None])
    generator, rule = np.random.default_rng(4), LearnThenTest()
    found, whole = 0, 0
    for _ in range(100):
        first, second = hoeffding_bentkus(generator.binomial(n, risk, (2, 6, 7)) / n, n, limit)
        safe = rule.along_path(learn_path(first), second, ALPHA)
        assert not safe[risk > limit + 0.03].any()
        found += int(safe.sum())
        whole += int(rule.safe(second.ravel(), ALPHA).sum())
    assert found > whole


def test_the_smallest_safe_configuration():
    sizes = np.array([[8.0, 7.0, 6.0], [4.0, 3.0, 3.0]])
    safe = np.array([[True, True, False], [True, False, False]])
    assert smallest(safe, sizes) == (1, 0)
    assert smallest(np.ones((2, 3), dtype=bool), sizes) == (1, 1)  # the first of equals
    assert smallest(np.zeros((2, 3), dtype=bool), sizes) is None
    assert smallest(safe.ravel(), sizes.ravel()) == (3,)
    with pytest.raises(InvalidMeasurement):
        smallest(safe, sizes.ravel())
    with pytest.raises(InvalidMeasurement):
        smallest(safe, np.where(safe, sizes, math.nan))


# --- the search has looked at the data --------------------------------------------------------------------------------


def test_the_best_of_forty_candidates_at_the_margin():
    """Section 11's experiment: 40 candidates exactly at the margin, 600 windows, so every certificate is false."""
    runs, windows, margin = 300, 600, 0.008
    plan = {"margin": margin, "mean": -0.004, "sd": 0.03, "cap": 0.12}
    generator = np.random.default_rng(5)
    rules = {"bonferroni": AlphaSplit(), "holm": Holm(), "ladder": FixedSequence(), "gate": IntersectionUnion()}
    false = dict.fromkeys([*rules, "same data", "split in half"], 0)
    for _ in range(runs):
        x = generator.normal(margin, 0.03, (40, windows))
        p = p_from_log_e(log_wealth(x, **plan)[:, -1])
        for name, rule in rules.items():
            false[name] += bool(rule.rejected(p, ALPHA).any())
        false["same data"] += bool(p[x.mean(axis=1).argmin()] <= ALPHA)
        half = x[x[:, : windows // 2].mean(axis=1).argmin(), windows // 2 :]
        false["split in half"] += bool(p_from_log_e(log_wealth(half, **plan)[-1]) <= ALPHA)
    # the negative control; its rate depends on the pilot that the bets were planned with, .3 to .45 for sensible ones
    assert 0.27 < false.pop("same data") / runs < 0.5
    for name, count in false.items():
        assert count / runs <= allowed(runs), name
    assert false["ladder"] > 0  # the engine does bet
    assert false["split in half"] > 0


# --- groups -----------------------------------------------------------------------------------------------------------


def test_bounds_of_groups_by_a_function_and_by_arrays():
    means, asked = {"de": 0.01, "en": 0.0, "ja": 0.03}, []

    def bound(name, level):
        asked.append((name, level))
        return means[name] + float(stats.norm.isf(level)) * 0.01

    made = WorstGroup().bounds(["de", "en", "ja"], bound, 0.06)
    assert sorted(asked) == [(name, level) for name in means for level in (0.02, 0.06)]
    assert (made.worst, made.worst_bound) == ("ja", bound("ja", 0.06))
    np.testing.assert_array_equal(made.simultaneous, [bound(name, 0.02) for name in means])
    again = WorstGroup().bounds(["de", "en", "ja"], (made.single, made.simultaneous), 0.06)
    assert (again.worst, again.worst_bound, again.names) == (made.worst, made.worst_bound, ("de", "en", "ja"))
    np.testing.assert_array_equal(again.single, made.single)
    np.testing.assert_array_equal(WorstGroup().bounds(["all"], bound_all, 0.05).simultaneous, [0.05])


def bound_all(name, level):
    return level


def test_worst_and_simultaneous_bounds_miss_as_often_as_they_may():
    runs, groups, error = 4000, 12, 0.003
    z, z_share = stats.norm.isf([ALPHA, ALPHA / groups])
    names = [str(g) for g in range(groups)]
    for means in (np.full(groups, 0.01), np.append(np.full(groups - 1, -1.0), 0.01)):  # all the worst, one the worst
        estimates = np.random.default_rng(6).normal(means, error, (runs, groups))
        worst, table, each = 0, 0, 0
        for x in estimates:
            made = WorstGroup().bounds(names, (x + z * error, x + z_share * error), ALPHA)
            worst += made.worst_bound < means.max()
            table += bool((made.simultaneous < means).any())
            each += bool((made.single < means).any())
        assert worst / runs <= allowed(runs)
        assert table / runs <= allowed(runs)
        assert each / runs > 0.4  # lines at level alpha do not hold together
    assert worst / runs > 0.03  # where one group is far worse than all others, the level is used up


def test_the_gate_over_twelve_groups_and_the_pooled_average_that_hides_one():
    """Section 5's experiment: groups at half the margin; in the null case one of them is exactly at it."""
    runs, groups, units, margin = 150, 12, 3000, 0.01
    generator = np.random.default_rng(7)
    passed = {"null": 0, "true": 0, "pooled": 0}
    for _ in range(runs):
        sd = np.exp(generator.uniform(math.log(0.015), math.log(0.05), groups))
        noise = generator.normal(size=(groups, units)) * sd[:, None]
        means = np.full(groups, margin / 2)
        bad = generator.integers(groups)
        last = [log_wealth(z + margin / 2, margin=margin, mean=margin / 2, sd=s, cap=0.25)[-1]
                for z, s in zip(noise, sd, strict=True)]  # fmt: skip
        passed["true"] += WorstGroup().gate(p_from_log_e(last), ALPHA)
        means[bad] = margin
        last[bad] = log_wealth(noise[bad] + margin, margin=margin, mean=margin / 2, sd=sd[bad], cap=0.25)[-1]
        passed["null"] += WorstGroup().gate(p_from_log_e(last), ALPHA)
        pool = (noise + means[:, None])[:, : units // groups].T.ravel()  # as many units as one group has, in turn
        wealth = log_wealth(pool, margin=margin, mean=margin / 2, sd=float(np.sqrt((sd**2).mean())), cap=0.25)[-1]
        passed["pooled"] += bool(p_from_log_e(wealth) <= ALPHA)
    assert passed["null"] / runs <= allowed(runs)
    assert passed["true"] / runs > 0.95
    assert passed["pooled"] / runs > 0.9  # the negative control


def test_equity_scaled_score_and_spread():
    assert WorstGroup().equity_scaled(0.8, np.full(5, 0.8)) == 0.8
    assert WorstGroup().equity_scaled(0.8, np.array([0.7, 0.9])) == pytest.approx(0.8 / 1.2)
    assert WorstGroup(equity=3.0).equity_scaled(0.8, np.array([0.7, 0.9])) == pytest.approx(0.8 / 1.6)
    assert spread(np.array([0.1, -0.2, 0.3])) == pytest.approx(0.5)
    assert spread(np.array([0.1])) == 0.0


@pytest.mark.parametrize(
    ("names", "bounds"),
    [
        ([], ([], [])),
        (["a", "a"], ([1, 2], [2, 3])),
        (["a", "b"], ([1], [2])),
        (["a", "b"], ([1, math.nan], [2, 3])),
        (["a", "b"], ([2, 3], [1, 4])),  # the two arrays in the wrong order
    ],
)
def test_bounds_that_do_not_fit_the_groups_are_refused(names, bounds):
    with pytest.raises(InvalidMeasurement):
        WorstGroup().bounds(names, bounds, ALPHA)


def test_groups_refuse_what_means_nothing():
    with pytest.raises(InvalidBudget):
        WorstGroup().bounds(["a"], ([1], [1]), 0.0)
    for call in (spread, lambda means: WorstGroup().equity_scaled(0.5, means)):
        for means in ([], [math.nan], [[0.1]]):
            with pytest.raises(InvalidMeasurement):
                call(np.array(means))
    with pytest.raises(InvalidMeasurement):
        WorstGroup().equity_scaled(math.nan, np.array([0.5]))
    with pytest.raises(InvalidMethod):
        WorstGroup(equity=-1.0)
    assert WorstGroup().bounds(["a", "b"], ([1, math.inf], [2, math.inf]), ALPHA).worst == "b"
