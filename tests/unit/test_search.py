"""The search's parts: studies, trials on a network, trimming, the surrogate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pennyweight.errors import InvalidOutput
from pennyweight.flow.search.study import open_study
from pennyweight.flow.search.trim import hull, trim
from pennyweight.formats import Grid
from pennyweight.methods.search.moves import Levels
from pennyweight.methods.search.surrogate import Surrogate
from pennyweight.plan import Option, Stage, Step
from pennyweight.problem import Limit, Problem


def option(group: str, bits: int, size: int, damage: float) -> Option:
    step = Step((Stage("gptq", Grid(bits=bits, group_size=64)),))
    return Option(sites=(group,), step=step, bytes=size, damage=damage)


ROW = (option("a.q", 2, 10, 9.0), option("a.q", 3, 20, 8.0), option("a.q", 4, 30, 1.0), option("a.q", 5, 40, 0.5))


def test_a_study_remembers_by_world(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite"
    with open_study(path, "one") as study:
        study.put(["a", "b"], 512, 3, 0.25)
    with open_study(path, "one") as study:
        assert study.get(["a", "b"], 512, 3) == 0.25
        assert study.get(["b", "a"], 512, 3) is None
        assert study.get(["a", "b"], 512, 4) is None
        assert study.get(["a", "b"], 1024, 3) is None
        assert study.rows() == [(512, 3, 0.25, ["a", "b"])]
    with open_study(path, "another") as study:
        assert study.get(["a", "b"], 512, 3) is None


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.sqlite").write_text("this is no database, and longer than a header of one would be " * 20)
    with pytest.raises(InvalidOutput, match="no study"), open_study(tmp_path / "study.sqlite", "one"):
        pass


def test_the_hull_leaves_out_what_lies_above_a_line() -> None:
    problem = Problem.of(Limit("bytes", 100))
    assert hull(ROW, problem) == [ROW[0], ROW[2], ROW[3]]


def test_trimming_keeps_what_was_chosen_and_its_neighbours() -> None:
    problem = Problem.of(Limit("bytes", 100))
    assert trim([ROW], problem, [ROW[2]], reach=1) == ((ROW[0], ROW[2], ROW[3]),)
    assert trim([ROW], problem, [ROW[3]], reach=1) == ((ROW[2], ROW[3]),)
    assert ROW[1] in trim([ROW], problem, [ROW[1]], reach=1)[0]


def test_a_switch_keeps_the_limit_and_its_size() -> None:
    table = [[option(f"{g}.q", b, 10 * b, 4.0**-b) for b in (2, 3, 4)] for g in range(6)]
    levels = Levels.of(table, Problem.of(Limit("bytes", 180)))
    start, rng = np.ones(6, dtype=np.int64), np.random.default_rng(0)
    for flips in (1, 2, 3):
        child = levels.switched(start, flips, rng)
        assert child is not None
        assert child.sum() == start.sum()
        assert (child > start).sum() == flips


def test_the_surrogate_finds_factors_it_was_shown() -> None:
    """Two kinds of sites, one of them damaged three times as much as predicted."""
    table = [[option(f"{g}.{'qv'[g % 2]}", b, 10 * b, 4.0**-b) for b in (2, 3, 4)] for g in range(12)]
    rng = np.random.default_rng(0)
    choices = [tuple(int(i) for i in rng.integers(0, 3, 12)) for _ in range(30)]

    def true(choice: tuple[int, ...]) -> float:
        return sum((3.0 if g % 2 else 1.0) * table[g][i].damage for g, i in enumerate(choice))

    known = Surrogate(table)
    known.learn(choices, [true(choice) for choice in choices])
    fresh = [tuple(int(i) for i in rng.integers(0, 3, 12)) for _ in range(40)]
    errors = [(known.predict(choice)[0] - true(choice)) / known.predict(choice)[1] for choice in fresh]
    assert np.abs([known.predict(c)[0] / true(c) - 1 for c in fresh]).max() < 0.1
    assert np.mean(np.abs(errors) < 2) > 0.8
    believed = known.mean()
    ratio = believed[1][0].damage / believed[0][0].damage
    assert ratio == pytest.approx(3.0, rel=0.15)


def test_draws_of_the_surrogate_are_spread_as_it_says() -> None:
    table = [[option(f"{g}.q", b, 10 * b, 4.0**-b) for b in (2, 3, 4)] for g in range(8)]
    rng = np.random.default_rng(1)
    choices = [tuple(int(i) for i in rng.integers(0, 3, 8)) for _ in range(10)]
    known = Surrogate(table)
    known.learn(choices, [sum(table[g][i].damage for g, i in enumerate(c)) * rng.lognormal(0, 0.2) for c in choices])
    probe = tuple(int(i) for i in rng.integers(0, 3, 8))
    sums = [sum(row[i].damage for row, i in zip(known.drawn(rng), probe, strict=True)) for _ in range(600)]
    mean, deviation = known.predict(probe)
    apart = (deviation**2 - (known.noise * mean) ** 2) ** 0.5
    assert np.mean(sums) == pytest.approx(mean, abs=4 * apart / 600**0.5)
    assert np.std(sums) == pytest.approx(apart, rel=0.2)


def test_one_measurement_of_a_choice_replaces_another() -> None:
    known = Surrogate([ROW])
    known.learn([(0,), (1,)], [1.0, 2.0])
    known.learn([(0,)], [3.0])
    assert known.scores == [3.0, 2.0]
