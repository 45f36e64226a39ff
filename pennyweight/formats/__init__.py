"""Ways to store a tensor, exact to the bit; how the stored numbers are chosen is the methods' business."""

from __future__ import annotations

from pennyweight.errors import UnknownName
from pennyweight.formats.affine import Affine
from pennyweight.formats.binary import Binary
from pennyweight.formats.conversion import Numbers
from pennyweight.formats.dense import Dense
from pennyweight.formats.fairy2i import Fairy2i
from pennyweight.formats.format import (
    Columns,
    Compressed,
    Field,
    Fitted,
    Format,
    Lattice,
    Linear,
    Part,
    Refittable,
    Scalar,
)
from pennyweight.formats.gguf import KQuant, Legacy, TernaryBlocks
from pennyweight.formats.grid import Grid, Scales
from pennyweight.formats.k_means import KMeans
from pennyweight.formats.logarithmic import Logarithmic
from pennyweight.formats.microscaling import Microscaling
from pennyweight.formats.minifloat import Minifloat
from pennyweight.formats.normal_float import NormalFloat
from pennyweight.formats.nvfp4 import NVFP4
from pennyweight.formats.progressive import Progressive
from pennyweight.formats.residual_binary import ResidualBinary
from pennyweight.formats.sharing import Sharing
from pennyweight.formats.ternary import Ternary
from pennyweight.formats.two_shifts import TwoShifts
from pennyweight.formats.vectors import VectorFit, Vectors
from pennyweight.formats.whole import Whole

FORMATS: tuple[type[Format], ...] = (
    Affine,
    Binary,
    Dense,
    Fairy2i,
    Grid,
    KMeans,
    KQuant,
    Legacy,
    Logarithmic,
    Microscaling,
    Minifloat,
    NormalFloat,
    NVFP4,
    Progressive,
    ResidualBinary,
    Ternary,
    TernaryBlocks,
    TwoShifts,
    Vectors,
)


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
    "FORMATS",
    "NVFP4",
    "Affine",
    "Binary",
    "Columns",
    "Compressed",
    "Dense",
    "Fairy2i",
    "Field",
    "Fitted",
    "Format",
    "Grid",
    "KMeans",
    "KQuant",
    "Lattice",
    "Legacy",
    "Linear",
    "Logarithmic",
    "Microscaling",
    "Minifloat",
    "Numbers",
    "Part",
    "Progressive",
    "Refittable",
    "ResidualBinary",
    "Scalar",
    "Scales",
    "Sharing",
    "TernaryBlocks",
    "TwoShifts",
    "VectorFit",
    "Vectors",
    "Whole",
    "parse",
]  # fmt: skip
