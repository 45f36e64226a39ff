"""The checker of shapes and types while tests run: beartype, except for the few hints it refuses outside a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

CONFIGURATION = BeartypeConf(is_pep484_tower=True)  # an int will do where a float is asked for, as in mypy
Function = TypeVar("Function", bound=Callable[..., Any])


def check(function: Function) -> Function:
    """Check a function's arguments and result; `typing.Self` is known to decorated classes only and goes unchecked."""
    try:
        checked: Function = beartype(conf=CONFIGURATION)(function)
    except BeartypeDecorHintPep673Exception:
        return function
    return checked
