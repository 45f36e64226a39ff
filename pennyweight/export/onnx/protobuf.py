"""What a .onnx file says of its tensors and nodes, checked against the files beside it before anything is read."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pennyweight.errors import CorruptFile, MissingExtra, MissingFile
from pennyweight.network.sources.source import fill, is_there

DTYPES: Mapping[str, torch.dtype] = {
    "FLOAT": torch.float32, "FLOAT16": torch.float16, "BFLOAT16": torch.bfloat16, "DOUBLE": torch.float64,
    "UINT8": torch.uint8, "INT8": torch.int8, "INT32": torch.int32, "INT64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip
ORIGIN = "export the model again, or download all of its files"


@dataclass(frozen=True)
class Stored:
    """One initializer.

    Args:
        shape: of it.
        dtype: of its elements; None for a type that we do not read.
        file: it lies in.
        start: first byte there; for one inside the .onnx file, None.
        data: its bytes, where they are inside the .onnx file.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    file: Path
    start: int | None = None
    data: bytes = b""

    @property
    def bytes(self) -> int:
        """Of its data."""
        return 0 if self.dtype is None else math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Into memory of its own.

        Raises:
            CorruptFile: the file became shorter since it was opened.
        """
        assert self.dtype is not None
        if self.start is None:
            raw = torch.from_numpy(np.frombuffer(self.data, dtype=np.uint8).copy())
        else:
            raw = torch.empty(self.bytes, dtype=torch.uint8)
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.start)
                fill(raw, file, self.file)
        return raw.view(self.dtype).reshape(self.shape)


def read_model(path: Path) -> Any:
    """The graph of a file, its external tensors left where they are.

    Raises:
        MissingExtra: the onnx package is not installed.
        CorruptFile: it is not an ONNX model.
    """
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        raise MissingExtra(
            "the onnx package is not installed, which reads ONNX graphs", mend="pip install 'pennyweight[onnx]'",
            site=str(path),
        ) from error  # fmt: skip
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds, which differ between versions
        why = next(iter(str(error).splitlines()), "no reason given")
        raise CorruptFile(f"cannot be read as ONNX: {why}", expected="an .onnx file, whole", mend=ORIGIN,
                          site=str(path)) from error  # fmt: skip


def stored_of(model: Any, path: Path) -> dict[str, Stored]:
    """Every initializer of a graph, by name.

    Raises:
        CorruptFile: a shape, a place or a length that the files contradict.
        MissingFile: a file that tensors lie in is not there.
    """
    onnx = importlib.import_module("onnx")
    kinds = {number: DTYPES.get(name) for name, number in onnx.TensorProto.DataType.items()}
    return {tensor.name: _stored(tensor, kinds.get(tensor.data_type), path) for tensor in model.graph.initializer}


def _stored(tensor: Any, dtype: torch.dtype | None, path: Path) -> Stored:
    shape = tuple(int(size) for size in tensor.dims)
    if any(size < 0 for size in shape):
        raise _corrupt(f"{tensor.name} has the shape {list(shape)}", "sizes that are not negative", path)
    if dtype is None:
        return Stored(shape, None, path)
    needed = math.prod(shape) * dtype.itemsize
    if tensor.data_location != 1:  # EXTERNAL
        data = bytes(tensor.raw_data) or _typed(tensor, dtype, needed)
        if len(data) != needed:
            raise _corrupt(f"{tensor.name} {list(shape)} has {len(data)} bytes", f"{needed} bytes", path)
        return Stored(shape, dtype, path, data=data)
    place = {entry.key: entry.value for entry in tensor.external_data}
    file = _beside(path, place.get("location", ""), tensor.name)
    try:
        start, size = int(place.get("offset") or 0), file.stat().st_size
        length = int(place["length"]) if "length" in place else needed
    except ValueError as error:
        raise _corrupt(f"{tensor.name} lies at {place.get('offset')!r}", "whole numbers of bytes", path) from error
    if length != needed:
        raise _corrupt(f"{tensor.name} {list(shape)} is said to have {length} bytes", f"{needed} bytes", path)
    if start < 0 or start + needed > size:
        raise _corrupt(
            f"{tensor.name} is said to lie in bytes {start} to {start + needed} of {file.name}, which has {size}",
            "a place inside the file", path,
        )  # fmt: skip
    return Stored(shape, dtype, file, start)


def _beside(path: Path, location: str, tensor: str) -> Path:
    """The file of external data, which must lie in the directory of the .onnx file, or below it."""
    climbs = Path(location).is_absolute() or ".." in Path(location).parts
    if location in ("", ".") or "\0" in location or climbs:
        raise _corrupt(f"{tensor} is said to lie in {location!r}", "a file beside the .onnx file", path)
    file = path.parent / location
    if not is_there(file):
        raise MissingFile(
            f"its weights are in {location[:200]}, which is not there", expected="that file beside the .onnx file",
            mend="copy or download all files of the model into one directory", site=str(path),
        )  # fmt: skip
    return file


def _typed(tensor: Any, dtype: torch.dtype, needed: int) -> bytes:
    """Bytes of a tensor that keeps its numbers one by one."""
    count = max(len(tensor.float_data), len(tensor.int32_data), len(tensor.int64_data), len(tensor.double_data))
    if count * dtype.itemsize != needed:
        return b""
    made: bytes = importlib.import_module("onnx").numpy_helper.to_array(tensor).tobytes()
    return made


def _corrupt(happened: str, expected: str, path: Path) -> CorruptFile:
    return CorruptFile(happened, expected=expected, mend=ORIGIN, site=str(path))
