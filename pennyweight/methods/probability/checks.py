"""What every method of this room refuses: nothing, too little, values that are not numbers or lie outside a range."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pennyweight.errors import InvalidMeasurement, InvalidMethod


def sample(
    values: Any, what: str, site: str, *, low: float = -np.inf, high: float = np.inf, least: int = 1
) -> NDArray[np.float64]:
    """Values of a sample `[n]` as float64, a copy.

    Args:
        values: one number a unit.
        what: they are, in the plural, for the message.
        site: the method that asks.
        low: smallest value allowed; -inf also allows values of -inf (the logarithm of zero).
        high: largest value allowed.
        least: units below which the method says nothing.

    Raises:
        InvalidMeasurement: not one-dimensional, too few, NaN, or outside [low, high].
    """
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < least:
        raise InvalidMeasurement(
            f"{what} have the shape {list(array.shape)}",
            expected=f"one number a unit, {least} units or more",
            mend="pass a vector that is long enough",
            site=site,
        )
    wrong = ~((array >= low) & (array <= high)) | np.isposinf(array)  # NaN fails every comparison
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise InvalidMeasurement(
            f"{int(wrong.sum())} of {len(array)} {what} cannot be used; the first is {array[first]} at index {first}",
            expected=f"numbers in [{low:g}, {high:g}]",
            mend="look at how they were made; nothing is repaired or left out here",
            site=site,
        )
    return array


def same_length(site: str, **columns: NDArray[Any]) -> None:
    """Refuse columns of which one is longer than another.

    Raises:
        InvalidMeasurement: the lengths differ.
    """
    if len({len(column) for column in columns.values()}) > 1:
        raise InvalidMeasurement(
            "lengths differ: " + ", ".join(f"{name} {len(column)}" for name, column in columns.items()),
            expected="one entry a unit in each, in the same order",
            mend="score both on the same units",
            site=site,
        )


def inside(value: float, name: str, site: str, *, low: float, high: float) -> None:
    """Refuse a hyperparameter outside the open interval (low, high).

    Raises:
        InvalidMethod: it is outside.
    """
    if not low < value < high:
        raise InvalidMethod(
            f"{name} is {value}",
            expected=f"a number above {low:g} and below {high:g}",
            mend=f"set {name} inside this range",
            site=site,
        )


def at_least(value: int, name: str, site: str, *, least: int) -> None:
    """Refuse a count that is too small.

    Raises:
        InvalidMethod: it is.
    """
    if value < least:
        raise InvalidMethod(
            f"{name} is {value}", expected=f"{least} or more", mend=f"set {name}={least} or more", site=site
        )
