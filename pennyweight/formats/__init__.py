"""Ways to store a tensor, exact to the bit; how the stored numbers are chosen is the methods' business."""

from __future__ import annotations

from pennyweight.errors import UnknownName
from pennyweight.formats.dense import Dense
from pennyweight.formats.format import Columns, Compressed, Field, Fitted, Format, Part, Scalar
from pennyweight.formats.grid import Grid, Scales
from pennyweight.formats.minifloat import Minifloat
from pennyweight.formats.sharing import Sharing

FORMATS: tuple[type[Format], ...] = (Dense, Grid, Minifloat)


def parse(label: str) -> Format:
    """The format a label names: `int4 g64 asym`, `int8 row sym`, `float16`.

    Raises:
        UnknownName: no format reads the label.
    """
    for kind in FORMATS:
        found = kind.parse(label)
        if found is not None:
            return found
    raise UnknownName(
        f"no format is called {label!r}",
        expected="such as 'int4 g64 asym', 'int8 row sym' or 'float16'",
        mend="pennyweight list shows every format and method",
    )


__all__ = [
    "FORMATS", "Columns", "Compressed", "Dense", "Field", "Fitted", "Format", "Grid", "Minifloat", "Part", "Scalar",
    "Scales", "Sharing", "parse",
]  # fmt: skip
