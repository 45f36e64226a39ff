"""Write a GPTQ checkpoint, versions 1 and 2: what GPTQModel, AutoGPTQ and vLLM load.

Source: GPTQModel 7.7, `nn_modules/qlinear` and `quantization/config.py`, read and run. A linear layer [out, in] with b
bits and n groups becomes

    qweight  int32 [in·b/32, out]   codes, packed along the inputs, low bits first
    qzeros   int32 [n, out·b/32]    zero points along the outputs; less one in version 1
    scales   float16 [n, out]
    g_idx    int32 [in]             the group of each input, in order

Symmetric grids have their zero point in the middle, and store it all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pennyweight.export.accounting import Accounting
from pennyweight.export.checkpoint import Item, Layout, items_of, write_directory
from pennyweight.export.gptq.layout import check, grid_entries, quantize_config
from pennyweight.export.safetensors_stream import Entry
from pennyweight.export.writing import json_bytes
from pennyweight.formats import Compressed, Format, Grid, Part
from pennyweight.network.network import Network, Site
from pennyweight.numerics.packing import pack_int32


def write(
    network: Network,
    formats: Mapping[str, Format],
    compressed: Callable[[Site], Compressed],
    out: Path,
    *,
    dtype: str,
    on_tensor: Callable[[str, int], None] | None = None,
) -> Accounting:
    """Write a checkpoint; one tensor in memory at a time; see `checkpoint.write_directory`.

    Args:
        network: what is written; its source gives the tensors that are not compressed.
        formats: by name of site: grids of 2, 3, 4 or 8 bits.
        compressed: called once for each of these sites whose file is not there yet, in the order of the file.
        out: directory, made if need be.
        dtype: of all other float tensors that are wider.
        on_tensor: called with the name of each tensor of the source, and its bytes in the output, when it is done.

    Raises:
        InvalidFormat: a format does not fit its site, or this file format; raised before anything is written.
        InvalidModel: the source stores two different tensors where config.json says it is one.
        InvalidOutput: the directory holds other weights, or cannot be written to.
        DiskFull: no space left; no half-written file is left under a final name.
    """
    check(network, formats, dtype)
    items = items_of(network, formats, dtype, LAYOUT)
    less = 0 if any(isinstance(grid, Grid) and not grid.symmetric for grid in formats.values()) else 1
    layout = replace(LAYOUT, tensors=lambda site, part: _tensors(site, part, less))
    return write_directory(network, items, compressed, out, layout, dtype=dtype, on_tensor=on_tensor)


def _entries(site: Site, format: Format) -> tuple[Entry, ...]:
    assert isinstance(format, Grid)
    return grid_entries(site.parameter, site.shape, format)


def _tensors(site: Site, part: Part, less: int) -> Iterator[Tensor]:
    grid = part.format
    assert isinstance(grid, Grid)
    columns, groups = site.shape[1], grid.groups(site.shape[1])
    zero = torch.full((site.shape[0], groups), grid.levels // 2, dtype=torch.uint8)
    yield pack_int32(part.tensors["codes"], grid.bits).T
    yield pack_int32((zero if grid.symmetric else part.tensors["zero_point"]).T - less, grid.bits)
    yield part.tensors["scale"].T
    yield (torch.arange(columns) // (columns // groups)).to(torch.int32)


def _config(network: Network, items: Sequence[Item]) -> dict[str, Any]:
    found = any(item.format is not None for item in items)
    return {"quantization_config": quantize_config(network, items)} if found else {}


def _beside(network: Network, items: Sequence[Item]) -> dict[str, bytes]:
    """The same settings in the file that older readers look for."""
    settings = _config(network, items).get("quantization_config")
    return {"quantize_config.json": json_bytes(settings)} if settings else {}


LAYOUT = Layout(entries=_entries, tensors=lambda site, part: _tensors(site, part, 1), config=_config, beside=_beside)
