"""Reading a container: any file, or one tensor without the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pennyweight.container.chunks import chunk_size, decode
from pennyweight.container.coders import require
from pennyweight.container.fields import LAYOUTS, Layout
from pennyweight.container.index import MAGIC, PackedFile, Segment, read_index
from pennyweight.errors import CorruptFile, MissingFile


@dataclass(frozen=True)
class Piece:
    """One chunk, and where its streams lie in the container.

    Args:
        start: of the first stream; the others follow.
        lengths: of the streams.
        how: each is stored.
        crc: CRC-32 of the chunk.
        layout: its bytes are in.
        size: of the chunk, in bytes.
    """

    start: int
    lengths: tuple[int, ...]
    how: bytes
    crc: int
    layout: Layout
    size: int


class Container:
    """An open container; its table was read and checked, its chunks are read when asked for, by any thread.

    Args:
        path: of the container.

    Raises:
        MissingFile: there is no such file.
        MissingExtra: zstandard is not installed.
        CorruptFile: it is not a whole container.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise MissingFile(
                "this is a directory" if self.path.is_dir() else "there is no such file",
                expected="a container", mend="check the path", site=str(path),
            )  # fmt: skip
        require()
        self.index = read_index(self.path)
        self._starts: dict[str, int] = {}
        position = len(MAGIC)
        for file in self.index.files:
            self._starts[file.path] = position
            position += sum(map(_stored, file.segments))
        self._file = self.path.open("rb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def pieces(self, file: PackedFile, tensor: str | None = None) -> Iterator[Piece]:
        """The chunks of a file, or of one of its tensors, in order."""
        start = self._starts[file.path]
        for segment in file.segments:
            if tensor is None or segment.name == tensor:
                yield from _pieces(segment, start)
            start += _stored(segment)

    def decode(self, piece: Piece) -> bytes:
        """Read and restore a chunk.

        Raises:
            CorruptFile: its bytes are not what was packed.
        """
        stored = os.pread(self._file.fileno(), sum(piece.lengths), piece.start)
        streams, position = [], 0
        for length in piece.lengths:
            streams.append(stored[position : position + length])
            position += length
        try:
            return decode(streams, piece.how, piece.crc, piece.layout, piece.size)
        except CorruptFile as error:
            error.site, error.mend = str(self.path), "copy or download the container again"
            raise

    def read(self, path: str, tensor: str) -> bytes:
        """The bytes of one tensor of one file; nothing else is read.

        Args:
            path: of the file, as it was packed.
            tensor: its name in that file.

        Raises:
            MissingFile: there is no such file or tensor in it.
            CorruptFile: its bytes are not what was packed.
        """
        found = [file for file in self.index.files if file.path == path]
        if not found or not any(segment.name == tensor for segment in found[0].segments):
            raise MissingFile(
                f"{path} has no tensor {tensor}" if found else f"there is no {path}",
                expected="a file of the container, and a tensor of it", mend="Container(...).index lists both",
                site=str(self.path),
            )  # fmt: skip
        return b"".join(map(self.decode, self.pieces(found[0], tensor)))


def _stored(segment: Segment) -> int:
    return int(segment.chunks()["length"].sum(dtype="int64"))


def _pieces(segment: Segment, start: int) -> Iterator[Piece]:
    layout, left = LAYOUTS[segment.layout], segment.size
    for crc, how, length in segment.chunks():
        size = min(left, chunk_size(layout))
        lengths = tuple(map(int, length))
        yield Piece(start, lengths, how.tobytes(), int(crc), layout, size)
        start, left = start + sum(lengths), left - size
