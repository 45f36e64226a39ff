"""Write a model for OpenVINO: openvino_model.bin tensor by tensor, then openvino_model.xml and what lies beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pennyweight.errors import InvalidFormat, InvalidModel, InvalidOutput
from pennyweight.export.accounting import Accounting, Row
from pennyweight.export.openvino.graph import Weights, assembled
from pennyweight.export.openvino.layout import (
    FLOATS,
    HEADER,
    SHAPE_BYTES,
    Item,
    chosen_of,
    constants_of,
    items_of,
    padded,
    placed,
)
from pennyweight.export.openvino.trace import Program, outline_of, program_of
from pennyweight.export.safetensors_stream import WholeFile, bytes_of, is_whole, write_file
from pennyweight.formats import Compressed, Dense, Format
from pennyweight.network.network import Network, Site
from pennyweight.numerics.hashing import of_bytes

XML, BIN = "openvino_model.xml", "openvino_model.bin"
LONGER = 1.05  # numbers of layers have more digits where there are more
PER_MATRIX, PER_VECTOR = 3600, 400  # bytes of layers and edges that a stored tensor adds, beside its name, at most
FOR_CONFIG = 16_384  # bytes of config.json, at most


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


def parameters_of(network: Network) -> set[str]:
    """Every name that a weight of the network goes by."""
    return set(network.source.tensors) | {name for names in network.tied for name in names}


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
    items = items_of(network, formats, dtype, used)
    places = placed(items, program.constants)
    xml = assembled(program, items, places, used)
    _refuse_foreign(out)
    out.mkdir(parents=True, exist_ok=True)
    if is_whole(out / BIN, places.header, places.size):
        for item in items if on_tensor else ():
            on_tensor(item.info.name, item.bytes)  # type: ignore[misc]
    else:
        with WholeFile(out / BIN, places.header, places.offsets, places.size) as writer:
            for item in items:
                for name, tensor in _tensors(item, network, compressed):
                    writer.put_bytes(name, bytes_of(tensor))
                if on_tensor:
                    on_tensor(item.info.name, item.bytes)
    copied = {name: _copy(out / name, content) for name, content in sorted(network.source.auxiliary().items())}
    config = {k: v for k, v in network.source.config.items() if k not in ("quantization_config", "torch_dtype")}
    text = json.dumps({**config, "dtype": dtype}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_file(out / "config.json", text.encode())
    write_file(out / XML, xml)
    rows = tuple(
        Row(name=item.info.name, action=item.action, reason=item.reason,
            bytes_before=item.info.bytes, bytes_after=item.bytes)
        for item in items
    )  # fmt: skip
    return Accounting(
        rows=rows, expected=tuple(network.source.tensors),
        written=(out / BIN).stat().st_size - len(places.header), auxiliary=copied,
    )  # fmt: skip


def _used(network: Network, program: Program) -> dict[str, str]:
    return {name: network.stored_name(name) for name in Weights(program, parameters_of(network)).inputs}


def _refuse_foreign(out: Path) -> None:
    foreign = sorted(file.name for file in out.glob("*.xml") if file.name != XML) if out.is_dir() else []
    if foreign:
        raise InvalidOutput(
            f"holds {foreign[0]}, which is not of this model",
            expected="an empty directory, or one that the same command left unfinished",
            mend="choose another output directory", site=str(out),
        )  # fmt: skip


def _tensors(item: Item, network: Network, compressed: Callable[[Site], Compressed]) -> list[tuple[str, Tensor]]:
    """What is stored of one tensor, by name, as it lies in the file."""
    if item.grid is None:
        return [(constant.name, _rounded(item, network)) for constant in item.constants]
    assert item.site is not None
    whole = compressed(item.site)
    part, grid = whole.parts[0], item.grid
    if len(whole.parts) != 1 or part.format != grid:
        found = " + ".join(part.format.label() for part in whole.parts)
        raise InvalidFormat(
            f"was compressed as {found}", expected=f"one part in {grid.label()}, as planned",
            mend="an OpenVINO model holds one grid for each tensor", site=item.site.name,
        )  # fmt: skip
    codes, middle = part.tensors["codes"], grid.levels // 2
    if item.constants[0].element.startswith("i"):
        codes = codes ^ middle  # code minus the middle one, in two's complement
    stored = [_packed(codes, grid.bits), part.tensors["scale"]]
    if len(item.constants) > len(stored):
        zero_point = part.tensors.get("zero_point", torch.tensor([middle], dtype=torch.uint8))
        stored.append(_packed(zero_point, grid.bits))
    return [(constant.name, tensor) for constant, tensor in zip(item.constants, stored, strict=True)]


def _packed(codes: Tensor, bits: int) -> Tensor:
    """All of the codes as a stream of bits, low bits first, filled up to a byte."""
    flat, many = codes.flatten(), 8 // bits
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % many)).view(-1, many)
    packed = flat[:, 0].clone()
    for place in range(1, many):
        packed |= flat[:, place] << (bits * place)
    return packed


def _rounded(item: Item, network: Network) -> Tensor:
    tensor = network.source.read(item.info.name)
    if item.action != "cast":
        return tensor
    dtype = next(name for name, element in FLOATS.items() if element == item.constants[0].element)
    try:
        return Dense(dtype=dtype).store(tensor).tensors["values"]
    except InvalidFormat as error:
        error.site = item.info.name
        raise


def _copy(path: Path, content: bytes | Path) -> str:
    data = content if isinstance(content, bytes) else content.read_bytes()
    write_file(path, data)
    return of_bytes(data)
