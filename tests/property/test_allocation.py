"""Every allocator against trying everything."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pennyweight import catalogue
from pennyweight.errors import InfeasibleBudget
from pennyweight.formats import Grid
from pennyweight.methods.allocation import (
    DynamicProgramming,
    Greedy,
    IntegerProgram,
    Lagrangian,
    Penalty,
    Uniform,
    frontier,
)
from pennyweight.methods.allocation.greedy import hull
from pennyweight.plan import Option, Stage, Step
from pennyweight.problem import Limit, Problem

Table = tuple[tuple[Option, ...], ...]
numbers = st.tuples(st.integers(1, 10_000), st.floats(1e-6, 10, allow_subnormal=False))


def table_of(groups: list[list[tuple[int, float]]]) -> Table:
    return tuple(
        tuple(
            Option(
                sites=(f"s{g}",),
                step=Step((Stage("gptq", Grid(bits=2 + i, group_size=64)),)),
                bytes=size,
                damage=damage,
            )
            for i, (size, damage) in enumerate(group)
        )
        for g, group in enumerate(groups)
    )


tables = st.lists(st.lists(numbers, min_size=1, max_size=4), min_size=1, max_size=4).map(table_of)
limits_of = st.sampled_from(["bytes", "damage"])


def total(values: list[float]) -> float:
    return sum(values)


@given(tables, limits_of, st.floats(0, 1))
@settings(max_examples=150)
def test_the_integer_program_is_as_good_as_trying_everything(table: Table, of: str, share: float) -> None:
    probe = Limit(of, 0.0)  # type: ignore[arg-type]
    low, high = (total([f(probe.cost(o) for o in group) for group in table]) for f in (min, max))
    limit = Limit(of, (low + share * (high - low)) * (1 + 1e-6))  # type: ignore[arg-type]
    feasible = [
        total([Problem.of(limit).value(o) for o in choice])
        for choice in itertools.product(*table)
        if total([limit.cost(o) for o in choice]) <= limit.at_most
    ]
    chosen = IntegerProgram(gap=0.0).allocate(table, Problem.of(limit))
    assert total([limit.cost(o) for o in chosen]) <= limit.at_most
    assert total([Problem.of(limit).value(o) for o in chosen]) <= min(feasible) * (1 + 1e-6)


@given(tables, limits_of)
@settings(max_examples=100)
def test_tightening_never_lowers_the_objective(table: Table, of: str) -> None:
    probe = Limit(of, 0.0)  # type: ignore[arg-type]
    low, high = (total([f(probe.cost(o) for o in group) for group in table]) for f in (min, max))
    values = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        limit = Limit(of, (low + share * (high - low)) * (1 + 1e-6))  # type: ignore[arg-type]
        values.append(
            total([Problem.of(limit).value(o) for o in IntegerProgram(gap=0.0).allocate(table, Problem.of(limit))])
        )
    assert all(tight >= loose * (1 - 1e-6) for tight, loose in itertools.pairwise(values))


@given(tables, limits_of, st.floats(0.01, 0.999))
@settings(max_examples=50)
def test_what_nothing_meets_is_refused_by_everyone(table: Table, of: str, share: float) -> None:
    probe = Limit(of, 0.0)  # type: ignore[arg-type]
    least = total([min(probe.cost(o) for o in group) for group in table])
    for kind in catalogue.classes("allocation"):
        with pytest.raises(InfeasibleBudget) as error:
            kind().allocate(table, Problem.of(Limit(of, least * share)))  # type: ignore[arg-type]
        assert f"at least {least:.6g}" in error.value.expected


@given(tables, limits_of, st.floats(0, 1))
@settings(max_examples=50)
def test_uniform_is_never_better_than_the_integer_program(table: Table, of: str, share: float) -> None:
    probe = Limit(of, 0.0)  # type: ignore[arg-type]
    low, high = (total([f(probe.cost(o) for o in group) for group in table]) for f in (min, max))
    limit = Limit(of, (low + share * (high - low)) * (1 + 1e-6))  # type: ignore[arg-type]
    try:
        uniform = Uniform().allocate(table, Problem.of(limit))
    except InfeasibleBudget:
        return
    best = IntegerProgram(gap=0.0).allocate(table, Problem.of(limit))
    assert total([Problem.of(limit).value(o) for o in best]) <= total([Problem.of(limit).value(o) for o in uniform]) * (
        1 + 1e-6
    )


def problem_of(table: Table, of: str, share: float) -> Problem:
    probe = Limit(of, 0.0)  # type: ignore[arg-type]
    low, high = (total([f(probe.cost(o) for o in group) for group in table]) for f in (min, max))
    return Problem.of(Limit(of, low + share * (high - low)))  # type: ignore[arg-type]


def best_of(table: Table, problem: Problem) -> float:
    return min(problem.total(choice) for choice in itertools.product(*table) if problem.fits(choice))


def sensible(seed: int, groups: int) -> Table:
    """Sizes within a factor of fifty, log-normal sensitivities, damage that falls fourfold a bit."""
    rng = np.random.default_rng(seed)
    sizes, sensitivities = rng.integers(1_000, 50_000, groups), rng.lognormal(-4, 1.5, groups)
    return table_of(
        [
            [(int(n * b), float(s * 4.0**-b)) for b in (3.25, 4.25, 8.25)]
            for n, s in zip(sizes, sensitivities, strict=True)
        ]
    )


six = st.builds(sensible, st.integers(0, 2**32 - 1), st.integers(1, 6))
claiming = [kind for kind in catalogue.classes("allocation") if math.isfinite(kind().gap)]
shares = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


@pytest.mark.parametrize("kind", claiming, ids=lambda kind: kind.name)
@given(table=six, of=limits_of, share=shares)
@settings(max_examples=25)
def test_as_good_as_it_says(kind: type[Any], table: Table, of: str, share: float) -> None:
    problem = problem_of(table, of, share)
    chosen = kind().allocate(table, problem)
    assert problem.fits(chosen)
    assert problem.total(chosen) <= best_of(table, problem) * (1 + kind().gap) * (1 + 1e-12)


@pytest.mark.parametrize("kind", [Greedy, Lagrangian], ids=lambda kind: kind.name)
@given(table=tables, of=limits_of, share=shares)
@settings(max_examples=50)
def test_no_worse_than_the_best_by_more_than_one_step(kind: type[Any], table: Table, of: str, share: float) -> None:
    """Up to the first step that does not fit, steps along hulls are those of the linear relaxation."""
    problem = problem_of(table, of, share)
    hulls = [hull(options, problem.aim, problem.limits[0].of) for options in table]
    steps = [problem.value(a) - problem.value(b) for options in hulls for a, b in itertools.pairwise(options)]
    value, best = problem.total(kind().allocate(table, problem)), best_of(table, problem)
    assert best * (1 - 1e-12) <= value <= (best + max(steps, default=0.0)) * (1 + 1e-9)


@given(tables, shares)
@settings(max_examples=50)
def test_dynamic_programming_is_exact_in_whole_units(table: Table, share: float) -> None:
    problem = problem_of(table, "bytes", share)
    value = problem.total(DynamicProgramming(units=2**16).allocate(table, problem))
    assert value <= best_of(table, problem) * (1 + 1e-12)


@given(tables, limits_of, shares, st.integers(1, 300))
@settings(max_examples=50)
def test_dynamic_programming_loses_at_most_one_unit_a_group(table: Table, of: str, share: float, units: int) -> None:
    problem = problem_of(table, of, share)
    (limit,) = problem.limits
    room = limit.at_most - total([min(limit.cost(o) for o in group) for group in table])
    lower = limit.at_most - room * min(len(table) / units, 1.0) * (1 + 1e-9)
    if any(limit.total(choice) <= lower for choice in itertools.product(*table)):
        value = problem.total(DynamicProgramming(units=units).allocate(table, problem))
        assert value <= best_of(table, Problem(problem.aim, (Limit(limit.of, lower),))) * (1 + 1e-12)


@pytest.mark.parametrize("method", [IntegerProgram(gap=0.0), DynamicProgramming(units=2**16)], ids=lambda m: m.name)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.05, 0.95), factor=st.floats(0.01, 0.9))
@settings(max_examples=40)
def test_less_sensitive_never_means_more_bits(method: Any, seed: int, share: float, factor: float) -> None:
    """Sizes are small whole numbers, where both methods are exact."""
    rng = np.random.default_rng(seed)
    groups = [
        [(int(n * b), float(s * 4.0**-b)) for b in (2, 3, 4, 8)]
        for n, s in zip(rng.integers(1, 1_000, 5), rng.lognormal(-4, 1.5, 5), strict=True)
    ]
    table = table_of(groups)
    calmer = (tuple(replace(o, damage=o.damage * factor) for o in table[0]), *table[1:])
    problem = problem_of(table, "bytes", share)
    before, after = (method.allocate(t, problem)[0] for t in (table, calmer))
    assert after.bytes <= before.bytes


@pytest.mark.parametrize("kind", [Lagrangian, Penalty], ids=lambda kind: kind.name)
@given(seed=st.integers(0, 2**32 - 1), shares=st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9)), of=limits_of)
@example(seed=26887, shares=(0.65625, 0.6796875), of="damage")  # mended only from another limit's cheapest choice
@settings(max_examples=25)
def test_several_limits_against_trying_everything(
    kind: type[Any], seed: int, shares: tuple[float, float], of: str
) -> None:
    """Times that go with bytes at three rates; where there is a plan it is found, and it is not far from the best."""
    rates = np.random.default_rng(seed).choice([0.5, 1.0, 2.0], 5)
    table = tuple(
        tuple(replace(o, milliseconds=o.bytes * 1e-6 * rate) for o in group)
        for group, rate in zip(sensible(seed, 5), rates, strict=True)
    )
    low, high = (total([f(o.milliseconds for o in group) for group in table]) for f in (min, max))
    first = problem_of(table, of, shares[0] ** (8 if of == "damage" else 1)).limits[0]
    problem = Problem.of(first, Limit("milliseconds", low + shares[1] * (high - low)))
    fitting = [problem.total(choice) for choice in itertools.product(*table) if problem.fits(choice)]
    if not fitting:
        with pytest.raises(InfeasibleBudget, match="found no plan"):
            kind().allocate(table, problem)
        return
    chosen = kind().allocate(table, problem)
    assert problem.fits(chosen)
    assert problem.total(chosen) <= min(fitting) * (1 + 2 * kind().gap)


@given(tables, limits_of)
@settings(max_examples=50)
def test_the_frontier_is_the_lower_hull_of_everything(table: Table, of: str) -> None:
    """Every choice lies on or above the line between the two of the frontier that it lies between."""
    aim = "bytes" if of == "damage" else "damage"
    sweep = frontier(table, aim, of)  # type: ignore[arg-type]
    x, y = ([total([float(getattr(o, q)) for o in choice]) for choice in sweep] for q in (of, aim))
    assert len(sweep) == len(x) == len(list(sweep))
    assert all(a < b for a, b in itertools.pairwise(x))
    assert all(a > b for a, b in itertools.pairwise(y))
    for choice in itertools.product(*table):
        cost, value = (total([float(getattr(o, q)) for o in choice]) for q in (of, aim))
        assert value >= float(np.interp(cost, x, y)) - 1e-9 * y[0]
