"""Read a compressed-tensors checkpoint, ours or others': codes of any kind become float32 weights when asked for.

Source: the compressed-tensors package, versions 0.17 to 0.20 (`quant_config`, `match`, `pack_quantized`,
`naive_quantized`). Written on its own, without the package, so that what we wrote can be read back independently of it.
`activations` says how it rounds what its layers read and its keys and values; roundings that no format of ours is are
left out, and the description says so.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pennyweight.errors import InvalidFormat, InvalidModel
from pennyweight.export.compressed_tensors import floats
from pennyweight.export.compressed_tensors.activations_source import caches_of, input_of, passing_of
from pennyweight.formats import Grid, Part
from pennyweight.formats.dense import DTYPES
from pennyweight.formats.passing import Activations, KeysAndValues, Quantizer
from pennyweight.network.sources.source import (
    SafetensorsSource,
    TensorInfo,
    as_described,
    find_tensor,
    read_json_object,
)
from pennyweight.numerics.packing import unpack_int32, words_of

METHOD = "compressed-tensors"
PACKED, NAIVE, FLOAT = "pack-quantized", "int-quantized", "float-quantized"
LAYOUTS = {PACKED: PACKED, NAIVE: NAIVE, "naive-quantized": "", **{layout: layout for layout in floats.LAYOUTS}}
FLOATS = ("float8_e4m3fn", "float8_e5m2")  # one element a weight; multiplied by a scale
STORED = (
    "weight", "weight_packed", "weight_scale", "weight_global_scale", "weight_shape", "weight_zero_point",
    "weight_g_idx",
)  # fmt: skip
BARE = ("weight_shape", "weight_g_idx")  # read elsewhere
# What belongs to rounded activations and caches, not to weights.
BESIDE = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale", "q_scale")


def is_compressed_tensors(directory: str | os.PathLike[str]) -> bool:
    """Whether config.json in this directory says so; False where there is none.

    Raises:
        CorruptFile: config.json is there and is not JSON.
    """
    path = Path(directory) / "config.json"
    quantization = read_json_object(path).get("quantization_config") if path.is_file() else None
    return isinstance(quantization, dict) and quantization.get("quant_method") == METHOD


@dataclass(frozen=True)
class _Packed:
    """One weight of integers: its grid, how it lies in the file, and its parts' names by role."""

    grid: Grid
    layout: str
    shape: tuple[int, int]
    stored: Mapping[str, str]


class CompressedTensorsSource:
    """A checkpoint whose `tensors` are dense weights, whatever they are stored as.

    Args:
        directory: the model directory. Headers and the shapes of packed weights are read and checked at once.

    Raises:
        MissingFile: as SafetensorsSource.
        CorruptFile: as SafetensorsSource.
        InvalidModel: stored in a way we cannot read; the message names it.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._files = SafetensorsSource(directory)
        self.path = self._files.path
        quantization = self._files.config.get("quantization_config")
        if not isinstance(quantization, dict) or quantization.get("quant_method") != METHOD:
            raise self._refusal("config.json has no compressed-tensors section")
        self.config: Mapping[str, Any] = MappingProxyType(
            {k: v for k, v in self._files.config.items() if k != "quantization_config"}
        )
        self.left_out: list[str] = []
        self._reads: dict[str, Mapping[str, Any]] = {}  # how layers of a target round what they read
        with as_described(lambda error: self._refusal(f"config.json does not describe these weights ({error})")):
            self._schemes = self._read_schemes(quantization)
            self._ignore = [str(name) for name in quantization.get("ignore") or []]
            self._packed = {f"{module}.weight": self._read_layout(module) for module in self._quantized_modules()}
            self.tensors: Mapping[str, TensorInfo] = MappingProxyType(self._dense_view())
            self.activations = self._read_activations(quantization)

    def read(self, name: str) -> Tensor:
        """Read a weight: in float32 where codes are stored, otherwise as it is.

        Raises:
            InvalidModel: there is no such tensor.
        """
        find_tensor(self.tensors, name, self.path)
        if name not in self._packed:
            return self._files.read(name)
        packed = self._packed[name]
        if isinstance(packed, floats.Floats):
            return packed.read(self._files.read)
        part = self._part(packed)
        if "weight_g_idx" not in packed.stored:
            return packed.grid.decode(part.tensors, packed.shape)
        # The group of each column is spelled out: columns of one group need not lie side by side.
        group = self._files.read(packed.stored["weight_g_idx"]).long()
        if bool((group == -1).all()):  # never set: they do lie side by side
            return packed.grid.decode(part.tensors, packed.shape)
        groups = part.tensors["scale"].shape[1]
        if int(group.min()) < 0 or int(group.max()) >= groups:
            raise self._refusal("weight_g_idx names groups that have no scale", name, expected=f"0 to {groups - 1}")
        zero = part.tensors["zero_point"].float()[:, group] if "zero_point" in part.tensors else packed.grid.levels // 2
        return (part.tensors["codes"].float() - zero) * part.tensors["scale"].float()[:, group]

    def read_part(self, name: str) -> Part:
        """Codes, scales and zero points of `x.weight`, exactly as they are stored.

        Raises:
            InvalidModel: there is no such tensor, or it is stored dense, or with columns out of order.
            InvalidFormat: floats that no format of ours can hold.
        """
        find_tensor(self.tensors, name, self.path)
        if name not in self._packed:
            raise self._refusal("it is stored dense", name, expected="the name of a quantized weight")
        packed = self._packed[name]
        if isinstance(packed, floats.Floats):
            return packed.part(self._files.read)
        if "weight_g_idx" in packed.stored:
            raise self._refusal("its columns are out of order", name, expected="columns in order")
        return self._part(packed)

    def _part(self, packed: _Packed) -> Part:
        raw = {role: self._files.read(stored) for role, stored in packed.stored.items() if role not in BARE}
        (rows, columns), bits = packed.shape, packed.grid.bits
        middle = 1 << (bits - 1)  # signed codes plus this are ours
        if packed.layout == PACKED:
            codes = unpack_int32(raw["weight_packed"], bits, columns)
        else:
            codes = (raw["weight"].to(torch.int16) + middle).to(torch.uint8)
        groups = packed.grid.groups(columns)
        scale = raw["weight_scale"].reshape(-1, groups)
        tensors = {"codes": codes, "scale": scale.expand(rows, -1).contiguous()}  # one scale a tensor: the same a row
        if not packed.grid.symmetric:
            zero = raw["weight_zero_point"]
            if packed.layout == PACKED:
                zero = unpack_int32(zero.T.contiguous(), bits, rows).T
            else:
                zero = (zero.to(torch.int16) + middle).to(torch.uint8).reshape(-1, groups)
            tensors["zero_point"] = zero.expand(rows, -1).contiguous()
        return Part(packed.grid, tensors)

    def auxiliary(self) -> Mapping[str, bytes | Path]:
        """Tokenizer, templates, model card, licence and remote code, as paths."""
        return self._files.auxiliary()

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
        rounds = [rounds.format.label() for rounds in self.activations.inputs.values()]
        listed += "".join(f", {count} read {label}" for label, count in Counter(rounds).most_common())
        for both in [*self.activations.caches.values()][:1]:
            listed += f", {len(self.activations.caches)} keep keys and values in {both.keys.format.label()}"
        left = f"; read without rounding {', '.join(self.left_out)}" if self.left_out else ""
        return f"compressed-tensors, {len(self.tensors)} tensors: {listed}{left}"

    def _read_schemes(self, quantization: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
        """Target, layout and weight arguments of every group; the most specific targets first."""
        for key in ("sparsity_config", "transform_config"):
            if (quantization.get(key) or {}) not in ({}, {"format": "dense"}):
                raise self._refusal(f"config.json has a {key}", expected="weights that are only quantized")
        schemes = []
        for name, group in (quantization.get("config_groups") or {}).items():
            if not isinstance(group, dict):
                raise self._refusal(
                    f"{name} is a preset, not a description", expected="targets and weights spelled out"
                )
            arguments = group.get("weights")
            if arguments is None:
                continue
            named = group.get("format") or quantization.get("format")
            kind = arguments.get("type", "int")
            layout = LAYOUTS.get(str(named)) or {"int": NAIVE, "float": FLOAT}.get(kind)
            wanted = ("float", 4 if layout in floats.PAIRED else 8) if layout in floats.LAYOUTS else ("int", None)
            if named not in LAYOUTS or wanted not in ((kind, None), (kind, arguments.get("num_bits", 8))):
                raise self._refusal(
                    f"{name} is stored as {named} ({kind}{arguments.get('num_bits', 8)})",
                    expected=f"{PACKED} or {NAIVE} with integers, {', '.join(floats.EIGHT)} with 8 bits, "
                    f"{', '.join(floats.PAIRED)} with 4",
                )
            if group.get("output_activations"):
                self.left_out.append(f"output_activations of {name}")
            if group.get("input_activations"):
                self._reads.update((str(target), group["input_activations"]) for target in group.get("targets") or [])
            schemes += [(str(target), str(layout), arguments) for target in group.get("targets") or []]
        return sorted(schemes, key=lambda scheme: (scheme[0] == "Linear", scheme[0].startswith("re:")))

    def _read_activations(self, quantization: Mapping[str, Any]) -> Activations:
        """Roundings of all layers and caches that a format of ours is."""
        inputs, left = dict[str, Quantizer](), set[str]()
        for name in self._packed:
            module = name.rpartition(".")[0]
            target = next((t for t, _, _ in self._schemes if _matches(module, t) or t == "Linear"), "")
            if target not in self._reads:
                continue
            format = passing_of(self._reads[target])
            rounds = None if format is None else input_of(module, format, self._constant)
            if rounds is None:
                left.add(target)
            else:
                inputs[module] = rounds
        scheme, caches = quantization.get("kv_cache_scheme"), dict[str, KeysAndValues]()
        if scheme:
            caches |= caches_of(scheme, self._files.tensors, self._constant)
        self.left_out += [f"input_activations of {target}" for target in sorted(left)]
        self.left_out += ["the key-value cache"] if scheme and not caches else []
        return Activations(inputs, caches)

    def _constant(self, name: str) -> Tensor | None:
        return self._files.read(name) if name in self._files.tensors else None

    def _quantized_modules(self) -> list[str]:
        found = []
        for name, info in self._files.tensors.items():
            module, _, leaf = name.rpartition(".")
            if leaf == "weight_packed" or (leaf == "weight" and info.dtype in ("int8", *FLOATS)):
                found.append(module)
        return found

    def _read_layout(self, module: str) -> _Packed | floats.Floats:
        layout, arguments = self._scheme_of(module)
        stored = {leaf: f"{module}.{leaf}" for leaf in STORED if f"{module}.{leaf}" in self._files.tensors}
        symmetric = bool(arguments.get("symmetric", True))
        if layout in floats.LAYOUTS:
            return self._float_layout(module, layout, arguments, stored)
        required = {"weight_scale", *(("weight_packed", "weight_shape") if layout == PACKED else ("weight",))}
        if missing := sorted((required | (set() if symmetric else {"weight_zero_point"})) - stored.keys()):
            raise self._refusal(f"{missing[0]} is missing", module, expected=f"a whole {layout} weight")
        rows, columns = self._shape(module, layout)
        if layout != PACKED and self._files.tensors[stored["weight"]].dtype in FLOATS:
            raise self._refusal(f"{self._files.tensors[stored['weight']].dtype} stored as {layout}", module)
        if "weight_g_idx" in stored and self._files.tensors[stored["weight_g_idx"]].shape != (columns,):
            raise self._refusal("weight_g_idx does not name a group for every column", module, expected=f"{[columns]}")
        scale = self._files.tensors[stored["weight_scale"]]
        if scale.dtype not in DTYPES:
            raise self._refusal(f"scales in {scale.dtype}", module, expected=", ".join(DTYPES))
        strategy = arguments.get("strategy") or ("group" if (arguments.get("group_size") or -1) > 0 else "channel")
        if strategy not in ("group", "channel", "tensor"):
            raise self._refusal(f"scales by {strategy}", module, expected="scales by group, channel or tensor")
        try:
            grid = Grid(
                bits=int(arguments.get("num_bits", 8)),
                group_size=int(arguments["group_size"]) if strategy == "group" else None,
                symmetric=symmetric,
                scale_dtype=scale.dtype,
            )
            groups = grid.groups(columns)
        except InvalidFormat as error:
            raise self._refusal(error.happened, module, expected=error.expected) from error
        if scale.shape not in ((rows, groups), *(((rows,), (1,), (1, 1)) if groups == 1 else ())):
            raise self._refusal(f"scales of shape {list(scale.shape)}", module, expected=f"{[rows, groups]}")
        if layout == PACKED:
            self._check_words(module, "weight_packed", (rows, words_of(columns, grid.bits)))
            if not symmetric:
                self._check_words(module, "weight_zero_point", (words_of(rows, grid.bits), groups))
        return _Packed(grid, layout, (rows, columns), stored)

    def _float_layout(
        self, module: str, layout: str, arguments: Mapping[str, Any], stored: dict[str, str]
    ) -> floats.Floats:
        """Codes of the right kind, and how many rows and columns share a scale."""
        codes = "weight_packed" if layout in floats.PAIRED else "weight"
        whole = ["weight_global_scale"] if layout == "nvfp4-pack-quantized" else []
        if missing := sorted({codes, "weight_scale", *whole} - stored.keys()):
            raise self._refusal(f"{missing[0]} is missing", module, expected=f"a whole {layout} weight")
        found, scale = self._files.tensors[stored[codes]], self._files.tensors[stored["weight_scale"]]
        if len(found.shape) != 2 or found.dtype not in (("uint8",) if layout in floats.PAIRED else FLOATS):
            raise self._refusal(f"{found.dtype} {list(found.shape)} stored as {layout}", module)
        rows, columns = found.shape[0], found.shape[1] * (2 if layout in floats.PAIRED else 1)
        if scale.dtype not in ((floats.SCALES[layout],) if layout in floats.SCALES else DTYPES):
            raise self._refusal(
                f"scales in {scale.dtype}", module, expected=floats.SCALES.get(layout, ", ".join(DTYPES))
            )
        if any(self._files.tensors[stored[name]].shape not in ((), (1,)) for name in whole):
            raise self._refusal("more than one global scale", module, expected="one")
        tile = self._tile(module, layout, (rows, columns), arguments)
        if tile[0] == 1 and columns % tile[1]:
            raise self._refusal(f"{columns} inputs in groups of {tile[1]}", module, expected="whole groups")
        expected = (-(-rows // tile[0]), -(-columns // tile[1]))
        flat = expected[1] == 1 and scale.shape in ((), (1,), (rows,)) and math.prod(scale.shape) == expected[0]
        if scale.shape != expected and not flat:
            raise self._refusal(f"scales of shape {list(scale.shape)}", module, expected=f"{list(expected)}")
        return floats.Floats(layout, (rows, columns), tile, stored)

    def _tile(self, module: str, layout: str, shape: tuple[int, int], arguments: Mapping[str, Any]) -> tuple[int, int]:
        group, rectangle = arguments.get("group_size"), arguments.get("block_structure")
        strategy = arguments.get("strategy") or ("group" if (group or -1) > 0 else "channel")
        if layout in floats.SHARED:
            tile: tuple[int, int] | None = (1, floats.SHARED[layout])
        else:
            tile = {"tensor": shape, "channel": (1, shape[1])}.get(strategy)
        if tile is None and strategy == "group" and isinstance(group, int) and group > 0:
            tile = (1, group)
        if strategy == "block" and isinstance(rectangle, list) and len(rectangle) == 2 and min(rectangle) > 0:
            tile = (int(rectangle[0]), int(rectangle[1]))
        if tile is None or not arguments.get("symmetric", True):
            raise self._refusal(f"floats with scales by {strategy}", module, expected="tensor, channel, group or block")
        return tile

    def _scheme_of(self, module: str) -> tuple[str, Mapping[str, Any]]:
        if not any(_matches(module, target) for target in self._ignore):
            for target, layout, arguments in self._schemes:
                if _matches(module, target) or target == "Linear":
                    return layout, arguments
        raise self._refusal(
            "holds codes, and config.json does not say of which grid",
            module,
            expected="a config group that targets it by name, by re: or as Linear, and no ignore that names it",
        )

    def _shape(self, module: str, layout: str) -> tuple[int, int]:
        shape: tuple[int, ...] = self._files.tensors[f"{module}.weight"].shape if layout != PACKED else tuple(
            self._files.read(f"{module}.weight_shape").tolist()
        )  # fmt: skip
        if len(shape) != 2:
            raise self._refusal(f"a weight of shape {list(shape)}", module, expected="[out, in]")
        return (shape[0], shape[1])

    def _check_words(self, module: str, leaf: str, shape: tuple[int, int]) -> None:
        found = self._files.tensors[f"{module}.{leaf}"]
        if found.shape != shape or found.dtype != "int32":
            raise self._refusal(
                f"{leaf} is {found.dtype} {list(found.shape)}",
                module,
                expected=f"int32 {list(shape)}, packed without gaps as compressed-tensors 0.18 and later do",
            )

    def _dense_view(self) -> dict[str, TensorInfo]:
        hidden = {stored: name for name, packed in self._packed.items() for stored in packed.stored.values()}
        tensors: dict[str, TensorInfo] = {}
        for name, info in self._files.tensors.items():
            if name.rpartition(".")[2] in BESIDE:
                continue
            dense = hidden.get(name, name)
            if dense in self._packed and dense not in tensors:
                packed = self._packed[dense]
                stored = sum(self._files.tensors[part].bytes for part in packed.stored.values())
                tensors[dense] = TensorInfo(dense, packed.shape, self._label(dense), stored)
            elif dense not in self._packed:
                tensors[name] = info
        return tensors

    def _label(self, name: str) -> str:
        packed = self._packed[name]
        if isinstance(packed, _Packed):
            return packed.grid.label()
        return self._files.tensors[name].dtype if packed.layout == FLOAT else packed.layout.partition("-")[0]

    def _refusal(self, happened: str, module: str = "", *, expected: str = "") -> InvalidModel:
        return InvalidModel(
            happened,
            expected=expected or "a compressed-tensors checkpoint of integer weights",
            mend="start from the model this one was made of",
            site=module or str(self.path),
        )


def _matches(module: str, target: str) -> bool:
    return re.match(target[3:], module) is not None if target.startswith("re:") else target == module
