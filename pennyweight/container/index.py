"""The table at the end of a container: files, the tensors in them, the chunks of each, hashes.

A container is the magic number, the streams of all chunks one after another, the table as MessagePack, and a footer
that says where the table is and what its SHA-256 is. No offset is stored but that one: where a stream lies follows from
the lengths before it, so streams cannot overlap. The table is not compressed, so what it takes in memory is bounded by
the size of the file.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from pennyweight.container.chunks import WHOLE, Coded, chunk_size
from pennyweight.container.fields import LAYOUTS, Layout
from pennyweight.errors import CorruptFile
from pennyweight.numerics.hashing import of_value

MAGIC = b"PWPACK1\n"
FOOTER = struct.Struct("<QQ32s8s")  # where the table begins, its bytes, its SHA-256, the magic number again
INDEX_LIMIT = 1 << 25  # bytes; enough for a terabyte of tensors
PART_LIMIT, PATH_LIMIT = 255, 2048  # bytes of a file's name, and of its path


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """One run of a file's bytes.

    Args:
        name: of the tensor; empty between tensors.
        size: in bytes.
        layout: how its bytes were taken apart.
        table: a record for each chunk, see `record_type`.
    """

    name: str
    size: int
    layout: str
    table: bytes

    def chunks(self) -> NDArray[np.void]:
        """The records of its chunks."""
        return np.frombuffer(self.table, dtype=record_type(LAYOUTS[self.layout]))


class PackedFile(msgspec.Struct, frozen=True, array_like=True):
    """One file.

    Args:
        path: relative, with slashes.
        size: in bytes.
        sha256: of its bytes, in hexadecimal.
        segments: that make it up, in order.
    """

    path: str
    size: int
    sha256: str
    segments: tuple[Segment, ...]


class Index(msgspec.Struct, frozen=True, array_like=True):
    """Everything but the streams.

    Args:
        single: whether one file was packed, not a directory.
        sha256: over paths and hashes of all files.
        files: in the order of their streams.
    """

    single: bool
    sha256: str
    files: tuple[PackedFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def whole(files: Iterable[PackedFile]) -> str:
    """The hash over the paths and hashes of all files."""
    return of_value({file.path: file.sha256 for file in files})


def record_type(layout: Layout) -> np.dtype[np.void]:
    """What is stored of a chunk: CRC-32 of its bytes, then of each stream how it is stored and its length."""
    streams = len(layout.kinds)
    return np.dtype([("crc", "<u4"), ("how", "u1", (streams,)), ("length", "<u4", (streams,))])


def record(coded: Coded, layout: Layout) -> bytes:
    """The record of one chunk."""
    lengths = [len(stream) for stream in coded.streams]
    return np.array((coded.crc, list(coded.how), lengths), dtype=record_type(layout)).tobytes()


def footer(start: int, table: bytes) -> bytes:
    """The last bytes of a container whose table begins at `start`."""
    return FOOTER.pack(start, len(table), hashlib.sha256(table).digest(), MAGIC)


def safe(path: str) -> bool:
    """Whether a path is relative, stays below where it starts, is written in one way only, and not too long."""
    try:
        if not path or len(path.encode()) > PATH_LIMIT:
            return False
    except UnicodeEncodeError:  # a name on disk that is not UTF-8
        return False
    parts = path.split("/")
    strange = any(letter == "\\" or ord(letter) < 32 or ord(letter) == 127 for letter in path)
    return not strange and not any(part in ("", ".", "..") or len(part.encode()) > PART_LIMIT for part in parts)


def read_index(path: Path) -> Index:
    """Read the table and check that it describes exactly the bytes that are there.

    Raises:
        CorruptFile: not a container, an incomplete one, or a table that contradicts itself.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise _corrupt(path, "it does not begin like a container")
        start, table = _table(file, size, path)
    try:
        index = msgspec.msgpack.decode(table, type=Index)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _corrupt(path, f"its table cannot be read: {error}") from error
    if happened := _contradiction(index, start - len(MAGIC)):
        raise _corrupt(path, happened)
    return index


def _table(file: BinaryIO, size: int, path: Path) -> tuple[int, bytes]:
    if size < len(MAGIC) + FOOTER.size:
        raise _corrupt(path, f"it ends after {size} bytes")
    file.seek(size - FOOTER.size)
    start, length, digest, magic = FOOTER.unpack(file.read(FOOTER.size))
    if magic != MAGIC:
        raise _corrupt(path, "it does not end like a container: it was cut off")
    if length > INDEX_LIMIT or start < len(MAGIC) or start + length + FOOTER.size != size:
        raise _corrupt(path, f"its table is said to be {length} bytes at {start}, and the file has {size}")
    file.seek(start)
    table = file.read(length)
    if hashlib.sha256(table).digest() != digest:
        raise _corrupt(path, "its table is not what was written (its SHA-256 differs)")
    return start, table


def _contradiction(index: Index, stored: int) -> str:
    """What is wrong with a table that should describe `stored` bytes of streams; empty if nothing is."""
    paths = [file.path for file in index.files]
    if unsafe := [path for path in paths if not safe(path)]:
        return f"a file is called {unsafe[0]!r}"
    if len({path.casefold() for path in paths}) < len(paths):
        return "two files have the same name, or one to disks that do not tell small letters from large ones"
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    if both := folders.intersection(paths):
        return f"{min(both)!r} is a file and a directory"
    if index.single and (len(paths) != 1 or "/" in paths[0]):
        return f"it should hold one file and holds {len(paths)}"
    if index.sha256 != whole(index.files):
        return "the hash of the whole does not follow from those of the files"
    total = 0
    for file in index.files:
        if file.size != sum(segment.size for segment in file.segments):
            return f"the parts of {file.path} do not make up its {file.size} bytes"
        for segment in file.segments:
            lengths = _stored(segment)
            if lengths is None:
                return f"the chunks of {segment.name or 'a part'} of {file.path} do not fit its {segment.size} bytes"
            total += lengths
    return "" if total == stored else f"its chunks take {total} bytes and {stored} are there"


def _stored(segment: Segment) -> int | None:
    """Bytes its streams take; None when its records do not fit its size."""
    layout = LAYOUTS.get(segment.layout)
    if layout is None or segment.size < 0 or segment.size % layout.stride:
        return None
    step = chunk_size(layout)
    count, last = -(-segment.size // step), (segment.size - 1) % step + 1
    if len(segment.table) != count * record_type(layout).itemsize:
        return None
    records = segment.chunks()
    for chunks, size in ((records[:-1], step), (records[-1:], last)):
        if len(chunks) and not _fit(chunks["how"], chunks["length"], layout.sizes(size), size):
            return None
    return int(records["length"].sum(dtype=np.int64))


def _fit(how: NDArray[np.uint8], length: NDArray[np.uint32], sizes: Sequence[int], size: int) -> bool:
    """No stream is longer than what it stands for: one that would grow is stored as it is."""
    kept = (how == WHOLE).all(1) & (length[:, 0] == size) & (length[:, 1:] == 0).all(1)
    split = (how < WHOLE).all(1) & (length <= np.array(sizes)).all(1)
    return bool((kept | split).all())


def _corrupt(path: Path, happened: str) -> CorruptFile:
    return CorruptFile(
        happened, expected="a whole container, as `pennyweight pack` writes it", mend="copy or download it again",
        site=str(path),
    )  # fmt: skip
