"""One chunk of a tensor: its bytes split into streams, each stream coded; and back."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pennyweight.container.coders import better, restore, shrink
from pennyweight.container.fields import CHUNK, Bytes, Layout
from pennyweight.errors import CorruptFile

WHOLE = 2  # of the first stream: the chunk as it is, not split; the others are empty
PAIRS = 1 << 16


@dataclass(frozen=True)
class Coded:
    """One coded chunk.

    Args:
        streams: what is stored, in order.
        how: of each stream: raw, zstd, or the whole chunk.
        crc: CRC-32 of the chunk's own bytes.
        counts: how often each byte occurs in each stream, `[streams, 256]`.
    """

    streams: tuple[bytes, ...]
    how: bytes
    crc: int
    counts: NDArray[np.int64]

    @property
    def whole(self) -> bool:
        """Whether it is stored as it was."""
        return self.how[0] == WHOLE


def chunk_size(layout: Layout) -> int:
    """Bytes of every chunk but the last: whole records."""
    return CHUNK // layout.stride * layout.stride


def choose(data: bytes, layouts: Sequence[Layout]) -> tuple[Layout, tuple[int, ...]]:
    """The layout whose streams have the least entropy on a first chunk, and a coder for each stream."""
    records, layout = np.frombuffer(data, dtype=np.uint8), layouts[0]
    if len(layouts) > 1:
        whole = [(one, records[: len(records) // one.stride * one.stride]) for one in layouts]
        bounds = [sum(map(entropy, map(count, one.split(part)))) / max(len(part), 1) for one, part in whole]
        layout = layouts[int(np.argmin(bounds))]
    part = records[: len(records) // layout.stride * layout.stride]
    return layout, tuple(better(np.ascontiguousarray(stream).data) for stream in layout.split(part))


def encode(data: bytes, layout: Layout, coders: Sequence[int]) -> Coded:
    """Code a chunk of whole records; one that would not shrink is kept as it is."""
    streams = [np.ascontiguousarray(stream) for stream in layout.split(np.frombuffer(data, dtype=np.uint8))]
    coded = [shrink(stream.data, coder) for stream, coder in zip(streams, coders, strict=True)]
    counts = np.stack([count(stream) for stream in streams])
    if sum(len(stored) for _, stored in coded) >= len(data):
        coded = [(WHOLE, data), *((WHOLE, b""),) * (len(streams) - 1)]
    return Coded(tuple(stored for _, stored in coded), bytes(how for how, _ in coded), zlib.crc32(data), counts)


def decode(streams: Sequence[bytes], how: bytes, crc: int, layout: Layout, size: int) -> bytes:
    """Restore a chunk of `size` bytes.

    Raises:
        CorruptFile: the streams do not hold it.
    """
    if how[0] == WHOLE:
        if len(streams[0]) != size:
            raise CorruptFile(f"a chunk has {len(streams[0])} bytes", expected=f"{size} bytes")
        data = streams[0]
    else:
        parts = [restore(*one) for one in zip(streams, how, layout.sizes(size), strict=True)]
        data = layout.join([np.frombuffer(part, dtype=np.uint8) for part in parts]).tobytes()
    if zlib.crc32(data) != crc:
        raise CorruptFile("a chunk is not what was packed (its CRC-32 differs)", expected="the bytes that were packed")
    return data


def count(stream: Bytes) -> NDArray[np.int64]:
    """How often each byte occurs; counted in pairs, which is several times as fast."""
    even = len(stream) // 2 * 2
    pairs = np.bincount(np.ascontiguousarray(stream[:even]).view(np.uint16), minlength=PAIRS).reshape(256, 256)
    counts: NDArray[np.int64] = pairs.sum(0) + pairs.sum(1)
    if even < len(stream):
        counts[stream[-1]] += 1
    return counts


def entropy(counts: NDArray[np.int64]) -> float:
    """Order-0 entropy of symbols that occur so often, in bytes for all of them."""
    seen = counts[counts > 0].astype(float)
    return float(-(seen * np.log2(seen / seen.sum())).sum() / 8) if len(seen) else 0.0
