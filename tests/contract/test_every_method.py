"""What holds for every method of every room: the catalogue lists them, nothing is added here by hand."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, get_args

import pytest

from pennyweight import catalogue
from pennyweight.promises import BetterOnAverage, Promise

EVERY = [pytest.param(room, kind, id=f"{room}-{kind.__name__}") for room, kind in catalogue.every()]


def test_the_catalogue_is_not_empty() -> None:
    assert {"allocation", "certification", "measurement", "quantization"} <= set(catalogue.rooms())
    assert all(catalogue.classes(room) for room in catalogue.rooms())


@pytest.mark.parametrize("room", catalogue.rooms())
def test_methods_stand_in_alphabetical_order(room: str) -> None:
    names = [kind.__name__ for kind in catalogue.classes(room)]
    assert names == sorted(names, key=str.lower)


def test_names_are_unique() -> None:
    names = [kind.name for _, kind in catalogue.every()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("room", "kind"), EVERY)
def test_it_says_what_it_is(room: str, kind: type[Any]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_-]*", kind.name)
    assert kind.paper
    assert isinstance(kind.needs, frozenset)
    assert kind.needs <= {"gram", "mean", "abs_max", "fisher", "range", "sample", "model", "onward", "reads"}
    own = inspect.getdoc(kind)
    assert own
    assert len(own) > 20
    assert not own.startswith(f"{kind.__name__}("), "this is the docstring that dataclass makes up"
    module = inspect.getmodule(kind)
    assert module is not None
    assert "Source:" in (module.__doc__ or ""), "the first lines of the file name the source"


@pytest.mark.parametrize(("room", "kind"), EVERY)
def test_it_is_a_frozen_value_with_defaults(room: str, kind: type[Any]) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind() == kind()
    assert hash(kind()) == hash(kind())
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        kind().something = 1
    for field in dataclasses.fields(kind):
        assert re.search(rf"^\s+{field.name}:", kind.__doc__ or "", re.MULTILINE), f"{field.name} is not described"


@pytest.mark.parametrize(("room", "kind"), EVERY)
def test_it_is_found_by_name_and_by_itself(room: str, kind: type[Any]) -> None:
    assert catalogue.find(kind.name) == kind()
    assert catalogue.find(kind.name, room) == kind()
    mine = kind()
    assert catalogue.find(mine, room) is mine


@pytest.mark.parametrize(("room", "kind"), EVERY)
def test_its_promises_are_known(room: str, kind: type[Any]) -> None:
    for promise in getattr(kind, "promises", ()):
        assert isinstance(promise, get_args(Promise))
        if isinstance(promise, BetterOnAverage):
            assert promise.than != kind.name
            assert type(catalogue.find(promise.than, room)) in catalogue.classes(room)
