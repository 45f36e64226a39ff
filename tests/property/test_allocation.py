"""The integer program against trying everything."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pennyweight.errors import InfeasibleBudget
from pennyweight.formats import Grid
from pennyweight.methods.allocation import IntegerProgram, Uniform
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
        if total([limit.cost(o) for o in choice]) <= limit.at_most * (1 - 2e-9)
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
    for method in (IntegerProgram(), Uniform()):
        with pytest.raises(InfeasibleBudget) as error:
            method.allocate(table, Problem.of(Limit(of, least * share)))  # type: ignore[arg-type]
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
    if total([limit.cost(o) for o in uniform]) <= limit.at_most * (1 - 2e-9):
        best = IntegerProgram(gap=0.0).allocate(table, Problem.of(limit))
        assert total([Problem.of(limit).value(o) for o in best]) <= total(
            [Problem.of(limit).value(o) for o in uniform]
        ) * (1 + 1e-6)
