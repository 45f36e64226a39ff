"""What the data file of an ONNX program will hold, decided before a byte is written: tensors, types, exact sizes.

Every tensor begins at a multiple of 64 bytes, which onnxruntime maps into memory as it lies. Before the first of them
stand 128 bytes that say which tensors follow: a hash of their names, types, shapes and places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pennyweight.errors import InvalidFormat, InvalidModel
from pennyweight.export.safetensors_stream import Entry
from pennyweight.export.uncompressed import check_equal, dense_dtype, tied_to
from pennyweight.formats import Dense, Format, Grid
from pennyweight.formats.dense import DTYPES
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.source import TensorInfo

ALIGNMENT, HEADER = 64, 128
MAGIC = b"pennyweight tensors of model.onnx"  # with a sha256 behind it
WIDTHS = (2, 4, 8)  # of the codes that onnxruntime's CPU kernels take
LEAST_BLOCK = 16  # inputs that share a scale: a power of two, at least this


@dataclass(frozen=True)
class Item:
    """One tensor of the source, and what it becomes.

    Args:
        info: of the source.
        action: as in the accounting.
        reason: from what to what, or why.
        entries: what is stored: the tensor, or codes, scales and zero points; none for one that is dropped.
        grid: of a site that is compressed.
        site: that site.
    """

    info: TensorInfo
    action: str
    reason: str
    entries: tuple[Entry, ...] = ()
    grid: Grid | None = None
    site: Site | None = None

    @property
    def bytes(self) -> int:
        """In the data file, filled up."""
        return sum(padded(entry.bytes) for entry in self.entries)


def padded(count: int) -> int:
    """The next multiple of the alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def codes_of(name: str, grid: Grid) -> str:
    """What codes are called, as onnxruntime's own quantizer calls them; scales and zero points say what they are."""
    return f"{name}_Q{grid.bits}"


def stored_bytes(name: str, shape: tuple[int, int], format: Format) -> int:
    """Bytes a site takes in the data file, filled up.

    Raises:
        InvalidFormat: the format does not fit the shape, or an ONNX program.
    """
    if isinstance(format, Dense):
        return padded(format.stored_bits(shape) // 8)
    return sum(padded(entry.bytes) for entry in entries_of(name, shape, format))


def entries_of(name: str, shape: tuple[int, int], format: Format) -> tuple[Entry, ...]:
    """What is stored of a compressed weight: codes and zero points in a stream of bits, low bits first, by row.

    Source: onnxruntime 1.31, `MatMulNBits` and `GatherBlockQuantized` in its ContribOperators.md.

    Raises:
        InvalidFormat: as `stored_bytes`.
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


def items_of(network: Network, formats: Mapping[str, Format], dtype: str, used: Mapping[str, str]) -> list[Item]:
    """Every tensor of the source, in the order of computing.

    Args:
        network: what is written.
        formats: grid by name of site.
        dtype: of everything else that is wider.
        used: stored name of every parameter of the graph.

    Raises:
        InvalidFormat: no such site, or a format that does not fit.
        InvalidModel: two tensors differ that config.json says are one.
    """
    Dense(dtype=dtype)
    source, chosen = network.source, chosen_of(network, formats)
    wanted = set(used.values())
    order = [name for name in dict.fromkeys(used.values()) if name in source.tensors]
    return [
        _item(source.tensors[name], network, chosen, dtype, wanted) for name in dict.fromkeys([*order, *source.tensors])
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
        return Item(info, "dropped", "no node of the program reads it")
    if name in chosen:
        site, format = chosen[name]
        entries = entries_of(name, site.shape, format)
        assert isinstance(format, Grid)
        return Item(info, "transformed", format.label(), entries, format, site)
    stored = dense_dtype(info, dtype)
    if stored not in DTYPES:
        raise InvalidModel(
            f"is stored as {stored}", expected="floating-point numbers", mend="choose another engine", site=name
        )
    action, reason = ("kept", "") if stored == info.dtype else ("cast", f"{info.dtype} to {stored}")
    return Item(info, action, reason, (Entry(name, stored, info.shape),))


def placed(items: Sequence[Item]) -> tuple[bytes, dict[str, int], int]:
    """Lay out the data file: its first bytes, where in it each tensor begins, and its size."""
    position, offsets, said = HEADER, {}, []
    for entry in (entry for item in items for entry in item.entries):
        offsets[entry.name] = position
        said.append(f"{entry.name} {entry.dtype} {entry.shape} {position}")
        position += padded(entry.bytes)
    header = MAGIC + hashlib.sha256("\n".join(said).encode()).digest()
    return header.ljust(HEADER, b"\0"), offsets, position
