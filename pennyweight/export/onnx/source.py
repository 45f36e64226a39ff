"""Read the weights of an ONNX program: packed codes become float32 weights when asked for.

Source: onnxruntime 1.31, `MatMulNBits` and `GatherBlockQuantized` in its ContribOperators.md. With codes q in a stream
of bits, zero points z (packed alike, or the middle code) and scales s, one for every `block_size` inputs of a row,

    weight[o, i] = s[o, i // block_size] · (q[o, i] − z[o, i // block_size])

A program has no list of parameters. What they are called follows from the names of initializers, as torch and
onnxruntime's own quantizer give them (`model.layers.0.mlp.up_proj.weight_Q4`), or else from the names of nodes, as
optimum's exporter gives them (`/model/layers.0/mlp/up_proj/MatMul_Q4`, whose weight is stored with the inputs first).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pennyweight.errors import InvalidModel
from pennyweight.export.onnx.protobuf import Stored, read_model, stored_of
from pennyweight.export.program_source import ProgramSource
from pennyweight.formats import Grid, Part
from pennyweight.network.sources.source import (
    TensorInfo,
    as_described,
    find_tensor,
    read_json_object,
)

BITS = (2, 4, 8)
CODES = re.compile(r"(_DQ)?_Q[248](G\d+)?(_rows)?$")  # what quantizers add to the name of a weight
NODE = re.compile(r"^/(.+)/(MatMul|Gather)(_Q\d+)?$")
PARAMETER = re.compile(r"^[A-Za-z_]\w*(\.\w+)+$")
UNKNOWN = "weights that are stored as codes of MatMulNBits and GatherBlockQuantized, or dense"
SCALES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def is_onnx(path: Path) -> bool:
    """Whether a directory holds a model as optimum lays it out: config.json and one .onnx file, no other weights."""
    if not path.is_dir() or not (path / "config.json").is_file() or any(path.glob("*.safetensors")):
        return False
    return len(list(path.glob("*.onnx"))) == 1


@dataclass(frozen=True)
class _Packed:
    """One quantized weight: its grid and shape, and what is stored of it."""

    grid: Grid
    shape: tuple[int, int]
    codes: Stored
    scale: Stored
    zero_point: Stored | None

    @property
    def places(self) -> tuple[tuple[Path, int | None], ...]:
        """Where its parts lie."""
        parts = (self.codes, self.scale, *([self.zero_point] if self.zero_point else []))
        return tuple((part.file, part.start) for part in parts)

    @property
    def bytes(self) -> int:
        """As stored."""
        return self.codes.bytes + self.scale.bytes + (self.zero_point.bytes if self.zero_point else 0)


class OnnxWeights(ProgramSource):
    """A program whose `tensors` are dense weights, whatever they are stored as.

    Args:
        directory: that holds one .onnx file and config.json. The graph is read and all places are checked at once.

    Raises:
        MissingFile: a file of it is not there.
        MissingExtra: the onnx package is not installed.
        CorruptFile: a file's bytes are not what the graph says.
        InvalidModel: stored in a way we cannot read; the message names it.
    """

    kind = "ONNX"

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory)
        self.config: Mapping[str, Any] = read_json_object(self.path / "config.json")
        self._file = next(iter(sorted(self.path.glob("*.onnx"))))
        model = read_model(self._file)
        with as_described(lambda error: self._refusal(f"the graph cannot be followed ({error})", "")):
            self._follow(model)

    def _follow(self, model: Any) -> None:
        self._stored = stored_of(model, self._file)
        self._made = {name: node for node in model.graph.node for name in node.output}
        self._packed: dict[str, _Packed] = {}
        self._dense: dict[str, tuple[Stored, bool]] = {}
        for node in model.graph.node:
            self._find(node)
        for name, stored in self._stored.items():
            if PARAMETER.match(name) and stored.dtype in SCALES and name not in self._dense and not self._is_part(name):
                self._dense[name] = (stored, False)
        self.files = sorted({self._file, *(stored.file for stored in self._stored.values())})
        packed = {n: TensorInfo(n, p.shape, p.grid.label(), p.bytes) for n, p in self._packed.items()}
        dense = {name: _info(name, *found) for name, found in self._dense.items() if name not in packed}
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType({**packed, **dense})

    def read(self, name: str) -> Tensor:
        """Read a weight: in float32 where codes are stored, otherwise as it is.

        Raises:
            InvalidModel: there is no such tensor.
        """
        find_tensor(self.tensors, name, self.path)
        if name not in self._packed:
            stored, turned = self._dense[name]
            return stored.read().T.contiguous() if turned else stored.read()
        packed = self._packed[name]
        codes, scale, zero = self._numbers(packed)
        difference = codes.reshape(*scale.shape, -1).astype(np.float32) - zero[..., None].astype(np.float32)
        weight = (difference * scale[..., None]).reshape(len(codes), -1)[:, : packed.shape[1]]
        return torch.from_numpy(np.ascontiguousarray(weight))

    def read_part(self, name: str) -> Part:
        """Read what is stored of a quantized weight.

        Raises:
            InvalidModel: it is not stored as codes, or the last group of a row is not whole.
        """
        find_tensor(self.tensors, name, self.path)
        packed = self._packed.get(name)
        if packed is None or packed.shape[1] % int(packed.grid.group_size or 1):
            raise self._refusal("is not stored as codes in whole groups", name)
        codes, _, zero = self._numbers(packed)
        tensors = {"codes": torch.from_numpy(codes), "scale": packed.scale.read().reshape(zero.shape)}
        if packed.zero_point is not None:
            tensors["zero_point"] = torch.from_numpy(zero)
        return Part(packed.grid, tensors)

    def _numbers(self, packed: _Packed) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
        """Codes `[out, groups · block]`, scales and zero points `[out, groups]`."""
        rows, bits = packed.shape[0], packed.grid.bits
        scale = packed.scale.read().float().reshape(rows, -1).numpy()
        codes = _unpacked(packed.codes.read().reshape(rows, -1).numpy(), bits)
        if packed.zero_point is None:
            zero = np.full(scale.shape, 1 << (bits - 1), dtype=np.uint8)
        else:
            zero = _unpacked(packed.zero_point.read().reshape(rows, -1).numpy(), bits)[:, : scale.shape[1]]
        return codes, scale, np.ascontiguousarray(zero)

    def _find(self, node: Any) -> None:
        """Remember the weight that a node reads, if it reads one."""
        given = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMulNBits":
            shape = (given.get("N", 0), given.get("K", 0))
            self._quantized(node, _at(node, 1), _at(node, 2), _at(node, 3), shape, given)
            if _at(node, 4):
                raise self._refusal("its inputs are put into another order (g_idx)", node.name)
        elif node.op_type == "GatherBlockQuantized":
            table = self._stored[self._behind(_at(node, 0), node.name)]
            rows = table.shape[0] if table.shape else 0
            shape = (rows, table.bytes * 8 // max(1, rows * given.get("bits", 4)))
            if given.get("gather_axis", 0) or given.get("quantize_axis", 1) != 1:
                raise self._refusal("a table that is not quantized along its rows", node.name)
            self._quantized(node, _at(node, 0), _at(node, 2), _at(node, 3), shape, given)
        elif node.op_type in ("MatMul", "Gather") and (match := NODE.match(node.name)):
            name = _at(node, 1 if node.op_type == "MatMul" else 0)
            stored = self._stored.get(name)
            if stored is not None and stored.dtype in SCALES and len(stored.shape) == 2 and not PARAMETER.match(name):
                self._dense[f"{match[1].replace('/', '.')}.weight"] = (stored, node.op_type == "MatMul")

    def _quantized(
        self, node: Any, codes: str, scale: str, zero_point: str, shape: tuple[int, int], given: Mapping[str, int]
    ) -> None:
        name = self._name_of(self._behind(codes, node.name), node)
        bits, size = given.get("bits", 4), given.get("block_size", 128)
        names = (codes, scale, *([zero_point] if zero_point else []))
        parts = [self._stored[self._behind(part, name)] for part in names]
        fits = bits in BITS and size >= 1 and min(shape) > 0
        groups = -(-shape[1] // size) if fits else 0
        block = size * bits // 8
        zeros = -(-groups * bits // 8)
        lengths = [groups * block if node.op_type == "MatMulNBits" else shape[1] * bits // 8, groups, zeros]
        fits = fits and all(
            stored.dtype is not None and stored.bytes == shape[0] * length * stored.dtype.itemsize
            for stored, length in zip(parts, lengths, strict=False)
        )
        kinds = [part.dtype for part in parts]
        if not fits or kinds[0] != torch.uint8 or kinds[1] not in SCALES or set(kinds[2:]) - {torch.uint8}:
            found = ", ".join(f"{list(part.shape)} {str(part.dtype).removeprefix('torch.')}" for part in parts)
            raise self._refusal(f"{bits} bits in blocks of {size} for {list(shape)}: {found} do not fit together", name)
        grid = Grid(bits=bits, group_size=size, symmetric=len(parts) < 3, scale_dtype=SCALES[parts[1].dtype])  # type: ignore[index]
        packed = _Packed(grid, shape, parts[0], parts[1], parts[2] if len(parts) > 2 else None)
        before = self._packed.setdefault(name, packed)
        if before.places != packed.places or before.shape != shape:
            raise self._refusal("is stored twice, and not as the same bytes", name)

    def _behind(self, name: str, weight: str) -> str:
        """The initializer that a value is made of by casts and reshapes alone."""
        for _ in range(len(self._made) + 1):
            if name in self._stored:
                return name
            node = self._made.get(name)
            if node is None or node.op_type not in ("Cast", "Identity", "Reshape"):
                break
            name = _at(node, 0)
        raise self._refusal("its codes or scales are computed", weight)

    def _name_of(self, codes: str, node: Any) -> str:
        base = CODES.sub("", codes)
        if PARAMETER.match(base):
            return base
        match = NODE.match(node.name)
        return f"{match[1].replace('/', '.')}.weight" if match else base

    def _is_part(self, name: str) -> bool:
        """Whether an initializer is codes, scales or zero points of a weight that is known."""
        base = CODES.sub("", re.sub(r"(_DQ)?_(scales|zero_points)$", "", name))
        return base != name and base in self._packed

    def _refusal(self, happened: str, name: str) -> InvalidModel:
        return InvalidModel(
            happened, expected=UNKNOWN, site=name or str(self.path),
            mend="pass the .onnx file itself to score it as a program, or start from the model it was made of",
        )  # fmt: skip


def _info(name: str, stored: Stored, turned: bool) -> TensorInfo:
    shape = stored.shape[::-1] if turned else stored.shape
    return TensorInfo(name, shape, str(stored.dtype).removeprefix("torch."), stored.bytes)


def _at(node: Any, index: int) -> str:
    return str(node.input[index]) if len(node.input) > index else ""


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes of every byte, low bits first: `[rows, bytes]` to `[rows, bytes · 8 / bits]`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)
