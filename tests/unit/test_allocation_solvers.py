"""Greedy, prices, dynamic programming, penalty and bisection on tables whose answer is known."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pennyweight import catalogue
from pennyweight.errors import InfeasibleBudget, InvalidMethod
from pennyweight.formats import Dense, Grid
from pennyweight.methods.allocation import (
    Bisection,
    DynamicProgramming,
    Greedy,
    IntegerProgram,
    Lagrangian,
    Penalty,
    Uniform,
    frontier,
)
from pennyweight.methods.allocation.bisection import Menus
from pennyweight.methods.allocation.greedy import hull, steps
from pennyweight.methods.allocation.moves import Moves
from pennyweight.methods.allocation.penalty import relaxed
from pennyweight.plan import Option, Stage, Step
from pennyweight.problem import Limit, Problem

Table = tuple[tuple[Option, ...], ...]


def option(group: str, bits: int, size: int, damage: float, milliseconds: float = 0.0) -> Option:
    format = Dense() if bits == 16 else Grid(bits=bits, group_size=64)
    step = Step((Stage("cast" if bits == 16 else "gptq", format),))
    return Option(sites=(group,), step=step, bytes=size, damage=damage, milliseconds=milliseconds)


def bits(chosen: tuple[Option, ...]) -> list[int]:
    return [o.step.stages[0].format.bits if isinstance(o.step.stages[0].format, Grid) else 16 for o in chosen]


def water(sensitivities: list[float], sizes: list[int], menu: tuple[int, ...] = (16, 8, 6, 4, 3)) -> Table:
    """Damage that falls fourfold a bit."""
    return tuple(
        tuple(option(f"s{g}", b, n * b, s * 4.0**-b) for b in menu)
        for g, (s, n) in enumerate(zip(sensitivities, sizes, strict=True))
    )


TABLE = (
    (option("a", 16, 100, 0.0), option("a", 8, 50, 0.1), option("a", 4, 25, 1.0)),
    (option("b", 16, 100, 0.0), option("b", 8, 50, 0.2), option("b", 4, 25, 8.0)),
)
every_optimizer = pytest.mark.parametrize(
    "method", [DynamicProgramming(), Greedy(), Lagrangian(), Penalty()], ids=lambda method: method.name
)


@every_optimizer
@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (Limit("bytes", 200), [16, 16]), (Limit("bytes", 150), [8, 16]), (Limit("bytes", 149), [8, 8]),
        (Limit("bytes", 75), [4, 8]), (Limit("bytes", 50), [4, 4]), (Limit("damage", 1e-6), [16, 16]),
        (Limit("damage", 0.15), [8, 16]), (Limit("damage", 0.31), [8, 8]), (Limit("damage", 1.3), [4, 8]),
        (Limit("damage", 9.1), [4, 4]),
    ],
)  # fmt: skip
def test_by_hand(method: Any, limit: Limit, expected: list[int]) -> None:
    assert bits(method.allocate(TABLE, Problem.of(limit))) == expected


@pytest.mark.parametrize("kind", catalogue.classes("allocation"), ids=lambda kind: kind.name)
@pytest.mark.parametrize("level", [16, 8, 6, 4, 3])
def test_equal_sensitivities_give_equal_bits(kind: type[Any], level: int) -> None:
    """With exactly what uniform bits take; damage is convex in bits, so that nothing else is as good."""
    table = water([1.0] * 6, [100] * 6)
    size, damage = 6 * 100 * level, sum([4.0**-level] * 6)
    for limit in (Limit("bytes", size), Limit("damage", damage)):
        assert bits(kind().allocate(table, Problem.of(limit))) == [level] * 6


@every_optimizer
def test_equal_sensitivities_give_neighbouring_bits_between(method: Any) -> None:
    table = water([1.0] * 6, [100] * 6, menu=(8, 7, 6, 5, 4, 3))
    for size in range(1900, 4800, 100):
        chosen = bits(method.allocate(table, Problem.of(Limit("bytes", size))))
        assert max(chosen) - min(chosen) <= 1
        assert sum(chosen) == size // 100


# Steps along hulls.


def test_a_hull_leaves_out_what_lies_above_a_line() -> None:
    group = [
        option("a", b, s, d) for b, s, d in ((16, 100, 0.0), (8, 60, 1.1), (6, 40, 1.4), (4, 20, 2.0), (3, 30, 3.0))
    ]
    assert [o.bytes for o in hull(group, "damage", "bytes")] == [20, 40, 100]
    assert [o.bytes for o in hull(group, "bytes", "damage")] == [100, 40, 20]


def test_steps_of_equal_worth_come_level_by_level() -> None:
    straight = [[option(g, b, s, d) for b, s, d in ((3, 1, 2.0), (4, 2, 1.0), (8, 3, 0.0))] for g in "ab"]
    assert steps(straight, "damage", "bytes") == [(0, 1), (1, 1), (0, 2), (1, 2)]


def test_greedy_passes_over_what_does_not_fit_and_spends_what_is_left() -> None:
    """The best step costs 90 of 80; the other group's costs 50. The 30 left buy what no hull holds."""
    table = (
        (option("a", 3, 10, 10.0), option("a", 4, 40, 9.9), option("a", 16, 100, 0.0)),
        (option("b", 3, 10, 1.0), option("b", 16, 60, 0.5)),
    )
    assert len(hull(table[0], "damage", "bytes")) == 2
    assert bits(Greedy().allocate(table, Problem.of(Limit("bytes", 100)))) == [4, 16]


def test_the_frontier_starts_cheapest_and_is_a_sequence() -> None:
    sweep = frontier(TABLE, "damage", "bytes")
    assert [bits(choice) for choice in sweep] == [[4, 4], [4, 8], [8, 8], [8, 16], [16, 16]]
    assert [sweep[i] for i in range(len(sweep))] == list(sweep) == list(sweep[:])
    assert sweep[-1] == sweep[4]
    assert sweep[1:3] == (sweep[1], sweep[2])
    with pytest.raises(IndexError):
        sweep[5]
    back = frontier(TABLE, "bytes", "damage")
    assert [bits(choice) for choice in back] == [bits(choice) for choice in reversed(sweep)]


# Single changes.


def test_mending_takes_off_what_costs_least() -> None:
    moves = Moves(TABLE, Problem.of(Limit("bytes", 150)))
    mended = moves.mend(np.array([2, 2]))
    assert mended is not None
    assert bits(moves.options(mended)) == [8, 16]


def test_what_cannot_be_mended_says_what_was_reached() -> None:
    """Sixty bytes need four bits somewhere, which is slower than eight."""
    timed = tuple(
        tuple(replace(o, milliseconds=t) for o, t in zip(group, (9.0, 4.0, 6.0), strict=True)) for group in TABLE
    )
    problem = Problem.of(Limit("bytes", 60), Limit("milliseconds", 9))
    for method in (Lagrangian(), Penalty()):
        with pytest.raises(InfeasibleBudget) as error:
            method.allocate(timed, problem)
        assert f"{method.name} found no plan that keeps milliseconds at or below 9" in error.value.happened
        assert "milliseconds of 12" in error.value.expected


@pytest.mark.parametrize("method", [IntegerProgram(), Lagrangian(), Penalty()], ids=lambda method: method.name)
def test_several_limits_by_hand(method: Any) -> None:
    timed = tuple(
        tuple(replace(o, milliseconds=t) for o, t in zip(group, (9.0, 4.0, 6.0), strict=True)) for group in TABLE
    )
    for limits, expected in (
        ([Limit("bytes", 100), Limit("milliseconds", 8)], [8, 8]),
        ([Limit("bytes", 75), Limit("milliseconds", 10)], [4, 8]),
        ([Limit("damage", 0.15), Limit("milliseconds", 13)], [8, 16]),
        ([Limit("damage", 9.5), Limit("milliseconds", 8.5)], [8, 8]),
        ([Limit("damage", 9.5), Limit("milliseconds", 12), Limit("bytes", 200)], [4, 4]),
    ):
        assert bits(method.allocate(timed, Problem.of(*limits))) == expected


def test_uniform_with_several_limits() -> None:
    timed = tuple(
        tuple(replace(o, milliseconds=t) for o, t in zip(group, (9.0, 4.0, 6.0), strict=True)) for group in TABLE
    )
    method = Uniform()
    assert bits(method.allocate(timed, Problem.of(Limit("bytes", 200), Limit("milliseconds", 12)))) == [8, 8]
    assert bits(method.allocate(timed, Problem.of(Limit("bytes", 60), Limit("milliseconds", 12)))) == [4, 4]
    with pytest.raises(InfeasibleBudget, match="bytes at or below 60 and milliseconds at or below 9") as error:
        method.allocate(timed, Problem.of(Limit("bytes", 60), Limit("milliseconds", 9)))
    assert "bytes of 50 and milliseconds of 12" in error.value.expected
    short = (timed[0], timed[1][:1])
    with pytest.raises(InfeasibleBudget, match="keeps milliseconds at or below 12") as error:
        method.allocate(short, Problem.of(Limit("bytes", 150), Limit("milliseconds", 12), Limit("damage", 9)))
    assert "13" in error.value.expected


# The integer program where one group pays nearly all of the limit.


def test_the_integer_program_sees_what_is_left_beside_a_large_constant() -> None:
    table = ((option("a", 4, 1, 2.0),), (option("b", 16, 100, 1e-7), option("b", 8, 50, 1e-6)))
    assert bits(IntegerProgram().allocate(table, Problem.of(Limit("damage", 2 + 5e-7)))) == [4, 16]
    assert bits(IntegerProgram().allocate(table, Problem.of(Limit("damage", 2 + 2e-6)))) == [4, 8]


def test_the_integer_program_sees_what_is_decided_beside_large_damages() -> None:
    """A budget for which nearly nothing is lost, in a table where much could be: the solver's gap is also absolute."""
    rng = np.random.default_rng(0)
    table = tuple(
        (option(f"s{g}", 16, 2 * n, 0.0), option(f"s{g}", 8, n, d), option(f"s{g}", 3, n // 3, 1.0))
        for g, (n, d) in enumerate(
            zip(rng.integers(1_000, 10_000, 40).tolist(), rng.lognormal(-18, 1, 40).tolist(), strict=True)
        )
    )
    problem = Problem.of(Limit("bytes", 0.8 * sum(group[0].bytes for group in table)))
    exact = problem.total(DynamicProgramming(units=2**20).allocate(table, problem))
    assert problem.total(IntegerProgram(gap=0.0).allocate(table, problem)) == pytest.approx(exact, rel=1e-6)


# Dynamic programming.


def test_units_are_common_divisors_where_that_is_exact() -> None:
    table = water([1.0, 3.0, 0.2], [64_000, 128_000, 192_000])
    for size in range(1_152_000, 6_144_000, 320_000):
        problem = Problem.of(Limit("bytes", size))
        best = min(problem.total(choice) for choice in itertools.product(*table) if problem.fits(choice))
        assert problem.total(DynamicProgramming(units=100).allocate(table, problem)) == pytest.approx(best, rel=1e-12)


def test_more_units_are_better_on_average() -> None:
    rng = np.random.default_rng(0)
    table = water(rng.lognormal(-4, 1.5, 40).tolist(), rng.integers(1_000, 50_000, 40).tolist())
    size = sum(group[0].bytes for group in table)
    values = [
        sum(
            Problem.of(limit := Limit("bytes", share * size)).total(
                DynamicProgramming(units=units).allocate(table, Problem.of(limit))
            )
            for share in (0.22, 0.25, 0.3, 0.4)
        )
        for units in (10, 100, 10_000)
    ]
    assert values[2] < values[1] < values[0]


# Penalty.


def test_the_gradient_is_exact() -> None:
    table = (*water([1.0, 20.0], [10, 30]), (option("c", 8, 100, 0.1, 2.0), option("c", 4, 50, 0.3, 1.0)))
    moves = Moves(table, Problem.of(Limit("bytes", 300), Limit("milliseconds", 1.2)))
    rng = np.random.default_rng(0)
    logits = np.where(moves.there, rng.normal(size=moves.there.shape), -np.inf)
    value, gradient = relaxed(moves, logits, 3.0)
    assert not gradient[~moves.there].any()
    for g, k in zip(*np.nonzero(moves.there), strict=True):
        up, down = logits.copy(), logits.copy()
        up[g, k] += 1e-5
        down[g, k] -= 1e-5
        slope = (relaxed(moves, up, 3.0)[0] - relaxed(moves, down, 3.0)[0]) / 2e-5
        assert gradient[g, k] == pytest.approx(slope, rel=1e-5, abs=1e-10)
    assert value > 0


def test_the_penalty_counts_only_what_is_above() -> None:
    moves = Moves(TABLE, Problem.of(Limit("bytes", 100)))
    sure = np.full((2, 3), -np.inf)
    sure[:, 1] = 0.0  # 8 bits, exactly at the limit
    assert relaxed(moves, sure, 1e6)[0] == pytest.approx((0.1 + 0.2) / (1.0 + 8.0))
    sure[:] = -np.inf
    sure[:, 2] = 0.0  # 16 bits, twice the limit and no damage
    assert relaxed(moves, sure, 5.0)[0] == pytest.approx(5.0)


# The order of sensitivity, and its bisection.

# HAWQ-V3's table for ResNet-18 (arXiv:2011.10680): trace a parameter falls from 0.0686 at the first convolution to
# 0.0007 at the last; between them it is filled in geometrically here. Errors of 4 and 8 bits are about 290 to 1.
SIZES = [9_408, *[36_864] * 4, 73_728, *[147_456] * 3, 294_912, *[589_824] * 3, 1_179_648, *[2_359_296] * 3]
TRACES = np.geomspace(0.0686, 0.0007, len(SIZES)).tolist()
RESNET = tuple(
    (option(f"conv{i}", 8, n, t * n * 1e-5), option(f"conv{i}", 4, n // 2, t * n * 290e-5))
    for i, (n, t) in enumerate(zip(SIZES, TRACES, strict=True))
)


def test_the_hessian_order_is_that_of_traces_a_parameter() -> None:
    menus = Menus(RESNET, Problem.of(Limit("bytes", sum(SIZES))), None)
    order = menus.order(np.zeros(len(SIZES), np.int64), np.ones(len(SIZES), bool))
    assert order.tolist() == list(range(len(SIZES)))[::-1]
    assert [g for g, _ in steps([hull(o, "damage", "bytes") for o in RESNET], "damage", "bytes")] == [
        *range(len(SIZES))
    ]


@pytest.mark.parametrize("kind", [Bisection, Greedy, Lagrangian, IntegerProgram, DynamicProgramming, Penalty])
@pytest.mark.parametrize("high", range(1, len(SIZES)))
def test_sensitive_layers_keep_eight_bits(kind: type[Any], high: int) -> None:
    """A limit that is exactly eight bits for the first `high` layers: the order is optimal there."""
    size = sum(SIZES[:high]) + sum(n // 2 for n in SIZES[high:])
    chosen = kind().allocate(RESNET, Problem.of(Limit("bytes", size)))
    assert bits(chosen) == [8] * high + [4] * (len(SIZES) - high)


def test_bisection_level_by_level_by_hand() -> None:
    """Harm a byte of the first level: 0.002, 0.004; of the second 0.036, 0.312."""
    for size, expected in ((200, [16, 16]), (199, [8, 16]), (149, [8, 8]), (99, [4, 8]), (74, [4, 4])):
        assert bits(Bisection().allocate(TABLE, Problem.of(Limit("bytes", size)))) == expected
    for damage, expected in ((0.0, [16, 16]), (0.15, [8, 16]), (0.31, [8, 8]), (1.3, [4, 8]), (9.0, [4, 4])):
        assert bits(Bisection().allocate(TABLE, Problem.of(Limit("damage", damage)))) == expected


def test_no_interactions_are_the_plain_order() -> None:
    rng = np.random.default_rng(1)
    table = water(rng.lognormal(-4, 1.5, 12).tolist(), rng.integers(1_000, 50_000, 12).tolist())
    size, worst = (sum(f(float(getattr(o, q)) for o in g) for g in table) for f, q in ((max, "bytes"), (max, "damage")))
    for limit in (*(Limit("bytes", s * size) for s in (0.3, 0.5, 0.7)), Limit("damage", 0.01 * worst)):
        plain = Bisection().allocate(table, Problem.of(limit))
        assert Bisection(interactions=np.zeros((12, 12)).tolist()).allocate(table, Problem.of(limit)) == plain


PAIR = tuple(  # a and d are the least sensitive alone
    (option(g, 16, 100, 0.0), option(g, 4, 50, damage)) for g, damage in zip("abcd", (0.1, 0.5, 0.45, 0.2), strict=True)
)


def test_layers_whose_errors_cancel_are_chosen_together() -> None:
    together = np.zeros((4, 4))
    together[0, 1] = together[1, 0] = -0.45
    problem = Problem.of(Limit("bytes", 300))
    assert bits(Bisection().allocate(PAIR, problem)) == [4, 16, 16, 4]
    assert bits(Bisection(interactions=together.tolist()).allocate(PAIR, problem)) == [4, 4, 16, 16]
    damage = Problem.of(Limit("damage", 0.16))
    assert bits(Bisection().allocate(PAIR, damage)) == [4, 16, 16, 16]
    assert bits(Bisection(interactions=together.tolist()).allocate(PAIR, damage)) == [4, 4, 16, 16]


def test_layers_that_harm_each_other_are_kept_apart() -> None:
    apart = np.zeros((4, 4))
    apart[0, 3] = apart[3, 0] = 0.5
    method = Bisection(interactions=apart.tolist())
    assert bits(method.allocate(PAIR, Problem.of(Limit("bytes", 300)))) == [4, 16, 4, 16]
    assert bits(method.allocate(PAIR, Problem.of(Limit("damage", 0.6)))) == [4, 16, 4, 16]


def test_neighbours_of_the_position_are_tried() -> None:
    """Damage of the first one, two, three, four is 0.3, 0.9, 0.3, 1.2: bisection by itself stops at one."""
    damages = zip("abcd", (0.3, 0.6, 0.7, 0.9), strict=True)
    table = tuple((option(g, 16, 100, 0.0), option(g, 4, 50, damage)) for g, damage in damages)
    matrix = np.zeros((4, 4))
    matrix[1, 2] = matrix[2, 1] = -1.3
    for neighbours, expected in ((0, [4, 16, 16, 16]), (1, [4, 16, 16, 16]), (2, [4, 4, 4, 16])):
        method = Bisection(interactions=matrix.tolist(), neighbours=neighbours)
        assert bits(method.allocate(table, Problem.of(Limit("damage", 0.35)))) == expected


def test_interactions_scale_with_the_root_of_damage() -> None:
    """Damage is quadratic in the change: with a sixteenth of it on both sides, a sixteenth of their interaction."""
    table = tuple((option(g, 8, 100, 0.05), option(g, 4, 50, 0.8)) for g in "ab")
    menus = Menus(table, Problem.of(Limit("bytes", 1)), [[0.0, 0.4], [0.4, 0.0]])
    assert menus.value(np.array([1, 1])) == pytest.approx(1.6 + 0.4)
    assert menus.value(np.array([1, 0])) == pytest.approx(0.85 + 0.1)
    assert menus.value(np.array([0, 0])) == pytest.approx(0.1 + 0.025)


def test_an_order_that_starts_above_the_limit_is_refused() -> None:
    table = tuple((option(g, 8, 100, 0.05), option(g, 4, 50, 0.8)) for g in "ab")
    with pytest.raises(InfeasibleBudget, match=r"at least 0\.125"):
        Bisection(interactions=[[0.0, 0.4], [0.4, 0.0]]).allocate(table, Problem.of(Limit("damage", 0.12)))


@pytest.mark.parametrize(
    "matrix", [[[0.0, 1.0], [0.0, 0.0]], [[0.0, float("nan")]], [1.0], [[0.0], [0.0, 1.0]], [["a"]]]
)
def test_what_is_no_matrix_of_interactions(matrix: Any) -> None:
    with pytest.raises(InvalidMethod, match="symmetric matrix"):
        Bisection(interactions=matrix)


def test_arguments_out_of_range() -> None:
    with pytest.raises(InvalidMethod, match="2 groups"):
        Bisection(interactions=[[0.0]]).allocate(TABLE, Problem.of(Limit("bytes", 100)))
    for make in (
        lambda: DynamicProgramming(units=0),
        lambda: Lagrangian(sweeps=0),
        lambda: Penalty(rounds=0),
        lambda: Bisection(neighbours=-1),
    ):
        with pytest.raises(InvalidMethod):
            make()
