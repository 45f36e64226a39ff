"""Any function of a user: degradation of one unit from the outputs of both models, with limits that are checked.

Source: the user's; a bound on a mean rests on the declared limits alone.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pennyweight.errors import InvalidMeasurement, InvalidMethod


@dataclass(frozen=True, kw_only=True)
class PythonFunction:
    """What a function (reference outputs, compressed outputs) returns; larger is worse.

    Args:
        function: the function, or `module:name` of one that can be imported; the default is the Euclidean distance.
        lower: smallest value it can return, or None where nothing limits it.
        upper: largest value it can return, or None where nothing limits it.
    """

    name: ClassVar[str] = "function"
    paper: ClassVar[str] = "user"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "degradation"
    reads: ClassVar[str] = "outputs"
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "the degradation that the function measures is at most {bound}"
    percent: ClassVar[bool] = False
    function: str | Callable[[Any, Any], float] = "math:dist"
    lower: float | None = 0.0
    upper: float | None = None

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.lower, self.upper) if limit is not None]
        if not all(math.isfinite(limit) for limit in limits) or (len(limits) == 2 and limits[0] >= limits[1]):
            raise InvalidMethod(
                f"values between {self.lower} and {self.upper} are no range",
                expected="lower < upper, both finite; None where nothing limits the values",
                mend="function(function='my_module:my_function', lower=0.0, upper=1.0)", site=self.name,
            )  # fmt: skip

    def measure(self, reference: Any, compressed: Any, target: Any) -> tuple[float, float]:
        """Zero, and what the function returns; `target` says in errors which unit it was.

        Raises:
            InvalidMethod: there is no such function.
            InvalidMeasurement: it fails, or returns NaN, something that is no number, or a value outside its limits.
        """
        # Imported here and not when the value is made: reading a certificate must not run what it names.
        function = self.function if callable(self.function) else _imported(self.function)
        try:
            value = float(function(reference, compressed))
        except Exception as error:
            raise InvalidMeasurement(
                f"the function failed on unit {target}: {type(error).__name__}: {error}",
                expected="a number for every unit", mend="call it on the outputs of that unit by hand", site=self.name,
            ) from error  # fmt: skip
        below = self.lower is not None and value < self.lower
        above = self.upper is not None and value > self.upper
        if not math.isfinite(value) or below or above:
            raise InvalidMeasurement(
                f"the function returned {value!r} on unit {target}",
                expected=f"a finite number, at least {self.lower} and at most {self.upper} as declared",
                mend="correct the function, or declare the limits it really has: every bound rests on them",
                site=self.name,
            )
        return 0.0, value


def _imported(spec: str) -> Callable[[Any, Any], float]:
    module, _, name = spec.partition(":")
    try:
        found: Callable[[Any, Any], float] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidMethod(
            f"{spec!r} names no function: {error}", expected="module:name of something that can be imported",
            mend="function(function='my_module:my_function'), with my_module.py in the current directory",
            site=PythonFunction.name,
        ) from error  # fmt: skip
    if not callable(found):
        raise InvalidMethod(
            f"{spec} is not a function", expected="something that takes (reference outputs, compressed outputs)",
            mend="function(function='my_module:my_function')", site=PythonFunction.name,
        )  # fmt: skip
    return found
