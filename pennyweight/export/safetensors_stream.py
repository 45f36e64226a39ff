"""Write a safetensors file tensor by tensor: its header is known beforehand, so only one tensor is ever in memory.

Source: the safetensors format, https://github.com/huggingface/safetensors: eight bytes of header length, little endian,
the header as JSON padded with spaces to a multiple of eight, then the tensors without gaps. Wide types come first, as
in files of the reference library: so every tensor begins at a multiple of its own element size, and can be mapped.
That order is not the order of computing, which is why each tensor is written at its own offset.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch
from torch import Tensor

from pennyweight.errors import DiskFull, InvalidOutput, PennyweightError
from pennyweight.network.sources.source import DTYPES

TAGS = {str(dtype).removeprefix("torch."): tag for tag, dtype in DTYPES.items()}
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its name, `float16`, `int32` ... and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return DTYPES[TAGS[self.dtype]].itemsize

    @property
    def bytes(self) -> int:
        """Bytes in the file's data section."""
        return math.prod(self.shape) * self.itemsize


def layout(entries: Sequence[Entry]) -> tuple[bytes, dict[str, int], int]:
    """Lay out a file: its first bytes, where in it each tensor begins, and its size."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position, offsets = 0, {}
    for entry in sorted(entries, key=lambda e: (-e.itemsize, e.name)):
        header[entry.name] = {
            "dtype": TAGS[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [position, position + entry.bytes],
        }
        offsets[entry.name] = position
        position += entry.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {n: start + o for n, o in offsets.items()}, start + position


def is_written(path: Path, entries: Sequence[Entry]) -> bool:
    """Whether a file with exactly this header is there, whole.

    Raises:
        InvalidOutput: a file of this name is there that is not ours.
    """
    header, _, size = layout(entries)
    return is_whole(path, header, size)


def is_whole(path: Path, header: bytes, size: int) -> bool:
    """Whether a file of this size that begins with these bytes is there.

    Raises:
        InvalidOutput: a file of this name is there that is not ours.
    """
    if not path.exists():
        return False
    with path.open("rb") as file:
        found = file.read(len(header))
    if found != header or path.stat().st_size != size:
        raise InvalidOutput(
            "a file of this name is there and holds other tensors",
            expected="an empty directory, or one that the same command left unfinished",
            mend="choose another output directory, or remove the file",
            site=str(path),
        )
    return True


class WholeFile:
    """A file whose first bytes and layout are known: it gets its own name once every tensor is in it.

    Args:
        path: of the finished file.
        header: its first bytes.
        offsets: where in it each tensor begins; what lies between tensors is zero.
        size: of the finished file.
        part: how its name ends until then; several processes that may write one file need one each.

    Raises:
        DiskFull: it does not fit; nothing is left behind.
        InvalidOutput: the directory cannot be written to.
    """

    def __init__(
        self, path: Path, header: bytes, offsets: Mapping[str, int], size: int, *, part: str = "part"
    ) -> None:  # fmt: skip
        self.path = path
        self._header, self._offsets, self._size = header, offsets, size
        self._temporary = path.with_name(f".{path.name}.{part}")
        self._missing = set(offsets)
        self._file: BinaryIO

    def __enter__(self) -> Self:
        with writing(self.path, self._size):
            self._file = self._temporary.open("wb")
        try:
            self._put(0, self._header)
        except BaseException:
            self._discard()
            raise
        return self

    def put_bytes(self, name: str, data: bytes | memoryview) -> None:
        """Write one tensor in its place."""
        self._missing.remove(name)
        self._put(self._offsets[name], data)

    def _put(self, offset: int, data: bytes | memoryview) -> None:
        with writing(self.path, self._size):
            try:
                _write(self._file, offset, data)
            except OSError:
                self._discard()
                raise

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._discard()
            return
        assert not self._missing, f"never written: {sorted(self._missing)[:3]}"
        with writing(self.path, self._size):
            try:
                self._file.truncate(self._size)  # what fills the last tensor up is zero too
                self._file.flush()
                os.fsync(self._file.fileno())  # some file systems only say now that the disk is full
                self._file.close()
                self._temporary.replace(self.path)
            except OSError:
                self._discard()
                raise

    def _discard(self) -> None:
        with suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)


class ShardWriter(WholeFile):
    """Writes one safetensors file.

    Args:
        path: of the finished file.
        entries: every tensor it will hold.
        part: see `WholeFile`.

    Raises:
        DiskFull: it does not fit; nothing is left behind.
        InvalidOutput: the directory cannot be written to.
    """

    def __init__(self, path: Path, entries: Sequence[Entry], *, part: str = "part") -> None:
        super().__init__(path, *layout(entries), part=part)
        self._entries = {entry.name: entry for entry in entries}

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor in its place."""
        entry = self._entries[name]
        found = (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        assert found == (entry.dtype, entry.shape), f"{name} is {found}, announced as {entry.dtype} {entry.shape}"
        self.put_bytes(name, bytes_of(tensor))


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row by row."""
    flat = tensor.detach().cpu().contiguous().flatten()
    if flat.numel() == 1:  # may keep the stride of the view it came from, which bytes cannot be read through
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def write_file(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all.

    Raises:
        DiskFull: it does not fit.
        InvalidOutput: the directory cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.part")
    with writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                _write(file, 0, data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: Path, size: int) -> Iterator[None]:
    """Say in our words what the operating system says about a file of `size` bytes that could not be written."""
    try:
        yield
    except PennyweightError:
        raise
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DiskFull(
                f"no space left to write {path.name}",
                expected=f"{size} bytes free in {path.parent}",
                mend="free some space and run the same command again: finished files are kept and not made twice",
                site=str(path),
            ) from error
        raise InvalidOutput(
            f"cannot be written: {error.strerror or error}",
            expected="a directory we may write to",
            mend="choose another output directory",
            site=str(path),
        ) from error


def _write(file: BinaryIO, offset: int, data: bytes | memoryview) -> None:
    file.seek(offset)
    file.write(data)
