"""What the data file of an ONNX program will hold, decided before a byte is written: tensors, types, exact sizes.

onnxruntime maps the file into memory as it lies. Its first bytes say which tensors follow: a hash of their names,
types, shapes and places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pennyweight.errors import InvalidFormat
from pennyweight.export.programs import HEADER, Item, Layout, padded
from pennyweight.export.safetensors_stream import Entry
from pennyweight.formats import Format, Grid
from pennyweight.formats.dense import DTYPES

MAGIC = b"pennyweight tensors of model.onnx"  # with a sha256 behind it
WIDTHS = (2, 4, 8)  # of the codes that onnxruntime's CPU kernels take
LEAST_BLOCK = 16  # inputs that share a scale: a power of two, at least this


def codes_of(name: str, grid: Grid) -> str:
    """What codes are called, as onnxruntime's own quantizer calls them; scales and zero points say what they are."""
    return f"{name}_Q{grid.bits}"


def entries_of(name: str, shape: tuple[int, int], format: Format) -> tuple[Entry, ...]:
    """What is stored of a compressed weight: codes and zero points in a stream of bits, low bits first, by row.

    Source: onnxruntime 1.31, `MatMulNBits` and `GatherBlockQuantized` in its ContribOperators.md.

    Raises:
        InvalidFormat: the format does not fit the shape, or an ONNX program.
    """
    if not isinstance(format, Grid) or format.bits not in WIDTHS or not format.rows_stand_alone:
        raise InvalidFormat(
            f"{format.label()} in an ONNX program", expected="grids of 2, 4 or 8 bits, such as int4 g64 sym",
            mend="choose another step, or another engine", site=name,
        )  # fmt: skip
    size = format.group_size or 0
    if size < LEAST_BLOCK or size & (size - 1):
        raise InvalidFormat(
            f"{format.label()} in an ONNX program", expected="groups of 16, 32, 64, 128 or another power of two",
            mend="choose g32, g64 or g128", site=name,
        )  # fmt: skip
    if format.scale_dtype not in DTYPES:
        raise InvalidFormat(f"scales in {format.scale_dtype}", expected=", ".join(DTYPES), site=name)
    rows, columns = shape
    try:
        groups = format.groups(columns)
    except InvalidFormat as error:
        error.site = name
        raise
    stored = (
        Entry(codes_of(name, format), "uint8", (rows, groups, size * format.bits // 8)),
        Entry(f"{name}_scales", format.scale_dtype, (rows, groups)),
    )
    if format.symmetric:
        return stored
    return (*stored, Entry(f"{name}_zero_points", "uint8", (rows, -(-groups * format.bits // 8))))


LAYOUT = Layout(packed=entries_of, plain=Entry, dtypes=DTYPES)


def placed(items: Sequence[Item[Entry]]) -> tuple[bytes, dict[str, int], int]:
    """Lay out the data file: its first bytes, where in it each tensor begins, and its size."""
    position, offsets, said = HEADER, {}, []
    for entry in (entry for item in items for entry in item.stored):
        offsets[entry.name] = position
        said.append(f"{entry.name} {entry.dtype} {entry.shape} {position}")
        position += padded(entry.bytes)
    header = MAGIC + hashlib.sha256("\n".join(said).encode()).digest()
    return header.ljust(HEADER, b"\0"), offsets, position
