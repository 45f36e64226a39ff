"""Where the tensors of a file lie. Every file can be packed: one whose header makes no sense is one run of bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pennyweight.container.fields import PLAIN, Layout, layouts_of
from pennyweight.errors import PennyweightError
from pennyweight.network.sources.gguf import read_header
from pennyweight.network.sources.source import read_entries


@dataclass(frozen=True)
class Cut:
    """One run of a file's bytes.

    Args:
        name: of the tensor; empty for what lies before and between tensors.
        start: first byte.
        size: in bytes.
        layouts: worth trying.
    """

    name: str
    start: int
    size: int
    layouts: tuple[Layout, ...]


def cut(file: Path) -> tuple[tuple[Cut, ...], str]:
    """Runs that cover a file without gap or overlap, in order; and why it is one run though it should hold tensors.

    Raises:
        OSError: it cannot be read.
    """
    size, suffix = file.stat().st_size, file.suffix.lower()
    try:
        if suffix == ".safetensors":
            data, entries = read_entries(file)
            tensors = [(entry.name, data + entry.start, entry.stop - entry.start, entry.dtype) for entry in entries]
        elif suffix == ".gguf":
            _, _, blocks = read_header(file)
            tensors = [(block.name, block.start, block.bytes, block.kind.name) for block in blocks]
        else:
            tensors = []
    except PennyweightError as error:
        return _cover((), size), error.happened
    if not _apart(tensors, size):
        return _cover((), size), "its tensors overlap or lie outside the file"
    return _cover(tensors, size), ""


def _apart(tensors: Iterable[tuple[str, int, int, str]], size: int) -> bool:
    position = 0
    for _, start, length, _ in sorted(tensors, key=lambda tensor: tensor[1:3]):
        if start < position or length < 0:
            return False
        position = start + length
    return position <= size


def _cover(tensors: Iterable[tuple[str, int, int, str]], size: int) -> tuple[Cut, ...]:
    runs, position = [], 0
    for name, start, length, dtype in sorted(tensors, key=lambda tensor: tensor[1:3]):
        if start > position:
            runs.append(Cut("", position, start - position, (PLAIN,)))
        runs.append(Cut(name, start, length, layouts_of(dtype, length)))
        position = start + length
    if position < size:
        runs.append(Cut("", position, size - position, (PLAIN,)))
    return tuple(runs)
