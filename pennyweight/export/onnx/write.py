"""Write a program for onnxruntime: `model.onnx.data` tensor by tensor, then `model.onnx` and what lies beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pennyweight.errors import InvalidModel
from pennyweight.export.accounting import Accounting
from pennyweight.export.onnx.graph import DATA, assembled, unread
from pennyweight.export.onnx.layout import LAYOUT, entries_of, placed
from pennyweight.export.onnx.trace import outline_of, program_of
from pennyweight.export.programs import HEADER, Item, chosen_of, parameters_of, write_data
from pennyweight.export.safetensors_stream import Entry, write_file
from pennyweight.export.writing import one_part, refuse_foreign, rounded, rows_of, write_beside, write_config
from pennyweight.formats import Compressed, Dense, Format
from pennyweight.network.network import Network, Site
from pennyweight.numerics.packing import pack_int32

NAME = "model.onnx"
REPEATED = 1.25  # a block's nodes have longer names where there are more blocks
PER_TENSOR = 1024  # bytes of nodes and entries that a stored tensor adds to the program, at most


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
    known = parameters_of(network)
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
    items = LAYOUT.items_of(network, formats, dtype, used.values())
    header, offsets, size = placed(items)
    graph = assembled(program, items, offsets, used, level)
    refuse_foreign(out, ["*.onnx*"], {NAME, DATA})
    out.mkdir(parents=True, exist_ok=True)
    write_data(
        out / DATA, header, offsets, size, items, lambda item: _tensors(item, network, compressed), on_tensor
    )  # fmt: skip
    copied = write_beside(out, network.source.auxiliary())
    write_config(network, out, dtype, {})
    write_file(out / NAME, graph)
    return Accounting(
        rows=rows_of(items), expected=tuple(network.source.tensors), written=(out / DATA).stat().st_size - HEADER,
        auxiliary=copied,
    )  # fmt: skip


def _tensors(item: Item[Entry], network: Network, compressed: Callable[[Site], Compressed]) -> list[Tensor]:
    """What is stored of one tensor, as it lies in the file."""
    if item.grid is None:
        tensor = network.source.read(item.info.name)
        return [rounded(item.info.name, tensor, item.dtype) if item.action == "cast" else tensor]
    assert item.site is not None
    part, grid = one_part(item.site.name, item.grid, compressed(item.site)), item.grid
    packed = [_packed(part.tensors["codes"], grid.bits), part.tensors["scale"]]
    return packed if grid.symmetric else [*packed, _packed(part.tensors["zero_point"], grid.bits)]


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Each row as a stream of bits, filled up to a byte."""
    return pack_int32(codes, bits).view(torch.uint8)[:, : -(-codes.shape[1] * bits // 8)]
