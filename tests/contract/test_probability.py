"""Every method of the probability room: the same numbers each time, arguments untouched, bad input refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pennyweight import catalogue
from pennyweight.errors import InvalidMeasurement

METHODS = catalogue.classes("probability")
Arrays = tuple[np.ndarray, ...]


def inputs(name: str) -> tuple[Arrays, Callable[..., Any]]:
    """Columns of one row a unit, and how the method is called with them."""
    draw = np.random.Generator(np.random.PCG64(1))
    share, other, event = draw.random(80), draw.random(80), draw.integers(0, 2, 80).astype(float)
    method = catalogue.find(name)
    calls: dict[str, tuple[Arrays, Callable[..., Any]]] = {
        "brier": ((share, other, event), lambda *a: method.measure(*a)),
        "expected-calibration-error": ((share, event), lambda *a: method.measure(*a)),
        "expected-shortfall": ((share,), lambda *a: method.measure(*a, low=0.0, cap=1.0)),
        "importance-sampling": (
            (np.log(share), np.log(other), event),
            lambda *a: (method.estimate(*a), method.certify(a[2])),
        ),
        "temperature-scaling": (
            (draw.normal(size=(80, 3)), draw.normal(size=(80, 3))),
            lambda *a: method.match(*a),
        ),
    }
    return calls[name]


every_method = pytest.mark.parametrize("name", [kind.name for kind in METHODS])


def plain(result: Any) -> Any:
    """Values of a result, to compare."""
    if isinstance(result, tuple):
        return [plain(part) for part in result]
    if dataclasses.is_dataclass(result):
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.count = 1  # type: ignore[misc]
        return dataclasses.asdict(result)  # type: ignore[arg-type]
    return np.asarray(result).tolist()


@every_method
def test_the_same_input_gives_the_same_numbers_and_stays_as_it_is(name: str) -> None:
    arrays, call = inputs(name)
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = name == "temperature-scaling"  # torch warns of arrays it could not write to
    assert plain(call(*arrays)) == plain(call(*arrays))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


@every_method
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_in_every_column(name: str, wrong: float) -> None:
    arrays, call = inputs(name)
    for column in range(len(arrays)):
        damaged = [array.copy() for array in arrays]
        damaged[column][7] = wrong
        with pytest.raises(InvalidMeasurement):
            call(*damaged)


@every_method
def test_nothing_and_unequal_lengths_are_refused(name: str) -> None:
    arrays, call = inputs(name)
    with pytest.raises(InvalidMeasurement):
        call(*[array[:0] for array in arrays])
    for column in range(len(arrays) if len(arrays) > 1 else 0):
        with pytest.raises(InvalidMeasurement):
            call(*[array[:-1] if i == column else array for i, array in enumerate(arrays)])


@every_method
@pytest.mark.parametrize("wrong", [-0.5, 1.5])
def test_values_outside_the_declared_range_are_refused(name: str, wrong: float) -> None:
    arrays, call = inputs(name)
    if name == "temperature-scaling":
        pytest.skip("logits have no range")
    for column in range(len(arrays)):
        damaged = [array.copy() for array in arrays]
        damaged[column][7] = wrong
        if name == "importance-sampling" and column < 2 and wrong < 0:
            continue  # a logarithm may be negative
        with pytest.raises(InvalidMeasurement):
            call(*damaged)
