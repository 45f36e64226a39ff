"""Every search against the contract of its room: within the limits, the same from one seed, worth its tokens."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from pennyweight import catalogue
from pennyweight.errors import InfeasibleBudget
from pennyweight.formats import Grid
from pennyweight.methods.allocation import IntegerProgram
from pennyweight.plan import Option, Stage, Step
from pennyweight.problem import Choice, Limit, Problem, Table, choice_of, options_of

METHODS = catalogue.classes("search")
every_method = pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)


def table_of(seed: int, groups: int = 24) -> Table:
    """Groups of unequal size, whose predicted damages are off by a factor each; fewer bits always hurt more."""
    rng = np.random.default_rng(seed)
    rows = []
    for g in range(groups):
        size, sensitivity = int(rng.integers(1, 4)) * 10_000, float(rng.lognormal(0, 1.0))
        rows.append(
            tuple(
                Option(
                    sites=(f"blocks.{g // 4}.{'qkvo'[g % 4]}",), bytes=int(size * bits / 8),
                    step=Step((Stage("gptq", Grid(bits=bits, group_size=64)),)), damage=sensitivity * 4.0**-bits,
                )
                for bits in (2, 3, 4, 5)
            )
        )  # fmt: skip
    return tuple(rows)


@dataclass
class Truth:
    """Damages that a search can only measure: those predicted times unknown factors, and what does not add up.

    Args:
        table: of options.
        seed: of the factors.
        noise: of a draw of few tokens, relative.
        most: tokens.
        asked: choices and tokens of every measurement.
    """

    table: Table
    seed: int = 0
    noise: float = 0.0
    most: int = 8192
    asked: list[tuple[Choice, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed + 1000)
        kinds = {kind: float(rng.lognormal(0, 0.7)) for kind in "qkvo"}
        self.factors = [[kinds[row[0].sites[0][-1]] * float(rng.lognormal(0, 0.3)) for _ in row] for row in self.table]

    def kl(self, choice: Choice) -> float:
        return 1.7 * sum(
            row[i].damage * factors[i] for row, factors, i in zip(self.table, self.factors, choice, strict=True)
        )

    def measure(self, choices: Sequence[Choice], *, tokens: int, draw: int = 0) -> list[float]:
        assert 0 < tokens <= self.most
        found = []
        for choice in choices:
            self.asked.append((choice, tokens, draw))
            rng = np.random.default_rng([self.seed, draw, tokens, *choice])
            found.append(self.kl(choice) * (1 + self.noise * float(rng.standard_normal()) * (512 / tokens) ** 0.5))
        return found

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens, _ in self.asked)


def solve(table: Table, problem: Problem) -> tuple[Option, ...]:
    return IntegerProgram().allocate(table, problem)


def limit_of(table: Table, bits: float) -> Problem:
    return Problem.of(Limit("bytes", bits / 8 * sum(row[0].bytes * 4 for row in table)))


@pytest.mark.parametrize("bits", [2.5, 3.3, 4.7])
@every_method
def test_choices_keep_the_limits_and_get_better(kind: type[Any], bits: float) -> None:
    table = table_of(1)
    problem, truth = limit_of(table, bits), Truth(table)
    found = list(kind().search(table, problem, truth, solve=solve, seed=0))
    assert found
    for choice in found:
        assert problem.fits(options_of(table, choice))
    kls = [truth.kl(choice) for choice in found]
    assert all(after <= before for before, after in itertools.pairwise(kls))
    again = list(kind().search(table, problem, Truth(table), solve=solve, seed=0))
    assert again == found


@every_method
def test_what_is_found_is_within_several_limits(kind: type[Any]) -> None:
    table = tuple(
        tuple(
            Option(sites=o.sites, step=o.step, bytes=o.bytes, damage=o.damage, milliseconds=abs(i - 1.5) + 0.1)
            for i, o in enumerate(row)
        )
        for row in table_of(2)
    )
    problem = Problem.of(*limit_of(table, 3.5).limits, Limit("milliseconds", 18.0))
    for choice in kind().search(table, problem, Truth(table), solve=solve, seed=1):
        assert problem.fits(options_of(table, choice))


@every_method
def test_nothing_is_tried_beyond_a_limit_that_nothing_keeps(kind: type[Any]) -> None:
    table = table_of(3)
    truth = Truth(table)
    with pytest.raises(InfeasibleBudget):
        list(kind().search(table, limit_of(table, 1.9), truth, solve=solve, seed=0))
    assert not truth.asked


@every_method
def test_every_choice_tried_keeps_the_limits(kind: type[Any]) -> None:
    """Tokens spent on what cannot be exported are wasted."""
    table = table_of(4)
    problem, truth = limit_of(table, 3.0), Truth(table, noise=0.05)
    list(kind().search(table, problem, truth, solve=solve, seed=0))
    assert all(problem.fits(options_of(table, choice)) for choice, _, _ in truth.asked)


def optimum(table: Table, problem: Problem, truth: Truth) -> float:
    """The least true KL within the limits: the solver is given the truth."""
    true = tuple(
        tuple(
            Option(sites=o.sites, step=o.step, bytes=o.bytes, damage=1.7 * o.damage * f)
            for o, f in zip(row, factors, strict=True)
        )
        for row, factors in zip(table, truth.factors, strict=True)
    )
    return problem.total(solve(true, problem))


@pytest.mark.parametrize("seed", range(3))
def test_thompson_closes_most_of_the_gap_that_prediction_leaves(seed: int) -> None:
    table = table_of(10 + seed)
    problem, truth = limit_of(table, 3.0), Truth(table, seed=seed)
    found = list(catalogue.find("thompson", "search").search(table, problem, truth, solve=solve, seed=seed))
    best, first, last = optimum(table, problem, truth), truth.kl(found[0]), truth.kl(found[-1])
    assert last - best <= 0.35 * (first - best)


@pytest.mark.parametrize("seed", range(3))
def test_luck_on_few_tokens_is_not_taken_for_a_better_choice(seed: int) -> None:
    """Predictions are right here, so that the first choice is the best there is; on few tokens others look better."""
    table = table_of(20 + seed)
    problem, truth = limit_of(table, 3.5), Lucky(table, seed=seed)
    found = list(catalogue.find("thompson", "search").search(table, problem, truth, solve=solve, seed=seed))
    assert [truth.kl(choice) for choice in found] == pytest.approx([truth.kl(found[0])] * len(found), rel=2e-3)
    tried = [choice for choice, tokens, _ in truth.asked if tokens == 2048]
    assert min(truth.measure(tried, tokens=2048)) < truth.measure(found[:1], tokens=2048)[0]


class Lucky(Truth):
    """All that was predicted is so; on few tokens choices are luckier than others by up to some percent."""

    def __post_init__(self) -> None:
        self.factors = [[1.0] * len(row) for row in self.table]

    def measure(self, choices: Sequence[Choice], *, tokens: int, draw: int = 0) -> list[float]:
        found = super().measure(choices, tokens=tokens, draw=draw)
        luck = [np.random.default_rng([self.seed, *choice]).normal(0, 0.05) for choice in choices]
        return [kl * (1 + float(one) * (tokens < self.most)) for kl, one in zip(found, luck, strict=True)]


def test_thompson_needs_a_third_of_the_tokens_of_evopress() -> None:
    above, spent = Counter[str](), Counter[str]()
    for seed, name in itertools.product(range(3), ("thompson", "evopress")):
        table = table_of(20 + seed)
        problem, truth = limit_of(table, 3.0), Truth(table, seed=seed, noise=0.02)
        found = list(catalogue.find(name, "search").search(table, problem, truth, solve=solve, seed=seed))
        above[name] += truth.kl(found[-1]) / optimum(table, problem, truth) - 1  # type: ignore[assignment]
        spent[name] += truth.tokens
    assert spent["thompson"] <= spent["evopress"] / 3
    assert above["thompson"] <= above["evopress"]


@dataclass
class Paired(Truth):
    """Two options that together cost much more, or much less, than their sum.

    Args:
        pair: group and place of each.
        times: what both cost together, over their sum.
    """

    pair: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (1, 0))
    times: float = 1.0

    def kl(self, choice: Choice) -> float:
        together = all(choice[group] == place for group, place in self.pair)
        alone = 1.7 * sum(self.table[group][place].damage * self.factors[group][place] for group, place in self.pair)
        return super().kl(choice) + (self.times - 1) * alone * together


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["thompson", "evopress"])
def test_a_pair_that_is_fatal_together_is_avoided(name: str, seed: int) -> None:
    """The sum of damages chooses it: each alone is harmless. What measures must not."""
    table = table_of(30 + seed)
    problem = limit_of(table, 3.0)
    predicted = choice_of(table, solve(table, problem))
    low = [group for group, place in enumerate(predicted) if place <= 1][:2]
    pair = ((low[0], predicted[low[0]]), (low[1], predicted[low[1]]))
    truth = Paired(table, seed=seed, pair=pair, times=200.0)
    found = list(catalogue.find(name, "search").search(table, problem, truth, solve=solve, seed=seed))
    assert truth.kl(predicted) > 3 * Truth(table, seed=seed).kl(predicted)
    assert truth.kl(found[-1]) <= 1.05 * Truth(table, seed=seed).kl(predicted)


def test_a_lower_sum_of_damages_can_be_a_worse_network() -> None:
    """Why anything is measured at all (EvoPress): the order of sums is not the order of what they cost together."""
    table = table_of(31)
    a, b = ((0,) * 24, (1, 1, *(0,) * 22))
    truth = Paired(table, pair=((0, 1), (1, 1)), times=50.0)
    sums = [sum(option.damage for option in options_of(table, choice)) for choice in (a, b)]
    assert sums[1] < sums[0]
    assert truth.kl(b) > truth.kl(a)
