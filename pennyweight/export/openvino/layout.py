"""What openvino_model.bin will hold, decided before a byte is written: constants, types, exact sizes.

Constants begin at multiples of 64 bytes. Before the first weight stand 128 bytes that say which follow, a hash of their
names, types, shapes and places, and constants that are no weights: those of the program, and shapes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pennyweight.errors import InvalidFormat, InvalidModel
from pennyweight.export.uncompressed import check_equal, dense_dtype, tied_to
from pennyweight.formats import Dense, Format, Grid
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.source import TensorInfo

ALIGNMENT, HEADER = 64, 128
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


@dataclass(frozen=True)
class Item:
    """One tensor of the source, and what it becomes.

    Args:
        info: of the source.
        action: as in the accounting.
        reason: from what to what, or why.
        constants: what is stored: the tensor, or codes, scales and zero points; none for one that is dropped.
        grid: of a site that is compressed.
        site: that site.
    """

    info: TensorInfo
    action: str
    reason: str
    constants: tuple[Constant, ...] = ()
    grid: Grid | None = None
    site: Site | None = None

    @property
    def bytes(self) -> int:
        """In the file, filled up."""
        return sum(padded(constant.bytes) for constant in self.constants)


def padded(count: int) -> int:
    """The next multiple of the alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def stored_bytes(shape: tuple[int, int], format: Format) -> int:
    """Bytes a site takes in the file, filled up.

    Raises:
        InvalidFormat: the format does not fit the shape, or these files.
    """
    if isinstance(format, Dense):
        return padded(format.stored_bits(shape) // 8)
    return sum(padded(constant.bytes) for constant in constants_of("weight", shape, format))


def constants_of(name: str, shape: tuple[int, int], format: Format) -> tuple[Constant, ...]:
    """What is stored of a compressed weight: codes, scales, zero points.

    Source: what nncf writes and OpenVINO's CPU plugin recognises: codes `[out, groups, inputs]`, scales and zero points
    `[out, groups, 1]`; without the middle where a scale is said to be for a row.

    Raises:
        InvalidFormat: as `stored_bytes`.
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


def items_of(network: Network, formats: Mapping[str, Format], dtype: str, read: Iterable[str]) -> list[Item]:
    """Every tensor of the source, in the order of computing.

    Args:
        network: what is written.
        formats: grid by name of site.
        dtype: of everything else that is wider.
        read: parameters that the program reads.

    Raises:
        InvalidFormat: no such site, or a format that does not fit.
        InvalidModel: two tensors differ that config.json says are one.
    """
    Dense(dtype=dtype)
    source, chosen = network.source, chosen_of(network, formats)
    order = [name for name in dict.fromkeys(map(network.stored_name, read)) if name in source.tensors]
    return [
        _item(source.tensors[name], network, chosen, dtype, set(order))
        for name in dict.fromkeys([*order, *source.tensors])
    ]


def chosen_of(network: Network, formats: Mapping[str, Format]) -> dict[str, tuple[Site, Format]]:
    """Site and format by the name of the stored tensor, of those that do not stay dense.

    Raises:
        InvalidFormat: no such site, or two formats for one tensor.
    """
    sites, chosen = network.by_name, dict[str, tuple[Site, Format]]()
    for name, format in formats.items():
        if name not in sites:
            raise InvalidFormat("there is no such site", expected=f"one of {len(sites)} sites", site=name)
        stored = network.stored_name(sites[name].parameter)
        before = chosen.setdefault(stored, (sites[name], format))[1]
        if before != format:
            raise InvalidFormat(
                f"{format.label()}, and {before.label()} for the same tensor", expected="one format for one tensor",
                mend="give both sites one step", site=name,
            )  # fmt: skip
    return {stored: pair for stored, pair in chosen.items() if not isinstance(pair[1], Dense)}


def _item(
    info: TensorInfo, network: Network, chosen: Mapping[str, tuple[Site, Format]], dtype: str, wanted: set[str]
) -> Item:
    name = info.name
    if (kept := tied_to(name, network)) is not None:
        check_equal(name, kept, network)
        return Item(info, "dropped", f"the same tensor as {kept}")
    if name not in wanted:
        return Item(info, "dropped", "nothing of the program reads it")
    if name in chosen:
        site, format = chosen[name]
        assert isinstance(format, Grid)
        return Item(info, "transformed", format.label(), constants_of(name, site.shape, format), format, site)
    stored = dense_dtype(info, dtype)
    if stored not in FLOATS:
        raise InvalidModel(
            f"is stored as {stored}", expected="floating-point numbers", mend="choose another engine", site=name
        )
    action, reason = ("kept", "") if stored == info.dtype else ("cast", f"{info.dtype} to {stored}")
    return Item(info, action, reason, (Constant(name, FLOATS[stored], info.shape),))


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


def placed(items: Sequence[Item], constants: bytes) -> Places:
    """Lay out the file.

    Args:
        items: everything that is stored.
        constants: of the program, which lie behind the first 128 bytes.
    """
    wide = dict.fromkeys(item.site.shape for item in items if item.site and len(item.constants[0].shape) > 2)
    behind = HEADER + -(-len(constants) // SHAPE_BYTES) * SHAPE_BYTES
    shapes = {shape: behind + SHAPE_BYTES * i for i, shape in enumerate(wide)}
    first = position = padded(behind + SHAPE_BYTES * len(shapes))
    offsets, said = {}, []
    for constant in (constant for item in items for constant in item.constants):
        offsets[constant.name] = position
        said.append(f"{constant.name} {constant.element} {constant.shape} {position}")
        position += padded(constant.bytes)
    header = (MAGIC + hashlib.sha256("\n".join(said).encode()).digest()).ljust(HEADER, b"\0") + constants
    numbers = b"".join(size.to_bytes(8, "little") for shape in shapes for size in shape)
    return Places((header.ljust(behind, b"\0") + numbers).ljust(first, b"\0"), offsets, shapes, position)
