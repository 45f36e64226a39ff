"""The container: a GGUF header known beforehand, then tensors at multiples of 32 bytes, one in memory at a time.

Source: the GGUF format, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little endian. Magic,
version, number of tensors and of key-values; key-values; a row for each tensor (name, dimensions with the inputs first,
type, offset in the data); and the data, which begins at a multiple of the alignment, as every tensor does. Every tensor
is filled up to the alignment, the last one too, as llama.cpp's own writer does.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pennyweight.export.safetensors_stream import WholeFile

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
# Number of a type in the file, weights of a block, bytes of a block.
TYPES = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "IQ4_NL": (20, 32, 18), "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210),
    "IQ4_XS": (23, 256, 136), "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66),
}  # fmt: skip
PLAIN = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5


@dataclass(frozen=True)
class Stored:
    """One tensor of a file.

    Args:
        name: as llama.cpp calls it.
        type: number of its type.
        shape: outputs first.
        bytes: of its data, before it is filled up.
    """

    name: str
    type: int
    shape: tuple[int, ...]
    bytes: int

    @classmethod
    def of(cls, name: str, type: str, shape: tuple[int, ...]) -> Stored:
        """The tensor of a named type; its rows must split into whole blocks."""
        number, block, width = TYPES[type]
        count = 1
        for size in shape:
            count *= size
        assert shape[-1] % block == 0, f"{name}: {shape[-1]} inputs in blocks of {block}"
        return cls(name, number, shape, count // block * width)

    @property
    def padded(self) -> int:
        """Bytes it takes."""
        return padded(self.bytes)


def padded(count: int) -> int:
    """The next multiple of the alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def u32(value: int) -> bytes:
    """A value, its type before it, as all of the following."""
    return struct.pack("<II", U32, value)


def f32(value: float) -> bytes:
    """A float32."""
    return struct.pack("<If", F32, value)


def flag(value: bool) -> bytes:
    """True or false."""
    return struct.pack("<I?", BOOL, value)


def string(value: str) -> bytes:
    """A text."""
    return struct.pack("<I", STRING) + _text(value)


def strings(values: Sequence[str]) -> bytes:
    """A list of texts."""
    return struct.pack("<IIQ", ARRAY, STRING, len(values)) + b"".join(map(_text, values))


def int32s(values: Sequence[int]) -> bytes:
    """A list of whole numbers."""
    return struct.pack(f"<IIQ{len(values)}i", ARRAY, I32, len(values), *values)


def floats(values: Sequence[float]) -> bytes:
    """A list of numbers in float32."""
    return struct.pack(f"<IIQ{len(values)}f", ARRAY, F32, len(values), *values)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def layout(values: Mapping[str, bytes], tensors: Sequence[Stored]) -> tuple[bytes, dict[str, int], int]:
    """Lay out a file: its first bytes, where in it each tensor begins, and its size.

    Args:
        values: key-values, each as one of the functions above writes it.
        tensors: in the order of the file.
    """
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(values))]
    head += [_text(key) + value for key, value in values.items()]
    position, offsets = 0, {}
    for tensor in tensors:
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        head.append(_text(tensor.name) + dimensions + struct.pack("<IQ", tensor.type, position))
        offsets[tensor.name] = position
        position += tensor.padded
    header = b"".join(head)
    header += bytes(padded(len(header)) - len(header))
    return header, {name: len(header) + offset for name, offset in offsets.items()}, len(header) + position


class GGUFWriter(WholeFile):
    """Writes one GGUF file.

    Args:
        path: of the finished file.
        values: key-values.
        tensors: every tensor it will hold, in the order of the file.

    Raises:
        DiskFull: it does not fit; nothing is left behind.
        InvalidOutput: the directory cannot be written to.
    """

    def __init__(self, path: Path, values: Mapping[str, bytes], tensors: Sequence[Stored]) -> None:
        super().__init__(path, *layout(values, tensors))
        self._stored = {tensor.name: tensor for tensor in tensors}

    def put(self, name: str, data: memoryview) -> None:
        """Write one tensor in its place."""
        assert len(data) == self._stored[name].bytes, f"{name}: {len(data)} of {self._stored[name].bytes} bytes"
        self.put_bytes(name, data)
