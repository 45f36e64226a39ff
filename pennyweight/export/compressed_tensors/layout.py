"""What a compressed-tensors checkpoint will hold, decided before a byte is written: tensors, their sizes, their files.

The sizes are exact, so the planner can promise them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pennyweight.errors import InvalidFormat
from pennyweight.export.compressed_tensors.schemes import Scheme, scheme_of
from pennyweight.export.safetensors_stream import Entry
from pennyweight.export.uncompressed import check_equal, dense_dtype, tied_to
from pennyweight.formats import Dense, Format
from pennyweight.formats.dense import DTYPES
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.source import TensorInfo


@dataclass(frozen=True)
class Item:
    """One tensor of the source, and what it becomes; `format` says that it is compressed."""

    info: TensorInfo
    action: str
    reason: str
    entries: tuple[Entry, ...]
    site: Site | None = None
    format: Format | None = None

    @property
    def bytes(self) -> int:
        """In the files' data sections."""
        return sum(entry.bytes for entry in self.entries)


def stored_bytes(shape: tuple[int, int], format: Format, dtype: str) -> int:
    """Bytes a site takes in the files' data sections, padding included.

    Raises:
        InvalidFormat: the format does not fit the shape, or its scales are not in `dtype`.
    """
    if isinstance(format, Dense):
        return format.stored_bits(shape) // 8
    return sum(entry.bytes for entry in _scheme("weight", shape, format, dtype).entries("weight", shape))


def check(network: Network, formats: Mapping[str, Format], dtype: str) -> None:
    """Refuse formats that this file format cannot hold.

    Raises:
        InvalidFormat: names the site.
    """
    Dense(dtype=dtype)
    sites = network.by_name
    for name, format in formats.items():
        if name not in sites:
            raise InvalidFormat("there is no such site", expected=f"one of {len(sites)} sites", site=name)
        site = sites[name]
        stored = network.stored_name(site.parameter)
        tied = any(stored in names for names in network.tied)
        if tied or site.role == "embedding":
            raise InvalidFormat(
                "an embedding table cannot be loaded from packed codes" if not tied else "it shares its tensor",
                expected="a linear layer with a tensor of its own",
                mend="keep it dense",
                site=name,
            )
        _scheme(name, site.shape, format, dtype)


def _scheme(name: str, shape: tuple[int, int], format: Format, dtype: str) -> Scheme:
    scheme = scheme_of(format)
    if scheme is None:
        raise InvalidFormat(
            f"{format.label()} cannot be written to compressed-tensors files",
            expected="grids such as int4 g64 sym, FP8, MXFP4, MXFP8 or NVFP4",
            mend="choose another step, or another engine", site=name,
        )  # fmt: skip
    scales = getattr(format, "scale_dtype", dtype)
    if scales in DTYPES and scales != dtype:
        raise InvalidFormat(
            f"scales in {scales} in a model in {dtype}",
            expected=f"scales in the type of the model, {dtype}",
            mend=f"set scale_dtype={dtype!r} before the weights are rounded",
            site=name,
        )
    try:
        format.stored_bits(shape)
    except InvalidFormat as error:
        error.site = name
        raise
    return scheme


def items_of(network: Network, formats: Mapping[str, Format], dtype: str) -> list[Item]:
    """Every tensor of the source: embedding, blocks, norm and head, then what the network does not know."""
    source = network.source
    sites = {site.parameter: site for site in network.sites}
    first = [n for n in network.outer if n in sites and sites[n].role == "embedding"]
    inside = [name for block in network.blocks for name in block.parameters]
    order = dict.fromkeys(network.stored_name(name) for name in [*first, *inside, *network.outer])
    copies = {name: tied_to(name, network) for name in source.tensors}
    items = []
    for name in [*order, *(name for name in source.tensors if name not in order)]:
        info, site = source.tensors[name], sites.get(name)
        if (kept := copies[name]) is not None:
            check_equal(name, kept, network)
            items.append(Item(info, "dropped", f"the same tensor as {kept}", ()))
        elif site is not None and site.name in formats:
            format = formats[site.name]
            entries = _scheme(site.name, site.shape, format, dtype).entries(name, site.shape)
            items.append(Item(info, "transformed", format.label(), entries, site, format))
        else:
            stored = dense_dtype(info, dtype)
            action, reason = ("kept", "") if stored == info.dtype else ("cast", f"{info.dtype} to {stored}")
            items.append(Item(info, action, reason, (Entry(name, stored, info.shape),)))
    return items


def shards_of(items: Sequence[Item], limit: int) -> list[list[Item]]:
    """Consecutive items, as many as fit; everything of one site lies in one file."""
    shards: list[list[Item]] = [[]]
    size = 0
    for item in items:
        if shards[-1] and size + item.bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.bytes
    return shards


def shard_names(count: int) -> list[str]:
    """As the reference library calls them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
