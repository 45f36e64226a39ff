"""Read a GPTQ checkpoint, as GPTQModel and AutoGPTQ write it: packed codes become float32 weights when asked for.

Source: GPTQModel 7.7, `nn_modules/qlinear` and `quantization/config.py`; Frantar, Ashkboos, Hoefler, Alistarh. GPTQ.
ICLR 2023. arXiv:2210.17323 (the codes). With q, z and s as stored, the weight is

    weight[o, i] = s[g_idx[i], o] · (q[i, o] − z[g_idx[i], o])

A trap: the format `gptq` (version 1) stores z − 1, `gptq_v2` stores z. A version 1 zero point of all ones is either 0,
wrapped around, or 2^bits; readers disagree, so it is refused.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from pennyweight.errors import InvalidModel
from pennyweight.formats import Grid, Part
from pennyweight.formats.dense import DTYPES
from pennyweight.network.sources.source import (
    SafetensorsSource,
    TensorInfo,
    as_described,
    find_tensor,
    read_json_object,
)
from pennyweight.numerics.packing import unpack_int32, words_of

FORMATS = {"gptq": 1, "gptq_v2": 0}  # what is added to a stored zero point
WIDTHS = (2, 3, 4, 8)  # one stream of bits; 5 to 7 bits, and 3 in the format gptq_p, lie in planes
ROLES = ("qweight", "qzeros", "scales", "g_idx")


def is_gptq(directory: str | os.PathLike[str]) -> bool:
    """Whether config.json in this directory says so; False where there is none.

    Raises:
        CorruptFile: config.json is there and is not JSON.
    """
    return quantized_by(directory) == GPTQSource.method


def quantized_by(directory: str | os.PathLike[str]) -> str | None:
    """The method that config.json in this directory names; None where there is none.

    Raises:
        CorruptFile: config.json is there and is not JSON.
    """
    path = Path(directory) / "config.json"
    quantization = read_json_object(path).get("quantization_config") if path.is_file() else None
    return str(quantization.get("quant_method")) if isinstance(quantization, dict) else None


@dataclass(frozen=True)
class Packed:
    """One quantized weight: code width, shape, number of groups, and its parts' names by role."""

    bits: int
    shape: tuple[int, int]
    groups: int
    stored: Mapping[str, str]


class GPTQSource:
    """A checkpoint whose `tensors` are dense weights, whatever they are stored as.

    Args:
        directory: the model directory. Headers are read and shapes checked at once.

    Raises:
        MissingFile: as SafetensorsSource.
        CorruptFile: as SafetensorsSource.
        InvalidModel: stored in a way we cannot read; the message names it.
    """

    method: ClassVar[str] = "gptq"
    title: ClassVar[str] = "GPTQ"

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._files = SafetensorsSource(directory)
        self.path = self._files.path
        quantization = self._files.config.get("quantization_config")
        if not isinstance(quantization, dict) or quantization.get("quant_method") != self.method:
            raise self._refusal(f"config.json has no {self.title} section")
        self.config: Mapping[str, Any] = MappingProxyType(
            {k: v for k, v in self._files.config.items() if k != "quantization_config"}
        )
        with as_described(lambda error: self._refusal(f"config.json does not describe these weights ({error})")):
            self._added = self._read_settings(quantization)
            self._packed = {
                f"{module}.weight": self._read_layout(module)
                for module in (n.removesuffix(".qweight") for n in self._files.tensors if n.endswith(".qweight"))
            }
            self.tensors: Mapping[str, TensorInfo] = MappingProxyType(self._dense_view())

    def read(self, name: str) -> Tensor:
        """Read a weight: in float32 where codes are stored, otherwise as it is.

        Raises:
            InvalidModel: there is no such tensor, or a zero point that readers disagree on.
        """
        find_tensor(self.tensors, name, self.path)
        if name not in self._packed:
            return self._files.read(name)
        codes, zeros, scales, group = self._stored(name)
        return (codes.float() - zeros.float().T[:, group]) * scales.float().T[:, group]

    def read_part(self, name: str) -> Part:
        """Codes, scales and, unless all of them are in the middle, zero points, as a grid.

        Raises:
            InvalidModel: there is no such tensor, it is stored dense, or with inputs of a group apart.
        """
        find_tensor(self.tensors, name, self.path)
        if name not in self._packed:
            raise self._refusal("it is stored dense", name, expected="the name of a quantized weight")
        codes, zeros, scales, group = self._stored(name)
        packed = self._packed[name]
        columns, groups = packed.shape[1], packed.groups
        dtype = str(scales.dtype).removeprefix("torch.")
        if dtype not in DTYPES or columns % groups or not torch.equal(group, _in_order(columns, groups)):
            raise self._refusal("its columns are not in the order of their groups", name, expected="desc_act false")
        symmetric = bool((zeros == 1 << packed.bits - 1).all())
        size = None if groups == 1 and self._whole_rows(name.removesuffix(".weight")) else columns // groups
        grid = Grid(bits=packed.bits, group_size=size, symmetric=symmetric, scale_dtype=dtype)
        tensors = {"codes": codes, "scale": scales.T.contiguous()}
        if not symmetric:
            if int(zeros.max()) >= grid.levels:
                raise self._refusal(f"a zero point of {grid.levels}", name, expected="one that is a code")
            tensors["zero_point"] = zeros.T.to(torch.uint8).contiguous()
        return Part(grid, tensors)

    def _whole_rows(self, module: str) -> bool:
        """Whether the settings of a module, first match first, ask for one scale a row."""
        settings = self._files.config["quantization_config"]
        dynamic = settings.get("dynamic")
        for pattern, own in dynamic.items() if isinstance(dynamic, dict) else ():
            try:
                if isinstance(own, dict) and re.match(pattern.removeprefix("+:"), module):
                    settings = {**settings, **own}
                    break
            except re.error as error:
                raise self._refusal(f"dynamic has the pattern {pattern!r}: {error}", module) from error
        return not isinstance(settings.get("group_size"), int) or settings["group_size"] < 1

    def _stored(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes `[out, in]`, true zero points and scales `[groups, out]`, and the group of each input."""
        packed = self._packed[name]
        (rows, columns), bits = packed.shape, packed.bits
        raw = {role: self._files.read(stored) for role, stored in packed.stored.items()}
        codes = unpack_int32(raw["qweight"].T.contiguous(), bits, columns)
        zeros = unpack_int32(raw["qzeros"], bits, rows)
        if self._added and bool((zeros == (1 << bits) - 1).any()):
            raise self._refusal(
                f"a zero point of {(1 << bits) - 1} less one", name,
                expected="zero points below that, or checkpoint_format gptq_v2",
            )  # fmt: skip
        return codes, zeros.to(torch.int16) + self._added, raw["scales"], self._group_of_column(name, raw.get("g_idx"))

    def auxiliary(self) -> Mapping[str, bytes | Path]:
        """Tokenizer, templates, model card, licence and remote code, as paths."""
        return {name: file for name, file in self._files.auxiliary().items() if name != "quantize_config.json"}

    @property
    def fingerprint(self) -> str:
        """The sha256 over the contents of the weight files and config.json."""
        return self._files.fingerprint

    @property
    def stored_bytes(self) -> int:
        """Size of the weight files."""
        return self._files.stored_bytes

    @property
    def description(self) -> str:
        """How many tensors of which format."""
        counts = Counter(info.dtype for info in self.tensors.values())
        listed = ", ".join(f"{n} {dtype}" for dtype, n in counts.most_common())
        return f"{self.title}, {len(self.tensors)} tensors: {listed}"

    def _read_settings(self, quantization: Mapping[str, Any]) -> int:
        """What is to be added to stored zero points."""
        layout = quantization.get("checkpoint_format") or quantization.get("format") or "gptq"
        if layout not in FORMATS:
            raise self._refusal(f"stored as {layout}", expected=" or ".join(FORMATS))
        if quantization.get("pack_dtype", "int32") != "int32" or quantization.get("planar"):
            raise self._refusal("codes are not packed into 32-bit words one after the other")
        return FORMATS[layout]

    def _read_layout(self, module: str) -> Packed:
        """Widths and sizes from the shapes: settings for single modules need no reading then."""
        stored, shapes = self._stored_shapes(module, ROLES)
        (words, rows), (groups, _) = shapes["qweight"], shapes["scales"]
        config = self._files.config["quantization_config"]
        columns = shapes["g_idx"][0] if "g_idx" in shapes else words * 32 // int(config["bits"])
        bits = words * 32 // columns if columns else 0
        fits = (
            bits in WIDTHS and words == words_of(columns, bits) and shapes["scales"] == (groups, rows)
            and shapes["qzeros"] == (groups, words_of(rows, bits))
            and {self._files.tensors[stored[role]].dtype for role in ("qweight", "qzeros")} == {"int32"}
        )  # fmt: skip
        if not fits:
            raise self._refusal(
                f"codes {list(shapes['qweight'])}, zero points {list(shapes['qzeros'])} and scales "
                f"{list(shapes['scales'])} do not fit together",
                module, expected=f"codes of {', '.join(map(str, WIDTHS))} bits in int32",
            )  # fmt: skip
        return Packed(bits, (rows, columns), groups, stored)

    def _stored_shapes(self, module: str, roles: Sequence[str]) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
        """Names and shapes of what is stored of a module, by role."""
        stored = {role: f"{module}.{role}" for role in roles if f"{module}.{role}" in self._files.tensors}
        for role in ("qzeros", "scales"):
            if role not in stored:
                raise self._refusal(f"{role} is missing", module, expected=f"a whole {self.title} weight")
        shapes = {role: self._files.tensors[name].shape for role, name in stored.items()}
        if any(len(shapes[role]) != 2 for role in ("qweight", "qzeros", "scales")):
            raise self._refusal(f"shapes {shapes}", module, expected="matrices of words and scales")
        return stored, shapes

    def _group_of_column(self, name: str, given: Tensor | None) -> Tensor:
        packed = self._packed[name]
        columns = packed.shape[1]
        if given is None:
            if columns % packed.groups:
                raise self._refusal(f"{columns} inputs do not split into {packed.groups} groups", name)
            return _in_order(columns, packed.groups)
        if given.numel() != columns or int(given.min()) < 0 or int(given.max()) >= packed.groups:
            raise self._refusal("g_idx names groups that have no scale", name, expected=f"0 to {packed.groups - 1}")
        return given.long()

    def _dense_view(self) -> dict[str, TensorInfo]:
        hidden = {stored: name for name, packed in self._packed.items() for stored in packed.stored.values()}
        tensors: dict[str, TensorInfo] = {}
        for name, info in self._files.tensors.items():
            dense = hidden.get(name)
            if dense is None:
                tensors[name] = info
            elif dense not in tensors:
                packed = self._packed[dense]
                stored = sum(self._files.tensors[part].bytes for part in packed.stored.values())
                label = f"int{packed.bits} {'row' if packed.groups == 1 else f'g{packed.shape[1] // packed.groups}'}"
                tensors[dense] = TensorInfo(dense, packed.shape, label, stored)
        return tensors

    def _refusal(self, happened: str, module: str = "", *, expected: str = "") -> InvalidModel:
        return InvalidModel(
            happened,
            expected=expected or f"{self.title} weights of a layout we read",
            mend="start from the model this one was made of, or save it as compressed-tensors or GGUF",
            site=module or str(self.path),
        )


def _in_order(columns: int, groups: int) -> Tensor:
    return torch.arange(columns) // (columns // groups)
