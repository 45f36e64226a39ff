"""Formats of activations: which numbers there are, which share a scale, and roundings that are ready to be used."""

from __future__ import annotations

from pennyweight.errors import UnknownName
from pennyweight.formats.passing.activations import Activations, KeysAndValues
from pennyweight.formats.passing.floats import Floats
from pennyweight.formats.passing.integers import Integers
from pennyweight.formats.passing.passing import Codes, Over, Passing
from pennyweight.formats.passing.powers import Powers
from pennyweight.formats.passing.quantizer import Dynamic, Quantizer, Static
from pennyweight.formats.passing.tangent import Tangent

PASSING: tuple[type[Passing], ...] = (Floats, Integers, Powers, Tangent)


def parse(label: str) -> Passing:
    """The format of activations that a label names: `int8 token`, `fp8 e4m3 tensor`.

    Raises:
        UnknownName: no format reads the label.
    """
    for kind in PASSING:
        found = kind.parse(label)
        if found is not None:
            return found
    raise UnknownName(
        f"no format of activations is called {label!r}",
        expected="such as 'int8 token', 'int6 g128', 'int8 tensor asym' or 'fp8 e4m3 token'",
        mend="docs/decisions/0009-activations.md lists them",
    )


__all__ = [
    "PASSING", "Activations", "Codes", "Dynamic", "Floats", "Integers", "KeysAndValues", "Over", "Passing", "Powers",
    "Quantizer", "Static", "Tangent", "parse",
]  # fmt: skip
