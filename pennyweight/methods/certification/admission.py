"""What every engine asks of its data before it bounds anything, and the arithmetic that several of them share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from pennyweight.budget import Terms
from pennyweight.errors import InvalidBudget, InvalidMeasurement
from pennyweight.methods.certification.engine import Engine

Array = NDArray[np.float64]

SLACK = 1e-9  # share of the population's largest possible sum that rounding may hide
STEPS = {"binary": (0.0, 1.0), "ternary": (-1.0, 0.0, 1.0)}  # the only values that these two kinds of data have


def admit(engine: Engine, x: Array, terms: Terms, alpha: float | None) -> tuple[Array, float]:
    """Check that an engine may bound these degradations; return them as it counts them, and the error level.

    Args:
        engine: its `validity` says what is admitted.
        x: degradations in the order they were drawn `[n]`; never written to.
        terms: floor, cap and population are used.
        alpha: error level; `terms.alpha` if None.

    Returns:
        The degradations, counted up to the cap unless the engine takes any values `[n]`, and the level.

    Raises:
        InvalidMeasurement: a value is not finite, below the floor or not one that the engine takes; no floor where it
            needs one; more units than the population holds; or no units where it cannot do without.
        InvalidBudget: the level is not in (0, 1), the cap leaves no room, or the scope is not one it declares.
    """
    validity = engine.validity
    alpha = terms.alpha if alpha is None else alpha
    if not 0 < alpha < 1:
        raise InvalidBudget(
            f"an error level of {alpha:g} means nothing", expected="0 < alpha < 1", mend="0.05", site=engine.name
        )
    _check_scope(engine.name, terms, validity.scopes)
    x = finite(x)
    if terms.population is not None and len(x) > terms.population:
        raise InvalidMeasurement(
            f"{len(x)} windows were scored of a population of {terms.population}",
            expected="each window scored at most once",
            mend="draw them with a permutation",
            site=engine.name,
        )
    _check_values(engine.name, x, terms, validity.values)
    if validity.values == "any":
        if len(x) == 0:
            raise InvalidMeasurement("no unit was scored", expected="one unit or more", site=engine.name)
        return x, alpha
    return np.minimum(x, terms.cap), alpha


def _check_scope(name: str, terms: Terms, declared: frozenset[str]) -> None:
    # terms without a population that name no scope of their own leave the choice to the engine
    asked = {"corpus"} if terms.population is not None else {terms.scope} - {"corpus"} or {"source", "asymptotic"}
    if not asked & declared:
        raise InvalidBudget(
            f"{name} makes no claim in the scope {' or '.join(sorted(asked))}",
            expected=f"the scope {' or '.join(sorted(declared))}",
            mend="use planned-mixture for a corpus or a source, clustered-t for documents that are clusters",
            site=name,
        )


def _check_values(name: str, x: Array, terms: Terms, values: str) -> None:
    if values == "bounded" and terms.floor is None:
        raise InvalidMeasurement(
            f"{name} needs to know the smallest degradation there can be",
            expected="terms with a floor",
            mend="set floor, such as 0 for a divergence and -1 for a drop of accuracy; or use planned-mixture, which "
            "needs the cap alone",
            site=name,
        )
    if terms.floor is not None and len(x) and x.min() < terms.floor:
        raise InvalidMeasurement(
            f"a degradation of {x.min():g} is below the floor of {terms.floor:g}",
            expected="degradations at or above the floor that was declared",
            mend="declare the floor that the metric really has, before anything is scored",
            site=name,
        )
    if values in STEPS:
        if not np.isin(x, STEPS[values]).all():
            raise InvalidMeasurement(
                f"{name} counts units, and a degradation is none of {', '.join(f'{v:g}' for v in STEPS[values])}",
                expected=f"{values} degradations, one a unit",
                mend="use planned-mixture for means of windows",
                site=name,
            )
        if terms.cap < 1:
            raise InvalidBudget(
                f"a cap of {terms.cap:g} cuts the values that {name} counts", expected="a cap of 1", site=name
            )
    elif values != "any" and not (-math.inf if terms.floor is None else terms.floor) < terms.cap < math.inf:
        raise InvalidBudget(
            f"a cap of {terms.cap:g} above a floor of {terms.floor} leaves no room for a mean",
            expected="a finite cap above the floor",
            mend="choose the cap with choose_terms",
            site=name,
        )


def finite(x: Array) -> Array:
    """The degradations as float64 `[n]`.

    Raises:
        InvalidMeasurement: a value is NaN or infinite, or it is not a list.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 1 or not np.isfinite(x).all():
        raise InvalidMeasurement(
            "a degradation is NaN or infinite" if x.ndim == 1 else f"degradations of shape {list(x.shape)}",
            expected="a list of finite numbers, one a window",
            mend="look at the first window that fails: the model overflows on it, or its weights are damaged",
            site="certification",
        )
    return x


def reachable(x: Array, terms: Terms) -> float:
    """Largest mean that the units seen `[n]` leave possible; after a full pass of a population, its mean itself.

    Without a population that is the cap, whatever was seen.
    """
    if terms.population is None:
        return terms.cap
    if len(x) == terms.population:
        return math.fsum(x) / len(x)
    return min(terms.cap, (math.fsum(x) + (terms.population - len(x)) * terms.cap) / terms.population)


def conditional_means(x: Array, mean: float, population: int | None) -> Array:
    """Mean of what is left before each unit `[n]`, if the whole has this mean; Waudby-Smith and Ramdas 2020."""
    if population is None:
        return np.full(len(x), mean)
    before = np.concatenate(([0.0], np.add.accumulate(x)[:-1])) if len(x) else x
    return np.asarray((population * mean - before) / (population - np.arange(len(x))))


def ruled_out(x: Array, mean: float, terms: Terms) -> NDArray[np.bool_]:
    """Whether, after each unit `[n]`, the mean is above everything the population can still reach."""
    if terms.population is None:
        return np.full(len(x), mean > terms.cap)
    left = terms.population - 1 - np.arange(len(x))
    slack = SLACK * max(abs(terms.cap), terms.cap - (terms.cap if terms.floor is None else terms.floor))
    return np.asarray(terms.population * (mean - slack) > np.add.accumulate(x) + left * terms.cap)


def smallest_rejected(excess: Callable[[float], float], low: float, high: float) -> float:
    """Where a nondecreasing `excess` of log wealth crosses zero in [low, high], rounded up; `high` if it does not."""
    if excess(high) <= 0:
        return high
    tolerance = 1e-12 * (high - low)
    root = float(brentq(excess, low, high, xtol=tolerance, rtol=1e-14))
    return min(root + tolerance + 1e-14 * abs(root), high)  # off by at most that much: report the upper end


def mirrored(terms: Terms) -> Terms:
    """Terms of the degradations with the sign turned: what was a lower limit of the mean is then an upper one.

    The margin stays: `mean > -margin` is `mean of -x < margin`. Without a floor, there is no cap after turning.
    """
    cap = math.inf if terms.floor is None else -terms.floor
    floor = -terms.cap if math.isfinite(terms.cap) else None
    return replace(terms, cap=cap, floor=floor, pilot_mean=-terms.pilot_mean)
