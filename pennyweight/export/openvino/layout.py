"""What openvino_model.bin will hold, decided before a byte is written: constants, types, exact sizes.

The first bytes say which constants follow: a hash of their names, types, shapes and places. Behind them and before the
first weight stand constants that are no weights: those of the program, and shapes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pennyweight.errors import InvalidFormat
from pennyweight.export.programs import HEADER, Item, Layout, padded
from pennyweight.formats import Format, Grid

SHAPE_BYTES = 16  # of the numbers of rows and columns
MAGIC = b"pennyweight constants of openvino_model"  # with a sha256 behind it
FLOATS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
BITS = {"u2": 2, "u4": 4, "i4": 4, "u8": 8, "i8": 8, "f16": 16, "bf16": 16, "f32": 32}
SIGNED = {4: "i4", 8: "i8"}  # what symmetric codes are stored as; of 2 bits there is no such type


@dataclass(frozen=True)
class Constant:
    """One constant of the file.

    Args:
        name: of its layer.
        element: type, as OpenVINO calls it.
        shape: in elements.
    """

    name: str
    element: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Elements lie without gaps; the last byte is filled up."""
        return -(-math.prod(self.shape) * BITS[self.element] // 8)


def constants_of(name: str, shape: tuple[int, int], format: Format) -> tuple[Constant, ...]:
    """What is stored of a compressed weight: codes, scales, zero points.

    Source: what nncf writes and OpenVINO's CPU plugin recognises: codes `[out, groups, inputs]`, scales and zero points
    `[out, groups, 1]`; without the middle where a scale is said to be for a row.

    Raises:
        InvalidFormat: the format does not fit the shape, or these files.
    """
    if not isinstance(format, Grid) or format.bits not in (2, 4, 8) or not format.rows_stand_alone:
        raise InvalidFormat(
            f"{format.label()} in an OpenVINO model", expected="grids of 2, 4 or 8 bits, such as int4 g64 sym",
            mend="choose another step, or another engine", site=name,
        )  # fmt: skip
    if format.scale_dtype not in FLOATS:
        raise InvalidFormat(f"scales in {format.scale_dtype}", expected=", ".join(FLOATS), site=name)
    rows, columns = shape
    try:
        groups = format.groups(columns)
    except InvalidFormat as error:
        error.site = name
        raise
    size = columns // groups
    if size * format.bits % 8:
        raise InvalidFormat(
            f"groups of {size} codes of {format.bits} bits", expected="groups that fill whole bytes",
            mend="choose groups of a multiple of 4", site=name,
        )  # fmt: skip
    middle = () if format.group_size is None else (groups,)
    shared = (rows, *middle, 1)
    element = SIGNED.get(format.bits, "u2") if format.symmetric else f"u{format.bits}"
    codes = Constant(name, element, (rows, *middle, size))
    scale = Constant(f"{name}/scale", FLOATS[format.scale_dtype], shared)
    if not format.symmetric:
        return codes, scale, Constant(f"{name}/zero_point", element, shared)
    if format.bits not in SIGNED:
        return codes, scale, Constant(f"{name}/zero_point", element, (1,) * len(shared))
    return codes, scale


LAYOUT = Layout(
    packed=constants_of, plain=lambda name, dtype, shape: Constant(name, FLOATS[dtype], shape), dtypes=FLOATS
)


@dataclass(frozen=True)
class Places:
    """Where everything lies in the file.

    Args:
        header: its first bytes: everything before the first weight.
        offsets: where each constant of a weight begins, by its name.
        shapes: where the shapes are that codes in groups are brought into.
        size: of the file.
    """

    header: bytes
    offsets: Mapping[str, int]
    shapes: Mapping[tuple[int, int], int]
    size: int


def placed(items: Sequence[Item[Constant]], constants: bytes) -> Places:
    """Lay out the file.

    Args:
        items: everything that is stored.
        constants: of the program, which lie behind the first 128 bytes.
    """
    wide = dict.fromkeys(item.site.shape for item in items if item.site and len(item.stored[0].shape) > 2)
    behind = HEADER + -(-len(constants) // SHAPE_BYTES) * SHAPE_BYTES
    shapes = {shape: behind + SHAPE_BYTES * i for i, shape in enumerate(wide)}
    first = position = padded(behind + SHAPE_BYTES * len(shapes))
    offsets, said = {}, []
    for constant in (constant for item in items for constant in item.stored):
        offsets[constant.name] = position
        said.append(f"{constant.name} {constant.element} {constant.shape} {position}")
        position += padded(constant.bytes)
    header = (MAGIC + hashlib.sha256("\n".join(said).encode()).digest()).ljust(HEADER, b"\0") + constants
    numbers = b"".join(size.to_bytes(8, "little") for shape in shapes for size in shape)
    return Places((header.ljust(behind, b"\0") + numbers).ljust(first, b"\0"), offsets, shapes, position)
