"""Error rates and power of the planned mixture by simulation, next to other engines and to what happens without one.

Usage: python benchmarks/certification_simulation.py [--seed 0] [--out benchmarks/results/certification_simulation.json]
Each number stands beside the reference it was compared with. Takes about half a minute on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy import stats

from pennyweight.budget import Terms
from pennyweight.methods.certification import PlannedMixture, needed_windows

Array = NDArray[np.float64]
ALPHA = 0.05
PATHS, UNITS = 2000, 2000
ALLOWED = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / PATHS)
PLANNED, DYADIC = PlannedMixture(), PlannedMixture(planned=0.0)


def terms(margin: float, mean: float, sd: float, cap: float, population: int | None = None) -> Terms:
    return Terms(
        margin=margin, cap=cap, pilot_mean=mean, pilot_sd=sd, alpha=ALPHA, tail_alpha=0.01,
        population=population, n_max=10**9,
    )  # fmt: skip


# --- distributions: cap, true capped mean, deviation, and a draw of [paths, units] ------------------------------------


def normal_excess(mean: float, sd: float, cap: float) -> float:
    """E[(X - cap)+] of a normal X: what a cap takes off its mean."""
    z = (cap - mean) / sd
    return float(sd * (stats.norm.pdf(z) - z * stats.norm.sf(z)))


def lognormal_mean(cap: float) -> float:
    """E[min(.02 (Y - 1) + .004, cap)] with log Y ~ N(-.72, 1.2²), so E[Y] = 1."""
    top = (cap - 0.004) / 0.02 + 1
    z = (math.log(top) + 0.72) / 1.2
    return float(0.02 * (stats.norm.cdf(z - 1.2) + top * stats.norm.sf(z) - 1) + 0.004)


def independent() -> dict[str, tuple[float, float, float, Callable[[np.random.Generator], Array]]]:
    shape = (PATHS, UNITS)
    return {
        "normal": (0.25, 0.004, 0.03, lambda g: g.normal(0.004, 0.03, shape)),
        "lognormal": (0.5, lognormal_mean(0.5), 0.036, lambda g: 0.02 * (g.lognormal(-0.72, 1.2, shape) - 1) + 0.004),
        "spikes": (
            0.25,
            0.004 - 0.005 * normal_excess(0.203, 0.02, 0.25) - 0.995 * normal_excess(0.003, 0.02, 0.25),
            0.0245,
            lambda g: g.normal(0.003, 0.02, shape) + 0.2 * (g.random(shape) < 0.005),
        ),
        "disagreement": (1.0, 0.02, 0.14, lambda g: (g.random(shape) < 0.02).astype(float)),
        "accuracy": (1.0, 0.0, math.sqrt(0.05), lambda g: three_way(g, shape, 0.025, 0.025)),
    }


def three_way(generator: np.random.Generator, shape: tuple[int, int], worse: float, better: float) -> Array:
    u = generator.random(shape)
    return (u < worse).astype(float) - ((u >= worse) & (u < worse + better)).astype(float)


def clustered_corpus(generator: np.random.Generator, documents: int = 60, windows: int = 40) -> Array:
    """One corpus of dependent windows, correlation .2 within a document; its mean is .004 exactly."""
    rho, sd = 0.2, 0.03
    shared = generator.normal(0, sd * math.sqrt(rho), (documents, 1))
    corpus = (shared + generator.normal(0, sd * math.sqrt(1 - rho), (documents, windows))).ravel()
    return np.asarray(corpus + 0.004 - corpus.mean())


# --- engines that only serve as comparison, one-sided, at one candidate mean ------------------------------------------


def past(x: Array, first_mean: float, first_variance: float) -> tuple[Array, Array]:
    """Mean and variance of the values before each one, after one made-up value."""
    n = np.arange(1, x.shape[1] + 1)
    means = (first_mean + np.cumsum(x, axis=1)) / (n + 1)
    variances = (first_variance + np.cumsum((x - means) ** 2, axis=1)) / (n + 1)

    def shift(a: Array, first: float) -> Array:
        return np.concatenate((np.full((len(a), 1), first), a[:, :-1]), axis=1)

    return shift(means, first_mean), shift(variances, first_variance)


def adaptive_misses(x: Array, mean: float, cap: float) -> dict[str, float]:
    """Share of paths on which engines with adaptive bets ever reject the true mean."""
    x = np.minimum(x, cap)
    means, variances = past(x, mean, (cap / 4) ** 2)
    n, budget = np.arange(1, x.shape[1] + 1), 2 * math.log(1 / ALPHA)
    bets = {
        "agrapa": (mean - means) / (variances + (mean - means) ** 2),
        "predictable_plug_in": np.sqrt(budget / (variances * n * np.log1p(n))),
        "plug_in_tuned_to_n": np.sqrt(budget / (variances * x.shape[1])),
    }
    misses = {}
    for name, bet in bets.items():
        wealth = np.log1p(np.clip(bet, 0, 0.5 / (cap - mean)) * (mean - x)).cumsum(axis=1)
        misses[name] = float((wealth.max(axis=1) >= -math.log(ALPHA)).mean())
    return misses


def peeking_misses(x: Array, mean: float, cap: float, first: int = 50) -> float:
    """Share of paths on which a t bound, looked at after every unit, is ever below the true mean."""
    x = np.minimum(x, cap)
    n = np.arange(1, x.shape[1] + 1)
    means = x.cumsum(axis=1) / n
    spread = np.sqrt(np.maximum((x**2).cumsum(axis=1) / n - means**2, 0) / np.maximum(n - 1, 1))
    bound = means + stats.t.isf(ALPHA, np.maximum(n - 1, 1)) * spread
    return float((bound < mean)[:, first - 1 :].any(axis=1).mean())


def misses(engine: PlannedMixture, paths: Array, chosen: Terms) -> float:
    return float(np.mean([engine.certify_at(x, chosen) is not None for x in paths]))


# --- experiments ------------------------------------------------------------------------------------------------------


def validity(generator: np.random.Generator) -> dict[str, object]:
    """At the true mean every rejection is an error; the pilot believes in a mean one sixth of a deviation lower."""
    rows: dict[str, dict[str, float | str]] = {}
    for name, (cap, mean, sd, draw) in independent().items():
        x = draw(generator)
        chosen = terms(mean, mean - sd / 6, sd, cap)
        rows[name] = {
            "planned_mixture": misses(PLANNED, x, chosen),
            "dyadic_mixture": misses(DYADIC, x, chosen),
            **adaptive_misses(x, mean, cap),
            "t_bound_with_peeking": peeking_misses(x, mean, cap),
        }
    corpus = clustered_corpus(generator)
    x = np.stack([generator.permutation(corpus)[:UNITS] for _ in range(PATHS)])
    chosen = terms(0.004, -0.001, 0.03, 0.25, population=len(corpus))
    rows["clustered_corpus"] = {
        "planned_mixture": misses(PLANNED, x, chosen),
        "dyadic_mixture": misses(DYADIC, x, chosen),
        "scope": "corpus: random order without replacement, a new order each path",
    }
    reference = {
        "allowed": ALLOWED,
        "dyadic_mixture": [0.003, 0.0075],
        "agrapa": [0.02, 0.04],
        "predictable_plug_in": [0.012, 0.035],
        "plug_in_tuned_to_n": [0.03, 0.045],
        "t_bound_with_peeking": [0.32, 0.55],
    }
    planned = [float(row["planned_mixture"]) for row in rows.values()]
    return {"rows": rows, "reference": reference, "within": max(planned) <= ALLOWED}


CASES = {  # mean, deviation, margin, cap, horizon over n80 at the null, units drawn at most, and references
    "perplexity": (0.004, 0.03, 0.00797, 0.25, 8.5, 12_000, (352, 408, 348, 932), 0.037),
    "disagreement": (0.02, 0.14, 0.03, 1.0, 5.0, 40_000, (1209, 1670, 1403, 3986), 0.049),
    "accuracy": (0.0, math.sqrt(0.02), 0.004, 1.0, 3.9, 150_000, (7723, 8941, 7591, 20585), 0.038),
}


def draw_case(generator: np.random.Generator, name: str, mean: float, units: int) -> Array:
    if name == "perplexity":
        return generator.normal(mean, 0.03, units)
    if name == "disagreement":
        return (generator.random(units) < mean).astype(float)
    return three_way(generator, (1, units), 0.01 + mean / 2, 0.01 - mean / 2)[0]


def power(generator: np.random.Generator, paths: int = 300, null_paths: int = 1000) -> dict[str, object]:
    table: dict[str, object] = {}
    for name, (mean, sd, margin, cap, horizon, units, reference, null_reference) in CASES.items():
        chosen = terms(margin, mean, sd, cap)
        n80 = float((stats.norm.isf(ALPHA) + stats.norm.ppf(0.8)) * sd / (margin - mean)) ** 2
        stops = [PLANNED.certify_at(draw_case(generator, name, mean, units), chosen) for _ in range(paths)]
        known = np.array([stop for stop in stops if stop is not None])
        length = int(horizon * n80)
        at_margin = (draw_case(generator, name, margin, length) for _ in range(null_paths))
        false = np.mean([PLANNED.certify_at(x, chosen) is not None for x in at_margin])
        table[name] = {
            "n80": n80,
            "mean_stop": float(known.mean()),
            "standard_error": float(known.std(ddof=1) / math.sqrt(len(known))),
            "median_stop": float(np.median(known)),
            "quantile_95": float(np.quantile(known, 0.95)),
            "undecided": paths - len(known),
            "planning_formula": needed_windows(mean, sd, margin, cap, ALPHA),
            "reference": dict(zip(("n80", "mean_stop", "median_stop", "quantile_95"), reference, strict=True)),
            "mean_over_reference": float(known.mean()) / reference[1],
            "false_certificates_at_the_margin": float(false),
            "false_certificates_reference": null_reference,
        }
    return {"paths": paths, "null_paths": null_paths, "tolerance": 0.1, "rows": table}


def multiplicity(generator: np.random.Generator, repetitions: int = 1000) -> dict[str, object]:
    """Count how often one of forty candidates is certified when all are exactly at the margin.

    The reference does not say what its pilot believed, its cap, or how alike its candidates were: only the order of the
    four numbers, and the three that stay below alpha, can be compared. Independent candidates are used here, and a
    pilot for which 600 windows are plenty, so that the corrected procedures spend most of their level.
    """
    candidates, windows, margin, sd = 40, 600, 0.008, 0.03
    chosen = terms(margin, -0.004, sd, 0.12)
    strict = -math.log(ALPHA / candidates)
    counts = dict.fromkeys(("best_on_the_same_windows", "split_in_half", "bonferroni", "fixed_sequence"), 0)
    for _ in range(repetitions):
        x = generator.normal(margin, sd, (candidates, windows))
        best = int(x.mean(axis=1).argmin())
        counts["best_on_the_same_windows"] += PLANNED.certify_at(x[best], chosen) is not None
        winner = int(x[:, : windows // 2].mean(axis=1).argmin())
        counts["split_in_half"] += PLANNED.certify_at(x[winner, windows // 2 :], chosen) is not None
        counts["bonferroni"] += any(PLANNED.start(chosen).path(row).max() >= strict for row in x)
        counts["fixed_sequence"] += PLANNED.certify_at(x[0], chosen) is not None  # the first rung must pass
    rates = {name: count / repetitions for name, count in counts.items()}
    reference = dict(zip(counts, (0.445, 0.043, 0.038, 0.036), strict=True))
    return {"repetitions": repetitions, "rows": rates, "reference": reference}


def without_replacement(generator: np.random.Generator) -> dict[str, object]:
    population, margin = 2000, 0.00797
    rows: dict[str, float] = {}
    shape = generator.normal(0, 0.03, population)
    shape -= shape.mean()
    finite, infinite = terms(margin, 0.004, 0.03, 0.25, population), terms(margin, 0.004, 0.03, 0.25)
    orders = np.stack([generator.permutation(shape) for _ in range(PATHS)])
    # the last unit is left out: after it the value is known and nothing is certified by chance
    at_margin = orders[:, :-1] + margin
    rows["false_certificates_finite"] = misses(PLANNED, at_margin, finite)
    rows["false_certificates_independent"] = misses(PLANNED, at_margin, infinite)
    for name, chosen in (("finite", finite), ("independent", infinite)):
        stops = [PLANNED.certify_at(x, chosen) or population for x in orders[:1000] + 0.004]
        rows[f"mean_stop_{name}"] = float(np.mean(stops))
    last = orders[:, :] + 0.004
    rows["full_pass_error"] = max(abs(PLANNED.bound(x, finite) - x.mean()) for x in last[:50])
    rows["one_short_of_a_full_pass"] = max(PLANNED.bound(x[:-1], finite) - x.mean() for x in last[:50])
    reference = {
        "false_certificates_finite": 0.029,
        "false_certificates_independent": 0.01,
        "mean_stop_finite": 317,
        "mean_stop_independent": 358,
        "one_short_of_a_full_pass": 2 * 0.25 / population,
    }
    return {"paths": PATHS, "rows": rows, "reference": reference}


def commit() -> str:
    command, here = ["git", "rev-parse", "HEAD"], Path(__file__).parent
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=here).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    default = Path(__file__).parent / "results" / "certification_simulation.json"
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    experiments = (validity, power, multiplicity, without_replacement)
    result: dict[str, object] = {
        "seed": arguments.seed,
        "commit": commit(),
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "alpha": ALPHA,
        "paths": PATHS,
        "units": UNITS,
    }
    for number, experiment in enumerate(experiments):
        started = time.perf_counter()
        found = experiment(np.random.default_rng([arguments.seed, number]))
        found["seconds"] = round(time.perf_counter() - started, 1)
        result[experiment.__name__] = found
        print(experiment.__name__, json.dumps(found, indent=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
