"""Write a model for OpenVINO: openvino_model.bin tensor by tensor, then openvino_model.xml and what lies beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pennyweight.errors import InvalidModel
from pennyweight.export.accounting import Accounting
from pennyweight.export.openvino.graph import Weights, assembled
from pennyweight.export.openvino.layout import LAYOUT, SHAPE_BYTES, Constant, constants_of, placed
from pennyweight.export.openvino.trace import Program, outline_of, program_of
from pennyweight.export.programs import HEADER, Item, chosen_of, padded, parameters_of, write_data
from pennyweight.export.safetensors_stream import write_file
from pennyweight.export.writing import one_part, refuse_foreign, rounded, rows_of, write_beside, write_config
from pennyweight.formats import Compressed, Dense, Format
from pennyweight.network.network import Network, Site

XML, BIN = "openvino_model.xml", "openvino_model.bin"
LONGER = 1.05  # numbers of layers have more digits where there are more
PER_MATRIX, PER_VECTOR = 3600, 400  # bytes of layers and edges that a stored tensor adds, beside its name, at most


def check(network: Network, formats: Mapping[str, Format], dtype: str) -> None:
    """Refuse what cannot be written, before any work: the first layers are followed.

    Raises:
        MissingExtra: OpenVINO is not installed.
        InvalidModel: its frontend cannot follow the network, or the program knows no codes for a site.
        InvalidFormat: a format that does not fit its site or OpenVINO.
    """
    Dense(dtype=dtype)
    weights = Weights(outline_of(network)[0], parameters_of(network))
    for stored, (site, format) in chosen_of(network, formats).items():
        constants_of(site.name, site.shape, format)
        for parameter in [name for name in weights.inputs if network.stored_name(name) == stored]:
            if why := weights.unread(parameter):
                raise InvalidModel(why, expected="a layer that multiplies by it", mend="keep it dense", site=site.name)


def bytes_around(network: Network) -> int:
    """Bytes of openvino_model.xml, and of what lies before the weights in the other file; at most.

    What a layer adds is the difference between a program that has the first layers twice and one that has them once.
    """
    once, times = outline_of(network)
    twice = outline_of(network, 2)[0] if times > 1 else once
    sizes = [len(program.xml) + len(program.constants) for program in (once, twice)]
    program = sizes[0] + (times - 1) * (sizes[1] - sizes[0])
    tensors = network.source.tensors.values()
    added = sum((PER_MATRIX if len(info.shape) > 1 else PER_VECTOR) + 4 * len(info.name) for info in tensors)
    return HEADER + int(LONGER * program) + added + padded(SHAPE_BYTES * (1 + len(network.sites)))


def write(
    network: Network,
    formats: Mapping[str, Format],
    compressed: Callable[[Site], Compressed],
    out: Path,
    *,
    dtype: str,
    on_tensor: Callable[[str, int], None] | None = None,
) -> Accounting:
    """Write model and configuration; one tensor in memory at a time.

    Every file appears when it is whole, the weights first. Weights that are there already are not made again.

    Args:
        network: what is written; its source gives the tensors that are not compressed.
        formats: grid by name of site. All other tensors wider than `dtype` are rounded to it.
        compressed: called once for each of these sites, in the order of the file.
        out: directory, made if need be.
        dtype: of the model: float16, bfloat16 or float32.
        on_tensor: called with the name of each tensor of the source, and its bytes in the output, when it is done.

    Raises:
        InvalidFormat: a format does not fit its site, or OpenVINO; raised before anything is written.
        InvalidModel: the network cannot be followed; raised before anything is written.
        InvalidOutput: the directory holds another model, or cannot be written to.
        DiskFull: no space left; no half-written file is left.
    """
    program = program_of(network)
    used = _used(network, program)
    items = LAYOUT.items_of(network, formats, dtype, used.values())
    places = placed(items, program.constants)
    xml = assembled(program, items, places, used)
    refuse_foreign(out, ["*.xml"], {XML})
    out.mkdir(parents=True, exist_ok=True)
    write_data(
        out / BIN, places.header, places.offsets, places.size, items,
        lambda item: _tensors(item, network, compressed), on_tensor,
    )  # fmt: skip
    copied = write_beside(out, network.source.auxiliary())
    write_config(network, out, dtype, {})
    write_file(out / XML, xml)
    return Accounting(
        rows=rows_of(items), expected=tuple(network.source.tensors),
        written=(out / BIN).stat().st_size - len(places.header), auxiliary=copied,
    )  # fmt: skip


def _used(network: Network, program: Program) -> dict[str, str]:
    return {name: network.stored_name(name) for name in Weights(program, parameters_of(network)).inputs}


def _tensors(item: Item[Constant], network: Network, compressed: Callable[[Site], Compressed]) -> list[Tensor]:
    """What is stored of one tensor, as it lies in the file."""
    if item.grid is None:
        tensor = network.source.read(item.info.name)
        return [rounded(item.info.name, tensor, item.dtype) if item.action == "cast" else tensor]
    assert item.site is not None
    part, grid = one_part(item.site.name, item.grid, compressed(item.site)), item.grid
    codes, middle = part.tensors["codes"], grid.levels // 2
    if item.stored[0].element.startswith("i"):
        codes = codes ^ middle  # code minus the middle one, in two's complement
    stored = [_packed(codes, grid.bits), part.tensors["scale"]]
    if len(item.stored) > len(stored):
        zero_point = part.tensors.get("zero_point", torch.tensor([middle], dtype=torch.uint8))
        stored.append(_packed(zero_point, grid.bits))
    return stored


def _packed(codes: Tensor, bits: int) -> Tensor:
    """All of the codes as a stream of bits, low bits first, filled up to a byte."""
    flat, many = codes.flatten(), 8 // bits
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % many)).view(-1, many)
    packed = flat[:, 0].clone()
    for place in range(1, many):
        packed |= flat[:, place] << (bits * place)
    return packed
