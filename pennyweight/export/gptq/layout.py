"""What a GPTQ checkpoint will hold of a site, and how its config.json describes a mixture, before a byte is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pennyweight.errors import InvalidFormat
from pennyweight.export.checkpoint import Item, check_site
from pennyweight.export.gptq.source import WIDTHS
from pennyweight.export.safetensors_stream import Entry
from pennyweight.formats import Dense, Format, Grid
from pennyweight.network.network import Network

GROUPS = (32, 64, 128)
MULTIPLE = 32  # of inputs and outputs: whole words whatever the width
SCALES = "float16"
# Under one name in vLLM, which asks `dynamic` for that.
JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def stored_bytes(shape: tuple[int, int], format: Format, dtype: str) -> int:
    """Bytes a site takes in the files' data sections.

    Raises:
        InvalidFormat: the format does not fit the shape or these files.
    """
    del dtype
    if isinstance(format, Dense):
        return format.stored_bits(shape) // 8
    grid = checked_grid("weight", shape, format)
    return sum(entry.bytes for entry in grid_entries("weight", shape, grid))


def check(network: Network, formats: Mapping[str, Format], dtype: str) -> None:
    """Refuse formats that these files cannot hold.

    Raises:
        InvalidFormat: names the site.
    """
    Dense(dtype=dtype)
    for name, format in formats.items():
        checked_grid(name, check_site(name, network).shape, format)


def checked_grid(name: str, shape: tuple[int, int], grid: Format) -> Grid:
    """A format that these files hold.

    Raises:
        InvalidFormat: another width, group, type of scales, or inputs or outputs that are no multiple of 32.
    """
    known = isinstance(grid, Grid) and grid.rows_stand_alone and grid.bits in WIDTHS and grid.scale_dtype == SCALES
    if not known or not isinstance(grid, Grid) or grid.group_size not in (*GROUPS, None):
        raise InvalidFormat(
            f"{grid.label()} cannot be written to GPTQ files",
            expected="codes of 2, 3, 4 or 8 bits, a row or groups of 32, 64 or 128, scales in float16",
            mend="choose another step, or another engine", site=name,
        )  # fmt: skip
    if any(size % MULTIPLE for size in shape):
        raise InvalidFormat(
            f"{shape[0]} outputs and {shape[1]} inputs", expected=f"multiples of {MULTIPLE}", mend="keep it dense",
            site=name,
        )  # fmt: skip
    try:
        grid.groups(shape[1])
    except InvalidFormat as error:
        error.site = name
        raise
    return grid


def grid_entries(parameter: str, shape: tuple[int, int], grid: Grid) -> tuple[Entry, ...]:
    """Tensors of one site; see `write`."""
    module, (rows, columns), groups = parameter.removesuffix(".weight"), shape, grid.groups(shape[1])
    return (
        Entry(f"{module}.qweight", "int32", (columns * grid.bits // 32, rows)),
        Entry(f"{module}.qzeros", "int32", (groups, rows * grid.bits // 32)),
        Entry(f"{module}.scales", SCALES, (groups, rows)),
        Entry(f"{module}.g_idx", "int32", (columns,)),
    )


def quantize_config(network: Network, items: Sequence[Item]) -> dict[str, Any]:
    """What config.json says: the commonest grid, and `dynamic` for every site that has another one or none.

    Version 1 stores zero points less one, which has no code for a zero point of 0; it is read by everything, so that it
    is written unless a grid has zero points of its own.
    """
    grids = {item.site.name: item.format for item in items if item.site is not None and isinstance(item.format, Grid)}
    (common, _), *others = Counter(grids.values()).most_common()
    dynamic = {f"+:{_pattern([n for n, g in grids.items() if g == grid])}": _settings(grid) for grid, _ in others}
    dense = [site.name for site in network.sites if site.role == "linear" and site.name not in grids]
    if dense:
        dynamic[f"-:{_pattern(dense)}"] = {}
    second = any(not grid.symmetric for grid in grids.values())
    return {
        "quant_method": "gptq", "checkpoint_format": "gptq_v2" if second else "gptq", "pack_dtype": "int32",
        "desc_act": False, "lm_head": False, "meta": {"quantizer": ["pennyweight:1"]}, **_settings(common),
        **({"dynamic": dynamic} if dynamic else {}),
    }  # fmt: skip


def _settings(grid: Grid) -> dict[str, Any]:
    return {"bits": grid.bits, "group_size": grid.group_size or -1, "sym": grid.symmetric}


def _pattern(names: Sequence[str]) -> str:
    """A regular expression that matches these modules whole, and what an engine joins them to."""
    parents = dict.fromkeys(name.rpartition(".")[0] for name in names)
    joined = [
        f"{parent}.{whole}"
        for parent in parents
        for whole, leaves in JOINED.items()
        if {f"{parent}.{leaf}" for leaf in leaves} <= set(names)
    ]
    return f"^(?:{'|'.join(map(re.escape, [*names, *joined]))})$"
