"""SimQ-NAS: its predictors, and the fronts it measures beside those of NSGA-II alone and of random choices."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import kendalltau

from pennyweight.formats import Grid
from pennyweight.methods.search import SimQNAS
from pennyweight.methods.search.predictor import fitted
from pennyweight.methods.search.simq_nas import Counted
from pennyweight.plan import Option, Stage, Step
from pennyweight.problem import Choice, Limit, Problem, Table, options_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("fronts", BENCHMARKS / "fronts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(BENCHMARKS))
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


def table_of(groups: int = 16) -> Table:
    """Layers of unequal size; the predicted damage says only that fewer bits are worse."""
    sizes = np.random.default_rng(7).integers(1, 5, groups) * 1000
    return [
        [Option(sites=(f"layer.{g}",), bytes=int(size * bits / 8), damage=4.0**-bits,
                step=Step((Stage("gptq", Grid(bits=bits)),))) for bits in (2, 3, 4, 6)]
        for g, size in enumerate(sizes)
    ]  # fmt: skip


class Planted:
    """KL that a search can only measure: layers are minded unequally, and neighbours that are both rounded more."""

    most = 1

    def __init__(self, table: Table, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.table, self.minded = table, rng.lognormal(0, 1.5, len(table))

    def measure(self, choices: Sequence[Choice], *, tokens: int, draw: int = 0) -> list[float]:
        return [self.kl(choice) for choice in choices]

    def kl(self, choice: Choice) -> float:
        alone = self.minded * np.array([option.damage for option in options_of(self.table, choice)])
        return float(alone.sum() + 2 * np.sqrt(alone[1:] * alone[:-1]).sum()) / 4


def test_the_front_is_better_than_that_of_evolution_alone_and_that_of_random_choices(benchmark: ModuleType) -> None:
    """After equally many trials, each on the same four problems."""
    table, areas = table_of(), dict[str, list[float]]()
    for seed in range(4):
        for name, search in benchmark.SEARCHES.items():
            asked = benchmark.Asked(Planted(table, seed))
            search(table, asked, 250, seed)
            assert len(asked.scores) == 250
            areas.setdefault(name, []).append(benchmark.area(table, asked.scores))
    for other in ("nsga2 alone", "random"):
        assert all(a > 1.02 * b for a, b in zip(areas["simq_nas"], areas[other], strict=True))
    assert np.mean(areas["nsga2 alone"]) > np.mean(areas["random"])


@pytest.mark.parametrize("seed", range(3))
def test_predictors_order_what_they_did_not_see(seed: int) -> None:
    table = table_of()
    counted = Counted.of(table, Problem.of(Limit("bytes", 1e9)))
    planted, rng = Planted(table, seed), np.random.default_rng(seed)
    choices = counted.spread((3,) * len(table), 200, rng)
    features = counted.encoded(np.stack([counted.levels.read(choice) for choice in choices]))
    scores = planted.measure(choices, tokens=1)
    predicted = fitted(features[:100], scores[:100], seed)(features[100:])
    assert kendalltau(predicted, scores[100:])[0] > 0.7
    assert fitted(features[:2], scores[:2], seed)(features[:2]).shape == (2,)


def test_predictors_are_linear_where_values_are_and_bent_where_those_are() -> None:
    rng = np.random.default_rng(0)
    features = rng.integers(0, 2, (80, 6)).astype(float)
    line, bent = 1 + features @ np.arange(6), 1 + (features.sum(1) - 3) ** 2
    assert fitted(features, line.tolist(), 0)(features) == pytest.approx(line, rel=0.05)
    predicted = fitted(features, bent.tolist(), 0)(features)
    assert float(np.abs(predicted / bent - 1).mean()) < 0.2


def test_what_counts_is_what_is_limited_and_what_is_aimed_at() -> None:
    table = table_of(3)
    both = Counted.of(table, Problem.of(Limit("damage", 0.02), Limit("milliseconds", 1.0)))
    levels = np.array([[0, 0, 0], [3, 3, 3]])
    assert both.sums(levels).shape == (2, 2)
    bytes_, kl = (float(sum(getattr(row[-1], of) for row in table)) for of in ("bytes", "damage"))
    assert both.sums(levels)[0].tolist() == [0.0, bytes_]
    assert both.costs[both.first + levels].sum(1)[0].tolist() == [kl, 0.0]
    assert both.excess(levels)[0] == 0
    assert both.excess(levels)[1] > 0


def test_it_measures_the_corners_first_and_nothing_twice(benchmark: ModuleType) -> None:
    table = table_of(2)
    asked = benchmark.Asked(Planted(table, 0))
    problem = benchmark.everything(table)
    found = list(SimQNAS(trials=30, population=6).search(
        table, problem, asked, solve=lambda t, _: [row[-1] for row in t], seed=0
    ))  # fmt: skip
    assert [*asked.scores][:2] == [(3, 3), (0, 0)]
    assert len(asked.scores) <= 16
    assert found == [(3, 3)], "nothing is better than all bits there are"
