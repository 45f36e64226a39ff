"""Coding one stream of bytes: Huffman alone, Zstandard where repetition pays, or as it is.

Weights and codes have no repetitions to find, so the usual coder is Zstandard (RFC 8878) with its search for matches
all but switched off: what remains is its Huffman coder, with a table for every 128 KiB. Decision 0014 has the
measurements.
"""

from __future__ import annotations

import importlib.util
import threading
from typing import Any

from pennyweight.errors import CorruptFile, MissingExtra

RAW, ZSTD = range(2)  # how a stream is stored
HUFFMAN, GENERAL = range(2)  # what was used to make it; a reader need not know
SAMPLE = 1 << 16  # bytes on which the two are compared
GAIN = 0.98  # searching for matches is slow: it must save this much more
LEVEL = 12
_local = threading.local()  # a compressor serves one thread at a time


def require() -> None:
    """Refuse before any work.

    Raises:
        MissingExtra: zstandard is not installed.
    """
    if importlib.util.find_spec("zstandard") is None:
        raise MissingExtra(
            "the zstandard package is not installed", mend="pip install 'pennyweight[container]'", site="containers"
        )


def better(stream: bytes | memoryview) -> int:
    """The coder for a stream, from a sample out of its middle."""
    start = max(0, (len(stream) - SAMPLE) // 2)
    sample = stream[start : start + SAMPLE]
    return (
        GENERAL
        if len(_compressor(GENERAL).compress(sample)) < GAIN * len(_compressor(HUFFMAN).compress(sample))
        else HUFFMAN
    )


def shrink(stream: bytes | memoryview, coder: int) -> tuple[int, bytes]:
    """Code a stream, or leave it as it is where that is not smaller."""
    coded = _compressor(coder).compress(stream)
    return (ZSTD, coded) if len(coded) < len(stream) else (RAW, bytes(stream))


def restore(stored: bytes, how: int, size: int) -> bytes:
    """Undo `shrink`; never makes more than `size` bytes.

    Raises:
        CorruptFile: it does not hold exactly `size` bytes.
    """
    if how == RAW:
        data = stored
    elif how == ZSTD:
        data = _decompress(stored, size)
    else:
        raise CorruptFile(f"a stream is stored in an unknown way ({how})", expected="raw or zstd")
    if len(data) != size:
        raise CorruptFile(f"a stream has {len(data)} bytes", expected=f"{size} bytes")
    return data


def _decompress(stored: bytes, size: int) -> bytes:
    import zstandard

    try:
        # The size a frame declares is allocated as it stands, so it is checked first.
        declared = zstandard.get_frame_parameters(stored).content_size
        if declared != size:
            raise CorruptFile(f"a stream declares {declared} bytes", expected=f"{size} bytes")
        if not hasattr(_local, "decompressor"):
            _local.decompressor = zstandard.ZstdDecompressor()
        restored: bytes = _local.decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptFile(f"a stream cannot be decoded: {error}", expected="a Zstandard frame") from error
    return restored


def _compressor(coder: int) -> Any:
    import zstandard

    made = _local.__dict__.setdefault("compressors", {})
    if coder not in made:
        if coder == GENERAL:
            made[coder] = zstandard.ZstdCompressor(level=LEVEL)
        else:
            parameters = zstandard.ZstdCompressionParameters(
                window_log=17, hash_log=6, chain_log=6, search_log=1, min_match=7, target_length=0,
                strategy=zstandard.STRATEGY_FAST,
            )  # fmt: skip
            made[coder] = zstandard.ZstdCompressor(compression_params=parameters)
    return made[coder]
