"""Allocators on small tables whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pennyweight.errors import InfeasibleBudget, InvalidMethod
from pennyweight.formats import Dense, Grid
from pennyweight.methods.allocation import IntegerProgram, Uniform
from pennyweight.plan import Option, Stage, Step
from pennyweight.problem import Limit, Problem


def option(group: str, bits: int, size: int, damage: float) -> Option:
    format = Dense() if bits == 16 else Grid(bits=bits, group_size=64)
    return Option(
        sites=(group,), step=Step((Stage("cast" if bits == 16 else "gptq", format),)), bytes=size, damage=damage
    )


TABLE = (
    (option("a", 16, 100, 0.0), option("a", 8, 50, 0.1), option("a", 4, 25, 1.0)),
    (option("b", 16, 100, 0.0), option("b", 8, 50, 0.2), option("b", 4, 25, 8.0)),
)


def bits(chosen: tuple[Option, ...]) -> list[int]:
    return [o.step.stages[0].format.bits if isinstance(o.step.stages[0].format, Grid) else 16 for o in chosen]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (Limit("bytes", 200), [16, 16]), (Limit("bytes", 150), [8, 16]), (Limit("bytes", 149), [8, 8]),
        (Limit("bytes", 100), [8, 8]), (Limit("bytes", 75), [4, 8]), (Limit("bytes", 50), [4, 4]),
        (Limit("damage", 1e-6), [16, 16]), (Limit("damage", 0.15), [8, 16]), (Limit("damage", 0.31), [8, 8]),
        (Limit("damage", 1.3), [4, 8]), (Limit("damage", 9.1), [4, 4]),
    ],
)  # fmt: skip
def test_integer_program_by_hand(limit: Limit, expected: list[int]) -> None:
    assert bits(IntegerProgram().allocate(TABLE, Problem.of(limit))) == expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(Limit("bytes", 199), [8, 8]), (Limit("bytes", 99), [4, 4]), (Limit("damage", 0.31), [8, 8]),
     (Limit("damage", 0.1), [16, 16]), (Limit("damage", 100), [4, 4])],
)  # fmt: skip
def test_uniform_by_hand(limit: Limit, expected: list[int]) -> None:
    assert bits(Uniform().allocate(TABLE, Problem.of(limit))) == expected


def test_uniform_keeps_groups_that_lack_the_step_at_their_safest() -> None:
    table = (TABLE[0], (option("b", 16, 100, 0.0), option("b", 8, 50, 0.2)))
    assert bits(Uniform().allocate(table, Problem.of(Limit("bytes", 125)))) == [8, 8]
    assert bits(Uniform().allocate((TABLE[0], TABLE[1][:1]), Problem.of(Limit("bytes", 125)))) == [4, 16]
    assert bits(Uniform().allocate((TABLE[0][::2], TABLE[1][:2]), Problem.of(Limit("bytes", 125)))) == [4, 16]


def test_uniform_may_fail_where_mixing_would_not() -> None:
    table = (TABLE[0], TABLE[1][:1])
    with pytest.raises(InfeasibleBudget) as error:
        Uniform().allocate(
            (*table, (option("c", 8, 10, 0.3), option("c", 3, 5, 0.9))), Problem.of(Limit("damage", 0.1))
        )
    assert "0.3" in error.value.expected


@pytest.mark.parametrize("method", [IntegerProgram(), Uniform()])
def test_the_least_is_named(method: IntegerProgram | Uniform) -> None:
    with pytest.raises(InfeasibleBudget, match="at least 50"):
        method.allocate(TABLE, Problem.of(Limit("bytes", 49)))


def test_the_order_of_options_does_not_matter() -> None:
    shuffled = tuple(tuple(reversed(group)) for group in TABLE)
    for size in (60, 80, 110, 170):
        first, second = (IntegerProgram().allocate(t, Problem.of(Limit("bytes", size))) for t in (TABLE, shuffled))
        assert first == second


def test_tiny_damages_are_told_apart() -> None:
    """Damages of 1e-9 nats are small for the solver's tolerances, not for us."""
    table = tuple(
        tuple(option(f"s{i}", b, s, d * 1e-9) for b, s, d in ((16, 100, 0.0), (8, 50, 1.0 + i))) for i in range(4)
    )
    assert bits(IntegerProgram().allocate(table, Problem.of(Limit("damage", 3.5e-9)))) == [8, 8, 16, 16]


def timed(group: str, bits: int, size: int, damage: float, milliseconds: float) -> Option:
    return replace(option(group, bits, size, damage), milliseconds=milliseconds)


TIMED = (
    (timed("a", 16, 100, 0.0, 9.0), timed("a", 8, 50, 0.1, 4.0), timed("a", 4, 25, 1.0, 6.0)),
    (timed("b", 16, 100, 0.0, 9.0), timed("b", 8, 50, 0.2, 4.0), timed("b", 4, 25, 8.0, 6.0)),
)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ([Limit("bytes", 100), Limit("milliseconds", 8)], [8, 8]),
        ([Limit("bytes", 75), Limit("milliseconds", 10)], [4, 8]),
        ([Limit("damage", 0.15), Limit("milliseconds", 13)], [8, 16]),
        ([Limit("damage", 9.5), Limit("milliseconds", 8.5)], [8, 8]),
        ([Limit("damage", 9.5), Limit("milliseconds", 12), Limit("bytes", 200)], [4, 4]),
    ],
)
def test_several_limits_together(limits: list[Limit], expected: list[int]) -> None:
    assert bits(IntegerProgram().allocate(TIMED, Problem.of(*limits))) == expected


def test_limits_that_contradict_each_other_are_named() -> None:
    """Sixty bytes need four bits somewhere, which is slower than eight."""
    with pytest.raises(InfeasibleBudget) as error:
        IntegerProgram().allocate(TIMED, Problem.of(Limit("bytes", 60), Limit("milliseconds", 9)))
    assert "bytes at or below 60" in error.value.happened
    assert "milliseconds at or below 9" in error.value.happened
    assert "milliseconds of 12" in error.value.expected


def test_a_method_of_one_limit_refuses_two() -> None:
    with pytest.raises(InvalidMethod, match="integer_program"):
        Problem.of(Limit("bytes", 1), Limit("milliseconds", 1)).only("greedy")
