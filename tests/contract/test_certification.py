"""Every engine against the contract of its room: it misses no more often than it says, wherever it says so.

The distributions are those of the simulation suite: small and heavy tails, spikes, counts, clusters. Engines that are
approximate are simulated where they are meant to hold: documents as clusters, or 400 questions for a score test; on
skewed units they miss more often, and the benchmark says by how much.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pennyweight import catalogue
from pennyweight.budget import Terms
from pennyweight.errors import InvalidBudget, InvalidMeasurement
from pennyweight.methods.certification import AnytimeEngine, Engine

ENGINES = catalogue.classes("certification")
every_engine = pytest.mark.parametrize("kind", ENGINES, ids=lambda kind: kind.name)
PATHS, UNITS, POPULATION, ALPHA = 300, 400, 600, 0.05
ALLOWED = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / PATHS)


# --- the distributions ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str  # bounded, binary or ternary
    floor: float
    cap: float
    mean: float  # of the values counted up to the cap
    sd: float
    draw: Callable[[np.random.Generator, int], np.ndarray]


def excess(mean, sd, cap):
    """E[(X - cap)+] of a normal X: what a cap takes off its mean."""
    z = (cap - mean) / sd
    return sd * (stats.norm.pdf(z) - z * stats.norm.sf(z))


def lognormal_mean(cap):
    """E[min(.02 (Y - 1) + .004, cap)] with log Y ~ N(-.72, 1.2²), so E[Y] = 1."""
    top = (cap - 0.004) / 0.02 + 1
    z = (math.log(top) + 0.72) / 1.2
    return 0.02 * (stats.norm.cdf(z - 1.2) + top * stats.norm.sf(z) - 1) + 0.004


def three_way(g, n):
    u = g.random(n)
    return (u < 0.025).astype(float) - ((u >= 0.025) & (u < 0.05))


def clusters(g):
    """60 documents of 10 windows, correlation .2 between windows of one document."""
    return (g.normal(0.004, 0.03 * math.sqrt(0.2), (60, 1)) + g.normal(0, 0.03 * math.sqrt(0.8), (60, 10))).ravel()


SPIKES = 0.004 - 0.005 * excess(0.203, 0.02, 0.25) - 0.995 * excess(0.003, 0.02, 0.25)
CASES = {
    # the floor of the two normal cases lies eight deviations below the mean
    "normal": Case("bounded", -0.25, 0.25, 0.004, 0.03, lambda g, n: g.normal(0.004, 0.03, n)),
    "lognormal": Case(
        "bounded", -0.016, 0.5, lognormal_mean(0.5), 0.036, lambda g, n: 0.02 * (g.lognormal(-0.72, 1.2, n) - 1) + 0.004
    ),
    "spikes": Case(
        "bounded", -0.25, 0.25, SPIKES, 0.0245, lambda g, n: g.normal(0.003, 0.02, n) + 0.2 * (g.random(n) < 0.005)
    ),
    "disagreement": Case("binary", 0.0, 1.0, 0.02, 0.14, lambda g, n: (g.random(n) < 0.02).astype(float)),
    "accuracy": Case("ternary", -1.0, 1.0, 0.0, math.sqrt(0.05), three_way),
    "clusters": Case("bounded", -0.25, 0.25, 0.004, 0.03, lambda g, n: clusters(g)[:n]),
}
DOCUMENTS = np.arange(600) // 10


def terms_of(case, *, margin=None, population=None, **changes):
    margin = case.mean if margin is None else margin
    chosen = Terms(
        margin=margin, cap=case.cap, pilot_mean=margin - case.sd / 6, pilot_sd=case.sd, alpha=ALPHA, tail_alpha=0.01,
        population=population, n_max=UNITS, floor=case.floor,
    )  # fmt: skip
    return dataclasses.replace(chosen, **changes)


def takes(kind, case):
    return kind.validity.values in ("capped", "bounded", "any") or kind.validity.values == case.kind


def held_to(kind):
    """The scopes and distributions in which an engine is held to its level."""
    for scope in sorted(kind.validity.scopes):
        for name, case in CASES.items():
            dependent = name == "clusters"
            right = {"source": not dependent, "asymptotic": dependent, "corpus": True}[scope]
            if takes(kind, case) and right:
                yield scope, name


HELD = [pytest.param(k, *at, id=f"{k.name}-{'-'.join(at)}") for k in ENGINES for at in held_to(k)]


def natural(kind):
    """Values that the engine takes, with terms that suit them and a scope that it declares."""
    case = next(candidate for candidate in CASES.values() if takes(kind, candidate))
    g = np.random.default_rng(7)
    return case, np.maximum(case.draw(g, 300), case.floor)


# --- the level --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "scope", "name"), HELD)
def test_it_misses_no_more_often_than_it_says(kind: type[Any], scope: str, name: str) -> None:
    case, engine, g = CASES[name], kind(), np.random.default_rng(11)
    documents = DOCUMENTS if scope == "asymptotic" else None
    units = len(DOCUMENTS) if scope == "asymptotic" else UNITS
    corpus = np.maximum(case.draw(g, POPULATION), case.floor)
    mean = float(np.minimum(corpus, case.cap).mean()) if scope == "corpus" else case.mean
    chosen = terms_of(case, margin=mean, population=POPULATION if scope == "corpus" else None)
    misses = 0
    for _ in range(PATHS):
        x = g.permutation(corpus)[:units] if scope == "corpus" else np.maximum(case.draw(g, units), case.floor)
        if kind.validity.anytime:
            misses += engine.path(x, chosen).max() >= -math.log(ALPHA)
        else:
            misses += engine.bound(x, chosen, documents=documents) < mean
    assert misses / PATHS <= ALLOWED


def test_a_t_bound_looked_at_after_every_unit_misses_far_too_often() -> None:
    x = np.random.default_rng(3).normal(0.004, 0.03, (PATHS, 2000))
    n = np.arange(1, 2001)
    mean = x.cumsum(axis=1) / n
    spread = np.sqrt(np.maximum((x**2).cumsum(axis=1) / n - mean**2, 0) / np.maximum(n - 1, 1))
    bound = mean + stats.t.isf(ALPHA, np.maximum(n - 1, 1)) * spread
    assert 0.25 < (bound[:, 49:] < 0.004).any(axis=1).mean() < 0.6


@every_engine
def test_it_is_an_engine_and_anytime_where_it_says_so(kind: type[Any]) -> None:
    assert isinstance(kind(), Engine)
    assert isinstance(kind(), AnytimeEngine) == kind.validity.anytime
    assert kind.validity.scopes <= {"corpus", "source", "asymptotic"}
    assert kind.validity.scopes
    assert kind.validity.values in {"capped", "bounded", "binary", "ternary", "any"}


@pytest.mark.parametrize("kind", [k for k in ENGINES if k.validity.anytime], ids=lambda kind: kind.name)
@pytest.mark.parametrize("population", [None, POPULATION])
def test_path_and_bound_tell_the_same(kind: type[Any], population: int | None) -> None:
    case, g, threshold, seen = CASES["normal"], np.random.default_rng(5), -math.log(ALPHA), set()
    for margin in np.linspace(0.0, 0.03, 40):
        x, chosen = case.draw(g, UNITS), terms_of(case, margin=float(margin), population=population)
        path, bound = kind().path(x, chosen), kind().bound(x, chosen)
        assert path.shape == x.shape
        if bound < margin - 1e-9:
            assert path.max() >= threshold
        if path[-1] >= threshold + 1e-6:
            assert bound <= margin + 1e-9
        seen.add(bool(path[-1] >= threshold))
    assert seen == {True, False}  # or nothing was tested


# --- what every bound is ----------------------------------------------------------------------------------------------


@every_engine
def test_a_smaller_level_gives_a_larger_bound(kind: type[Any]) -> None:
    case, x = natural(kind)
    bounds = [kind().bound(x, terms_of(case), alpha) for alpha in (0.3, 0.1, 0.05, 0.01, 0.001)]
    assert all(a < b for a, b in pairwise(bounds))
    assert kind().bound(x, terms_of(case)) == kind().bound(x, terms_of(case), ALPHA)


@every_engine
def test_it_lies_above_the_mean_and_never_above_the_cap(kind: type[Any]) -> None:
    case, x = natural(kind)
    assert kind().bound(x, terms_of(case)) > np.minimum(x, case.cap).mean()
    if kind.validity.values != "any":
        assert kind().bound(np.full(20, case.cap), terms_of(case)) == case.cap


@every_engine
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_units_keep_the_bound_above_their_value(kind: type[Any], value: float) -> None:
    chosen = terms_of(CASES["disagreement"])
    bounds = [kind().bound(np.full(n, value), chosen) for n in (50, 5000)]
    assert value - 1e-9 <= bounds[1] <= bounds[0] <= 1
    if value == 0:
        assert bounds[1] <= 0.02  # a tenth of what 50 units leave, at the least


@every_engine
def test_a_full_pass_of_a_corpus_is_its_mean(kind: type[Any]) -> None:
    case, x = natural(kind)
    if "corpus" in kind.validity.scopes:
        bound = kind().bound(x, terms_of(case, population=len(x)))
        assert bound == pytest.approx(np.minimum(x, case.cap).mean(), rel=1e-12)
        some = kind().bound(x[:-30], terms_of(case, population=len(x)))
        assert some <= (x[:-30].sum() + 30 * case.cap) / len(x) + 1e-12  # what is left cannot be above the cap


@every_engine
def test_the_unit_of_the_degradation_does_not_matter(kind: type[Any]) -> None:
    case, x = natural(kind)
    if kind.validity.values in ("capped", "bounded", "any"):
        chosen = terms_of(case)
        scaled = dataclasses.replace(
            chosen, margin=8 * chosen.margin, cap=8 * chosen.cap, pilot_mean=8 * chosen.pilot_mean,
            pilot_sd=8 * chosen.pilot_sd, floor=8 * case.floor,
        )  # fmt: skip
        assert kind().bound(8 * x, scaled) == pytest.approx(8 * kind().bound(x, chosen), rel=1e-9)


@every_engine
def test_arguments_are_not_written_to(kind: type[Any]) -> None:
    case, x = natural(kind)
    before, documents = x.copy(), np.arange(len(x))
    x.flags.writeable = documents.flags.writeable = False
    kind().bound(x, terms_of(case), documents=documents)
    if kind.validity.anytime:
        kind().path(x, terms_of(case))
    np.testing.assert_array_equal(x, before)


# --- what every engine refuses ----------------------------------------------------------------------------------------


@every_engine
def test_it_refuses_a_scope_that_it_does_not_declare(kind: type[Any]) -> None:
    case, x = natural(kind)
    for scope in ("corpus", "source", "asymptotic"):
        chosen = terms_of(case, population=1000 if scope == "corpus" else None, scope=scope)
        if scope in kind.validity.scopes:
            assert math.isfinite(kind().bound(x, chosen))
        else:
            with pytest.raises(InvalidBudget, match="scope"):
                kind().bound(x, chosen)


@every_engine
def test_it_needs_a_floor_where_it_says_so(kind: type[Any]) -> None:
    case, x = natural(kind)
    if kind.validity.values == "bounded":
        with pytest.raises(InvalidMeasurement, match="smallest degradation"):
            kind().bound(x, terms_of(case, floor=None))
    else:
        assert math.isfinite(kind().bound(x, terms_of(case, floor=None)))


@every_engine
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -5.0])
def test_it_refuses_values_that_cannot_be(kind: type[Any], value: float) -> None:
    case, x = natural(kind)
    x[17] = value
    with pytest.raises(InvalidMeasurement):
        kind().bound(x, terms_of(case))
    if kind.validity.anytime:
        with pytest.raises(InvalidMeasurement):
            kind().path(x, terms_of(case))


@every_engine
@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_it_refuses_a_level_that_means_nothing(kind: type[Any], alpha: float) -> None:
    case, x = natural(kind)
    with pytest.raises(InvalidBudget):
        kind().bound(x, terms_of(case), alpha)


@every_engine
def test_it_refuses_a_table_and_more_units_than_there_are(kind: type[Any]) -> None:
    case, x = natural(kind)
    with pytest.raises(InvalidMeasurement):
        kind().bound(x.reshape(-1, 2), terms_of(case))
    if "corpus" in kind.validity.scopes:
        with pytest.raises(InvalidMeasurement, match="300 windows"):
            kind().bound(x, terms_of(case, population=299))


@every_engine
def test_nothing_seen_is_nothing_claimed(kind: type[Any]) -> None:
    case, x = natural(kind)
    if kind.validity.values == "any":
        with pytest.raises(InvalidMeasurement):
            kind().bound(x[:0], terms_of(case))
    else:
        assert kind().bound(x[:0], terms_of(case)) == case.cap
