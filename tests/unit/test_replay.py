"""Replays of searches on tables that are known: what they count, and that a method learns what is planted."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pennyweight.methods.search import Quantune
from pennyweight.methods.search.unmeasured import LISTED, Unmeasured
from pennyweight.problem import Choice, Limit, Problem, options_of

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "replay.py"
SIZES = (3, 4, 2, 3, 2)
EVERY = list(itertools.product(*map(range, SIZES)))
QUANTUNE = Quantune(trials=len(EVERY), first=8)


@pytest.fixture(scope="module")
def replay() -> ModuleType:
    spec = importlib.util.spec_from_file_location("replay", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def planted(seed: int) -> dict[Choice, float]:
    """Every factor counts, and two of them together: no order of values, one best recipe."""
    rng = np.random.default_rng(seed)
    alone, pair = [rng.permutation(size) for size in SIZES], rng.permutation(12).reshape(3, 4)
    return {c: 1 + float(sum(a[i] for a, i in zip(alone, c, strict=True)) + pair[c[0], c[1]]) for c in EVERY}


def counted(replay: ModuleType, search: Callable[..., None], seeds: int = 40) -> float:
    return float(np.mean([
        replay.trials(search, scores := planted(seed), [min(scores.values())], seed)[0] for seed in range(seeds)
    ]))  # fmt: skip


def test_a_trial_is_a_recipe_asked_for_the_first_time(replay: ModuleType) -> None:
    scores = {(0,): 3.0, (1,): 2.0, (2,): 1.0}

    def asks(trials: object, sizes: object, seed: object) -> None:
        for choices in ([(0,), (0,)], [(0,), (1,)], [(1,), (2,)], [(0,)]):
            trials.measure(choices)  # type: ignore[attr-defined]

    assert replay.trials(asks, scores, [3.0, 2.5, 1.0], 0) == [1, 2, 3]
    with pytest.raises(AssertionError, match="ended before"):
        replay.trials(asks, scores, [0.5], 0)


def test_random_needs_what_drawing_without_replacement_needs(replay: ModuleType) -> None:
    """The first of k good ones among n is expected at (n + 1) / (k + 1)."""
    scores = {choice: float(place) for place, choice in enumerate(EVERY)}
    for good in (1, 5):
        found = [replay.trials(replay.random, scores, [good - 1], seed)[0] for seed in range(400)]
        assert np.mean(found) == pytest.approx((len(EVERY) + 1) / (good + 1), rel=0.12)


@pytest.mark.parametrize("name", ["random", "grid", "genetic"])
def test_every_order_asks_for_all_recipes_once(replay: ModuleType, name: str) -> None:
    trials = replay.Replay(dict.fromkeys(EVERY, 1.0), 0.0)
    getattr(replay, name)(trials, SIZES, 3)
    assert sorted(trials.asked) == EVERY


def test_a_method_that_learns_needs_fewer_trials_where_there_is_something_to_learn(replay: ModuleType) -> None:
    needed = {name: counted(replay, getattr(replay, name)) for name in ("random", "grid", "genetic")}
    learnt = counted(replay, replay.method(QUANTUNE), seeds=12)
    assert learnt < 0.6 * needed["genetic"]
    assert needed["genetic"] < needed["random"]


def test_nothing_is_gained_where_there_is_nothing_to_learn(replay: ModuleType) -> None:
    """Scores without any pattern: a method that does better has seen the table."""
    rng, found = np.random.default_rng(0), []
    for seed in range(12):
        scores = {choice: float(score) for choice, score in zip(EVERY, 1 + rng.permutation(len(EVERY)), strict=True)}
        found += replay.trials(replay.method(QUANTUNE), scores, [1.0], seed)
    assert 0.5 * len(EVERY) / 2 < np.mean(found) < 1.5 * len(EVERY) / 2


def test_quantune_lists_what_can_be_listed(replay: ModuleType) -> None:
    trials = replay.Replay(planted(1), 0.0)
    replay.method(QUANTUNE)(trials, SIZES, 0)
    assert sorted(trials.asked) == EVERY
    table = replay.recipes([2] * LISTED.bit_length())
    source = Unmeasured.of(table, Problem.of(Limit("bytes", 0)), options_of, np.random.default_rng(0))  # type: ignore[arg-type]
    assert source.listed is None
