"""Read the weights of an OpenVINO model: compressed constants become float32 weights when asked for.

Source: openvino 2026.4 and nncf, whose weights are `Multiply(Subtract(Convert(codes), Convert(zero points)), scales)`.
With codes q (in two's complement where the type has a sign), zero points z, which may be one for all, and scales s,

    weight[o, i] = s[o, i // group] · (q[o, i] − z[o, i // group])

The CPU plugin computes that in float32, whatever type the representation multiplies in. Constants are called by their
parameters; optimum-intel puts `self.` before, which is left out.
"""

from __future__ import annotations

import math
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
from pennyweight.export.openvino.representation import Constant, Layer, read_constants, read_layers
from pennyweight.export.program_source import ProgramSource
from pennyweight.formats import Grid, Part
from pennyweight.network.sources.source import (
    TensorInfo,
    find_tensor,
    read_json_object,
)

NAME = "openvino_model.xml"
CODES = {"u2": (2, 0), "u4": (4, 0), "i4": (4, 8), "u8": (8, 0), "i8": (8, 128)}  # bits, and what is added to codes
DENSE = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
PARAMETER = re.compile(r"^[A-Za-z_]\w*(\.\w+)+$")
BEFORE = re.compile(r"^(self|__module)\.")  # what exporters put before a parameter's name
UNKNOWN = "weights that are dense, or codes of 2, 4 or 8 bits with scales a row or a group"


def is_openvino(path: Path) -> bool:
    """Whether a directory holds a model as optimum-intel lays it out: config.json, its two files, no other weights."""
    if not path.is_dir() or not (path / "config.json").is_file() or any(path.glob("*.safetensors")):
        return False
    return (path / NAME).is_file()


@dataclass(frozen=True)
class _Packed:
    """One quantized weight: its grid and shape, and what is stored of it."""

    grid: Grid
    shape: tuple[int, int]
    codes: Constant
    scale: Constant
    zero_point: Constant | None

    @property
    def bytes(self) -> int:
        """As stored."""
        return self.codes.bytes + self.scale.bytes + (self.zero_point.bytes if self.zero_point else 0)


class OpenVINOWeights(ProgramSource):
    """A model whose `tensors` are dense weights, whatever they are stored as.

    Args:
        directory: that holds openvino_model.xml, openvino_model.bin and config.json. All places are checked at once.

    Raises:
        MissingFile: a file of it is not there.
        CorruptFile: a file's bytes are not what the representation says.
        InvalidModel: stored in a way we cannot read; the message names it.
    """

    kind = "OpenVINO"

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory)
        self.config: Mapping[str, Any] = read_json_object(self.path / "config.json")
        self.files = [self.path / NAME, (self.path / NAME).with_suffix(".bin")]
        self._layers = read_layers(self.files[0])
        self._constants = read_constants(self._layers, self.files[1])
        self._packed: dict[str, _Packed] = {}
        parts: set[str] = set()
        for layer in self._layers.values():
            if layer.type == "Multiply":
                parts |= self._find(layer)
        self._dense: dict[str, Constant] = {}
        for key, constant in self._constants.items():
            name = BEFORE.sub("", constant.name)
            if key in parts or not PARAMETER.match(name):
                continue
            if constant.element not in DENSE:
                raise self._refusal(f"is stored as {constant.element} that no scales multiply", name)
            if self._dense.setdefault(name, constant) != constant or name in self._packed:
                raise self._refusal("is stored twice", name)
        packed = {n: TensorInfo(n, p.shape, p.grid.label(), p.bytes) for n, p in self._packed.items()}
        dense = {n: TensorInfo(n, c.shape, _name(c.element), c.bytes) for n, c in self._dense.items()}
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType({**packed, **dense})

    def read(self, name: str) -> Tensor:
        """Read a weight: in float32 where codes are stored, otherwise as it is.

        Raises:
            InvalidModel: there is no such tensor.
        """
        find_tensor(self.tensors, name, self.path)
        if name not in self._packed:
            constant = self._dense[name]
            return constant.read().view(DENSE[constant.element]).reshape(constant.shape)
        packed = self._packed[name]
        codes, scale, zero = _numbers(packed)
        difference = codes.reshape(*scale.shape, -1).astype(np.float32) - zero[..., None].astype(np.float32)
        wide = scale.float().numpy()[..., None]
        return torch.from_numpy(np.ascontiguousarray((difference * wide).reshape(packed.shape)))

    def read_part(self, name: str) -> Part:
        """Read what is stored of a quantized weight.

        Raises:
            InvalidModel: it is not stored as codes.
        """
        find_tensor(self.tensors, name, self.path)
        if name not in self._packed:
            raise self._refusal("is not stored as codes", name)
        packed = self._packed[name]
        codes, scale, zero = _numbers(packed)
        tensors = {"codes": torch.from_numpy(codes), "scale": scale}
        if not packed.grid.symmetric:
            tensors["zero_point"] = torch.from_numpy(zero)
        return Part(packed.grid, tensors)

    def _find(self, multiply: Layer) -> set[str]:
        """Remember the weight whose codes a layer multiplies by scales; the ids of what is stored of it."""
        value, scale = self._layers.get(multiply.inputs.get(0, "")), self._behind(multiply.inputs.get(1, ""))
        if value is None:
            return set()
        zero = self._behind(value.inputs.get(1, "")) if value.type == "Subtract" else ""
        codes = self._behind(value.inputs.get(0, "") if value.type == "Subtract" else multiply.inputs[0])
        if codes not in self._constants or self._constants[codes].element not in CODES or scale not in self._constants:
            return set()
        name = BEFORE.sub("", self._constants[codes].name)
        if value.type == "Subtract" and zero not in self._constants:
            raise self._refusal("its zero points are computed", name)
        stored = [self._constants[codes], self._constants[scale], self._constants[zero] if zero else None]
        packed = self._packed_of(name, *stored)  # type: ignore[arg-type]
        if self._packed.setdefault(name, packed) != packed:
            raise self._refusal("is stored twice, and not as the same bytes", name)
        return {codes, scale, zero} - {""}

    def _packed_of(self, name: str, codes: Constant, scale: Constant, zero_point: Constant | None) -> _Packed:
        bits, _ = CODES[codes.element]
        elements, groups = math.prod(codes.shape), math.prod(scale.shape)
        rows = codes.shape[0] if codes.shape else 0
        kinds = {codes.element, zero_point.element if zero_point else codes.element}
        fits = (
            len(codes.shape) in (2, 3) and min(codes.shape) > 0 and scale.element in DENSE and len(kinds) == 1
            and scale.shape == (*codes.shape[:-1], 1)
        )  # fmt: skip
        alone = zero_point is None or math.prod(zero_point.shape) == 1
        if not fits or not (alone or (zero_point and zero_point.shape == scale.shape)):
            stored = [part for part in (codes, scale, zero_point) if part]
            found = ", ".join(f"{list(part.shape)} {part.element}" for part in stored)
            raise self._refusal(f"{found} are no codes with scales a row or a group", name)
        size = elements // groups
        symmetric = zero_point is None if codes.element.startswith("i") else alone and _middle(zero_point, bits)
        if zero_point is None and not symmetric:
            raise self._refusal(f"is stored as {codes.element} without zero points", name)
        grid = Grid(
            bits=bits, group_size=None if len(codes.shape) == 2 else size, symmetric=symmetric,
            scale_dtype=_name(scale.element),
        )  # fmt: skip
        return _Packed(grid, (rows, elements // rows), codes, scale, zero_point)

    def _behind(self, key: str) -> str:
        """The constant that a value is by conversions alone; empty when there is none."""
        for _ in range(4):
            layer = self._layers.get(key)
            if layer is None or layer.type == "Const":
                break
            if layer.type != "Convert":
                return ""
            key = layer.inputs.get(0, "")
        return key if key in self._constants else ""

    def _refusal(self, happened: str, name: str) -> InvalidModel:
        return InvalidModel(
            happened, expected=UNKNOWN, mend="start from the model it was made of", site=name or str(self.path)
        )


def _name(element: str) -> str:
    return str(DENSE[element]).removeprefix("torch.")


def _middle(zero_point: Constant | None, bits: int) -> bool:
    """Whether there is one zero point for all, and it is the code in the middle."""
    return zero_point is not None and bool(_unpacked(zero_point, bits)[0] == 1 << (bits - 1))


def _numbers(packed: _Packed) -> tuple[NDArray[np.uint8], Tensor, NDArray[np.uint8]]:
    """Codes `[out, in]` from zero on, scales and zero points `[out, groups]`."""
    rows, bits = packed.shape[0], packed.grid.bits
    scale = packed.scale.read().view(DENSE[packed.scale.element]).reshape(rows, -1)
    codes = _unpacked(packed.codes, bits).reshape(packed.shape)
    if packed.zero_point is None:
        zero = np.full(scale.shape, 1 << (bits - 1), dtype=np.uint8)
    else:
        stored = _unpacked(packed.zero_point, bits)
        zero = np.broadcast_to(stored if stored.size == 1 else stored.reshape(scale.shape), scale.shape).copy()
    return codes, scale, zero


def _unpacked(constant: Constant, bits: int) -> NDArray[np.uint8]:
    """Codes from zero on, of a stream of bits, low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    stored = (constant.read().numpy()[:, None] >> shifts) & np.uint8((1 << bits) - 1)
    return stored.reshape(-1)[: math.prod(constant.shape)] ^ np.uint8(CODES[constant.element][1])
