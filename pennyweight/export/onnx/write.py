"""Write a program for onnxruntime: `model.onnx.data` tensor by tensor, then `model.onnx` and what lies beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pennyweight.errors import InvalidFormat, InvalidModel, InvalidOutput
from pennyweight.export.accounting import Accounting, Row
from pennyweight.export.onnx.graph import DATA, assembled, unread
from pennyweight.export.onnx.layout import HEADER, Item, chosen_of, entries_of, items_of, placed
from pennyweight.export.onnx.trace import outline_of, program_of
from pennyweight.export.safetensors_stream import WholeFile, bytes_of, is_whole, write_file
from pennyweight.formats import Compressed, Dense, Format
from pennyweight.network.network import Network, Site
from pennyweight.numerics.hashing import of_bytes
from pennyweight.numerics.packing import pack_int32

NAME = "model.onnx"
REPEATED = 1.25  # a block's nodes have longer names where there are more blocks
PER_TENSOR = 1024  # bytes of nodes and entries that a stored tensor adds to the program, at most
FOR_CONFIG = 16_384  # bytes of config.json, at most


def check(network: Network, formats: Mapping[str, Format], dtype: str) -> None:
    """Refuse what cannot be written, before any work: the first layers are traced.

    Raises:
        MissingExtra: the packages that trace a program are not installed.
        InvalidModel: torch's exporter cannot follow the network, or its program knows no codes for a site.
        InvalidFormat: a format that does not fit its site or onnxruntime.
    """
    Dense(dtype=dtype)
    program = outline_of(network)[0]
    parameters = used_of(network, program)
    for stored, (site, format) in chosen_of(network, formats).items():
        entries_of(site.name, site.shape, format)
        for parameter in [name for name, its in parameters.items() if its == stored]:
            if why := unread(program, parameter):
                raise InvalidModel(why, expected="a layer that multiplies by it", mend="keep it dense", site=site.name)


def used_of(network: Network, program: Any) -> dict[str, str]:
    """Stored names of the parameters that a program reads, in its order."""
    known = set(network.source.tensors) | {name for names in network.tied for name in names}
    return {value.name: network.stored_name(value.name) for value in program.graph.input if value.name in known}


def program_bytes(network: Network) -> int:
    """Bytes of model.onnx, at most: the same for every plan."""
    outline, times = outline_of(network)
    return int(REPEATED * times * outline.ByteSize()) + PER_TENSOR * len(network.source.tensors)


def write(
    network: Network,
    formats: Mapping[str, Format],
    compressed: Callable[[Site], Compressed],
    out: Path,
    *,
    dtype: str,
    level: int,
    on_tensor: Callable[[str, int], None] | None = None,
) -> Accounting:
    """Write program, data and configuration; one tensor in memory at a time.

    Every file appears when it is whole, the data first. Data that are there already are not made again.

    Args:
        network: what is written; its source gives the tensors that are not compressed.
        formats: grid by name of site. All other tensors wider than `dtype` are rounded to it.
        compressed: called once for each of these sites, in the order of the file.
        out: directory, made if need be.
        dtype: of the model: float16, bfloat16 or float32. Whatever it is, the program computes in float32.
        level: accuracy of products with codes: 1 for float32, 4 for activations rounded to int8.
        on_tensor: called with the name of each tensor of the source, and its bytes in the output, when it is done.

    Raises:
        InvalidFormat: a format does not fit its site, or onnxruntime; raised before anything is written.
        InvalidModel: torch's exporter cannot follow the network; raised before anything is written.
        InvalidOutput: the directory holds other weights, or cannot be written to.
        DiskFull: no space left; no half-written file is left.
    """
    program = program_of(network)
    used = used_of(network, program)
    items = items_of(network, formats, dtype, used)
    header, offsets, size = placed(items)
    graph = assembled(program, items, offsets, used, level)
    ours = {NAME, DATA}
    foreign = sorted(p.name for p in out.glob("*.onnx*") if p.name not in ours) if out.is_dir() else []
    if foreign:
        raise InvalidOutput(
            f"holds {foreign[0]}, which is not of this model",
            expected="an empty directory, or one that the same command left unfinished",
            mend="choose another output directory", site=str(out),
        )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    if is_whole(out / DATA, header, size):
        for item in items if on_tensor else ():
            on_tensor(item.info.name, item.bytes)  # type: ignore[misc]
    else:
        with WholeFile(out / DATA, header, offsets, size) as writer:
            for item in items:
                for name, tensor in _tensors(item, network, compressed):
                    writer.put_bytes(name, bytes_of(tensor))
                if on_tensor:
                    on_tensor(item.info.name, item.bytes)
    copied = {name: _copy(out / name, content) for name, content in sorted(network.source.auxiliary().items())}
    config = {k: v for k, v in network.source.config.items() if k not in ("quantization_config", "torch_dtype")}
    text = json.dumps({**config, "dtype": dtype}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_file(out / "config.json", text.encode())
    write_file(out / NAME, graph)
    rows = tuple(
        Row(name=item.info.name, action=item.action, reason=item.reason,
            bytes_before=item.info.bytes, bytes_after=item.bytes)
        for item in items
    )  # fmt: skip
    return Accounting(
        rows=rows, expected=tuple(network.source.tensors), written=(out / DATA).stat().st_size - HEADER,
        auxiliary=copied,
    )  # fmt: skip


def _tensors(item: Item, network: Network, compressed: Callable[[Site], Compressed]) -> list[tuple[str, Tensor]]:
    """What is stored of one tensor, by name, as it lies in the file."""
    if item.grid is None:
        return [(entry.name, _rounded(item, network.source.read(item.info.name))) for entry in item.entries]
    assert item.site is not None
    whole = compressed(item.site)
    part, grid = whole.parts[0], item.grid
    if len(whole.parts) != 1 or part.format != grid:
        found = " + ".join(part.format.label() for part in whole.parts)
        raise InvalidFormat(
            f"was compressed as {found}", expected=f"one part in {grid.label()}, as planned",
            mend="an ONNX program holds one grid for each tensor", site=item.site.name,
        )  # fmt: skip
    packed = [_packed(part.tensors["codes"], grid.bits), part.tensors["scale"]]
    if not grid.symmetric:
        packed.append(_packed(part.tensors["zero_point"], grid.bits))
    return [(entry.name, tensor) for entry, tensor in zip(item.entries, packed, strict=True)]


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Each row as a stream of bits, filled up to a byte."""
    return pack_int32(codes, bits).view(torch.uint8)[:, : -(-codes.shape[1] * bits // 8)]


def _rounded(item: Item, tensor: Tensor) -> Tensor:
    if item.action != "cast":
        return tensor
    try:
        return Dense(dtype=item.entries[0].dtype).store(tensor).tensors["values"]
    except InvalidFormat as error:
        error.site = item.info.name
        raise


def _copy(path: Path, content: bytes | Path) -> str:
    data = content if isinstance(content, bytes) else content.read_bytes()
    write_file(path, data)
    return of_bytes(data)
