"""Every allocator against the contract of its room: one option a group, within the limit, or a reason why not."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pennyweight import catalogue
from pennyweight.errors import InfeasibleBudget, InvalidMethod
from pennyweight.formats import Dense, Grid
from pennyweight.plan import Option, Stage, Step
from pennyweight.problem import Limit, Problem

METHODS = catalogue.classes("allocation")
every_method = pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
STEPS = [Step((Stage("cast", Dense()),))] + [Step((Stage("gptq", Grid(bits=b, group_size=64)),)) for b in (8, 6, 4, 3)]


def table(seed: int, groups: int = 5) -> tuple[tuple[Option, ...], ...]:
    """Make groups of unequal size and sensitivity; fewer bits always cost more damage, and dense costs none."""
    rng = np.random.default_rng(seed)
    found = []
    for g in range(groups):
        size, sensitivity = int(rng.integers(1_000, 50_000)), float(rng.lognormal(-4, 1.5))
        bits = (16, 8.25, 6.25, 4.25, 3.25)
        damages = [0.0] + [sensitivity * 4.0**-b for b in bits[1:]]
        found.append(
            tuple(
                Option(sites=(f"s{g}",), step=step, bytes=int(size * b), damage=damage)
                for step, b, damage in zip(STEPS, bits, damages, strict=True)
            )
        )
    return tuple(found)


def limits(options: tuple[tuple[Option, ...], ...]) -> list[Limit]:
    largest, least = (sum(f(o.bytes for o in group) for group in options) for f in (max, min))
    worst = sum(max(o.damage for o in group) for group in options)
    sizes = [Limit("bytes", least + share * (largest - least)) for share in (0.0, 0.1, 0.4, 0.8, 1.0)]
    return sizes + [Limit("damage", share * worst) for share in (1e-4, 0.001, 0.01, 0.3, 1.0)]


@pytest.mark.parametrize("seed", range(3))
@every_method
def test_one_option_a_group_within_the_limit(kind: type[Any], seed: int) -> None:
    options = table(seed)
    for limit in limits(options):
        chosen = kind().allocate(options, Problem.of(limit))
        assert len(chosen) == len(options)
        assert all(option in group for option, group in zip(chosen, options, strict=True))
        assert sum(limit.cost(option) for option in chosen) <= limit.at_most
        assert kind().allocate(options, Problem.of(limit)) == chosen


@every_method
def test_a_looser_limit_never_costs_more(kind: type[Any]) -> None:
    options = table(3)
    for of in ("bytes", "damage"):
        steps = sorted((limit for limit in limits(options) if limit.of == of), key=lambda limit: limit.at_most)
        values = [
            sum(Problem.of(limit).value(o) for o in kind().allocate(options, Problem.of(limit))) for limit in steps
        ]
        slack = kind().gap if math.isfinite(kind().gap) else 0.0  # what claims nothing of the optimum keeps an order
        assert all(loose <= tight * (1 + slack) + 1e-15 for tight, loose in itertools.pairwise(values))
        assert values[-1] < values[0], "a limit that allows everything must buy something"


@every_method
def test_a_limit_nobody_meets_names_the_least(kind: type[Any]) -> None:
    options = table(4)
    least = sum(min(o.bytes for o in group) for group in options)
    with pytest.raises(InfeasibleBudget) as error:
        kind().allocate(options, Problem.of(Limit("bytes", least - 1)))
    assert f"{least:.6g}" in error.value.expected
    assert f"{least - 1:.6g}" in error.value.happened
    with pytest.raises(InfeasibleBudget):
        kind().allocate([[o for o in group if o.damage > 0] for group in options], Problem.of(Limit("damage", 1e-12)))


@every_method
def test_one_group_with_one_option(kind: type[Any]) -> None:
    only = table(5)[0][2]
    assert kind().allocate([[only]], Problem.of(Limit("bytes", only.bytes))) == (only,)


@pytest.mark.parametrize("seed", range(10, 14))
@every_method
def test_as_good_as_it_says(kind: type[Any], seed: int) -> None:
    """Against every choice there is; `gap` is the share above the optimum that a method allows itself."""
    method = kind()
    assert method.gap >= 0
    options = table(seed, groups=4)
    for limit in limits(options):
        problem = Problem.of(limit)
        best = min(problem.total(choice) for choice in itertools.product(*options) if problem.fits(choice))
        value = problem.total(method.allocate(options, problem))
        assert value >= best * (1 - 1e-12)
        if math.isfinite(method.gap):
            assert value <= best * (1 + method.gap) + 1e-15


@every_method
def test_the_order_of_options_does_not_matter(kind: type[Any]) -> None:
    options = table(6)
    turned = [group[2:] + group[:2] for group in options]
    for limit in limits(options):
        assert kind().allocate(turned, Problem.of(limit)) == kind().allocate(options, Problem.of(limit))


@every_method
def test_no_groups_no_options(kind: type[Any]) -> None:
    assert kind().allocate([], Problem.of(Limit("bytes", 0.0))) == ()


@every_method
def test_several_limits_all_hold_or_are_refused(kind: type[Any]) -> None:
    """Milliseconds go with bytes, at another rate in every group."""
    options = [
        tuple(replace(o, milliseconds=o.bytes * 1e-6 * (1 + g % 3)) for o in group) for g, group in enumerate(table(7))
    ]

    def between(of: Any, share: float) -> Limit:
        low, high = (sum(f(Limit(of, 0.0).cost(o) for o in group) for group in options) for f in (min, max))
        return Limit(of, low + share * (high - low))

    several = [
        (between("bytes", 0.5), between("milliseconds", 0.45)),
        (between("damage", 0.01), between("milliseconds", 0.6)),
        (between("damage", 0.01), between("milliseconds", 0.6), between("bytes", 0.7)),
    ]
    for together in several:
        problem = Problem.of(*together)
        try:
            chosen = kind().allocate(options, problem)
        except InvalidMethod:
            with pytest.raises(InvalidMethod, match=f"{kind.name} holds one limit"):
                kind().allocate(options, problem)
            continue
        assert all(option in group for option, group in zip(chosen, options, strict=True))
        assert problem.fits(chosen)
    with pytest.raises((InfeasibleBudget, InvalidMethod)):
        kind().allocate(options, Problem.of(between("bytes", 0.01), between("damage", 1e-6)))
