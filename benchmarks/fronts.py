"""SimQ-NAS against NSGA-II alone and random choices: the front of loss and bytes after equally many measurements.

    python benchmarks/fronts.py [--trials 250] [--seeds 3]

The ResNet of benchmarks/any_module.py, trained on drawn shapes; every layer may become int2 to int6 or int8 by GPTQ, a
scale a row. All three start with the solution by prediction (eight bits everywhere, nothing limits it), the cheapest
choice, and random ones of all sizes. The hypervolume is the area between what was measured and 1 nat at the bytes of
the largest choice, as a share of that of the front of everything that anybody measured; once with KL as it is and once
with its logarithm, from a ten-thousandth of a nat.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import machine
import numpy as np
from rich.console import Console
from rich.table import Table as Shown

from pennyweight import catalogue
from pennyweight.methods.allocation import IntegerProgram
from pennyweight.methods.search.nsga2 import Individuals, evolve
from pennyweight.methods.search.pareto import hypervolume
from pennyweight.methods.search.simq_nas import Counted
from pennyweight.numerics.random import derived_seed
from pennyweight.problem import Choice, Limit, Problem, Table, Trials, choice_of, options_of

WIDTHS = (2, 3, 4, 5, 6, 8)
POPULATION = 50
WORST, LEAST = 1.0, 1e-4  # nats


class Asked:
    """Trials that remember what was asked first, in that order."""

    def __init__(self, trials: Trials) -> None:
        self.trials, self.most, self.scores = trials, trials.most, dict[Choice, float]()

    def measure(self, choices: Sequence[Choice], *, tokens: int, draw: int = 0) -> list[float]:
        found = self.trials.measure(choices, tokens=tokens, draw=draw)
        for choice, score in zip(choices, found, strict=True):
            self.scores.setdefault(choice, score)
        return found


def everything(table: Table) -> Problem:
    """A limit that nothing exceeds."""
    return Problem.of(Limit("bytes", sum(max(option.bytes for option in row) for row in table)))


def random(table: Table, trials: Asked, count: int, seed: int) -> None:
    """The choices that SimQ-NAS starts with, and more of the kind."""
    trials.measure(first(table, count, np.random.default_rng(derived_seed(seed, "random"))), tokens=trials.most)


def alone(table: Table, trials: Asked, count: int, seed: int) -> None:
    """NSGA-II on measurements."""
    rng, counted = np.random.default_rng(derived_seed(seed, "alone")), Counted.of(table, everything(table))

    def evaluate(levels: Individuals) -> Any:
        kl = trials.measure([counted.levels.write(row) for row in levels], tokens=trials.most)
        return np.column_stack([kl, counted.sums(levels)]), counted.excess(levels)

    start = np.stack([counted.levels.read(choice) for choice in first(table, POPULATION, rng)])
    evolve(evaluate, start, counted.tops, size=POPULATION, generations=count // POPULATION - 1, rng=rng)


def simq_nas(table: Table, trials: Asked, count: int, seed: int) -> None:
    """Predict, evolve on predictions, measure."""
    search = catalogue.find(f"simq_nas(trials={count}, population={POPULATION})", "search")
    for _ in search.search(table, everything(table), trials, solve=IntegerProgram().allocate, seed=seed):
        pass


def first(table: Table, count: int, rng: np.random.Generator) -> list[Choice]:
    best = choice_of(table, IntegerProgram().allocate(table, everything(table)))
    return Counted.of(table, everything(table)).spread(best, count, rng)


SEARCHES: dict[str, Callable[[Table, Asked, int, int], None]] = {
    "random": random, "nsga2 alone": alone, "simq_nas": simq_nas,
}  # fmt: skip


def points(table: Table, scores: dict[Choice, float], *, logarithm: bool = False) -> list[tuple[float, float]]:
    """KL, as a share of the worst or of the orders below it, and bytes, as a share of the most."""
    most, depth = everything(table).limits[0].at_most, math.log(WORST / LEAST)
    return [
        (math.log(max(kl, LEAST) / LEAST) / depth if logarithm else kl / WORST,
         sum(option.bytes for option in options_of(table, choice)) / most)
        for choice, kl in scores.items()
    ]  # fmt: skip


def area(table: Table, scores: dict[Choice, float], *, logarithm: bool = False) -> float:
    return hypervolume(points(table, scores, logarithm=logarithm), (1.0, 1.0))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=250)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    from resnet_widths import Pictures, prepared

    table, pictures = prepared(WIDTHS, arguments.items)
    rows, every = [], dict[Choice, float]()
    ways: list[tuple[str, int, dict[Choice, float], float]] = []
    for seed in range(arguments.seeds):
        for name, search in SEARCHES.items():
            asked, started = Asked(Pictures(pictures)), time.process_time()
            search(table, asked, arguments.trials, seed)
            ways.append((name, seed, asked.scores, time.process_time() - started))
            every |= asked.scores
            print(name, seed, len(asked.scores), area(table, asked.scores), flush=True)
    best = {logarithm: area(table, every, logarithm=logarithm) for logarithm in (False, True)}
    for name, seed, scores, seconds in ways:
        for count in range(POPULATION, arguments.trials + 1, POPULATION):
            early = dict([*scores.items()][:count])
            rows.append({
                "search": name, "seed": seed, "trials": count, "cpu_seconds": seconds,
                "hypervolume": area(table, early) / best[False],
                "hypervolume_log": area(table, early, logarithm=True) / best[True],
            })  # fmt: skip
    sizes = [[option.bytes for option in row] for row in table]
    result = {**machine.facts(0), **vars(arguments), "widths": WIDTHS, "bytes": sizes, "rows": rows}
    machine.write("fronts", result)
    show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    shown = Shown(show_edge=False)
    for heading in ("search", "trials", "hypervolume", "of its log"):
        shown.add_column(heading, justify="left" if heading == "search" else "right")
    for name, count in dict.fromkeys((row["search"], row["trials"]) for row in rows):
        own = [row for row in rows if (row["search"], row["trials"]) == (name, count)]
        values = [np.array([row[key] for row in own]) for key in ("hypervolume", "hypervolume_log")]
        shown.add_row(name, str(count), *(f"{v.mean():.4f} ({v.min():.4f} to {v.max():.4f})" for v in values))
    Console(width=110).print(shown)


if __name__ == "__main__":
    main()
