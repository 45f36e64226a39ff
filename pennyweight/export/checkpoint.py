"""Write a model directory: safetensors, one or several, config.json and what else belongs beside it, tensor by tensor.

What a compressed tensor looks like in it, and what config.json says of that, is the business of each kind of files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.export.accounting import Accounting
from pennyweight.export.safetensors_stream import Entry, ShardWriter, is_written, write_file
from pennyweight.export.uncompressed import check_equal, dense_bytes, dense_dtype, tied_to
from pennyweight.export.writing import (
    beside_bytes,
    json_bytes,
    one_part,
    refuse_foreign,
    rounded,
    rows_of,
    write_beside,
    write_config,
)
from pennyweight.formats import Compressed, Dense, Format, Part
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.source import INDEX, TensorInfo

SHARD_BYTES = 2_000_000_000
ENTRIES = 4  # tensors that a compressed one becomes, at most: codes, scales, zero points, and their shape or order
ENTRY = 112  # bytes of a header's entry beside the tensor's name: what is added to it, type, shape, two offsets
NAMED = 16  # bytes around a name in a list of config.json
CONFIG = 16_384  # bytes of config.json beside such lists, and of what a kind of files says in another of its own


@dataclass(frozen=True)
class Item:
    """One tensor of the source, and what it becomes; `site` and `format` say that it is compressed."""

    info: TensorInfo
    action: str
    reason: str
    entries: tuple[Entry, ...]
    site: Site | None = None
    format: Format | None = None
    constants: tuple[Tensor, ...] = ()  # content of the last entries

    @property
    def bytes(self) -> int:
        """In the files' data sections."""
        return sum(entry.bytes for entry in self.entries)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one kind of files holds a compressed tensor.

    Args:
        entries: what a site becomes, its shape and format given: tensors by name.
        tensors: those tensors, in the order of the entries, of what was made of the site.
        config: of config.json, besides what the source's says: of the compressed sites.
        beside: other files, by relative name.
        constants: tensors that the source has not, by name; each is written after the last tensor of its module.
    """

    entries: Callable[[Site, Format], tuple[Entry, ...]]
    tensors: Callable[[Site, Part], Iterator[Tensor]]
    config: Callable[[Network, Sequence[Item]], Mapping[str, Any]]
    beside: Callable[[Network, Sequence[Item]], Mapping[str, bytes]] = field(default=lambda _network, _items: {})
    constants: Mapping[str, Tensor] = field(default_factory=dict)


def check_site(name: str, network: Network) -> Site:
    """A site that can be compressed in a model directory: a layer with a tensor of its own.

    Raises:
        InvalidFormat: there is none of this name, or it is an embedding table or shares one.
    """
    sites = network.by_name
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
    return site


def items_of(network: Network, formats: Mapping[str, Format], dtype: str, layout: Layout) -> list[Item]:
    """Every tensor of the source: embedding, blocks, norm and head, then what the network does not know."""
    source = network.source
    sites = {network.stored_name(site.parameter): site for site in reversed(network.sites)}
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
            items.append(Item(info, "transformed", format.label(), layout.entries(site, format), site, format))
        else:
            stored = dense_dtype(info, dtype)
            action, reason = ("kept", "") if stored == info.dtype else ("cast", f"{info.dtype} to {stored}")
            items.append(Item(info, action, reason, (Entry(name, stored, info.shape),)))
    return _with_constants(items, layout.constants)


def _with_constants(items: list[Item], constants: Mapping[str, Tensor]) -> list[Item]:
    """The same items, of which some end with constants: the last of a module that each belongs to, or of those in it.

    Raises:
        InvalidFormat: there is no such module.
    """
    for name, tensor in constants.items():
        module = name.rpartition(".")[0]
        at = max((i for i, one in enumerate(items) if one.info.name.startswith(f"{module}.")), default=None)
        if at is None:
            raise InvalidFormat("no tensor of this module is written", expected="a module of the network", site=module)
        entry = Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        item = items[at]
        items[at] = replace(item, entries=(*item.entries, entry), constants=(*item.constants, tensor))
    return items


def write_directory(
    network: Network,
    items: Sequence[Item],
    compressed: Callable[[Site], Compressed],
    out: Path,
    layout: Layout,
    *,
    dtype: str,
    shard_bytes: int = SHARD_BYTES,
    auxiliary: Mapping[str, bytes | Path] | None = None,
    on_tensor: Callable[[str, int], None] | None = None,
) -> Accounting:
    """Write a checkpoint; one tensor in memory at a time.

    Files appear under their final names only when they are whole, config.json last. Files that are there already are
    not made again, so a run that was killed goes on where it stopped; the bytes do not depend on that.

    Args:
        network: what is written; its source gives the tensors that are not compressed.
        items: see `items_of`.
        compressed: called once for each compressed site whose file is not there yet, in the order of the file.
        out: directory, made if need be.
        layout: of compressed sites.
        dtype: of the model: float16, bfloat16 or float32.
        shard_bytes: bytes of tensors in one file, unless a single tensor takes more.
        auxiliary: files to copy, by relative name; those of the source by default.
        on_tensor: called with the name of each tensor of the source, and its bytes in the output, when it is done.

    Raises:
        InvalidFormat: a site was compressed in another format than the item says, or a tensor overflows its type.
        InvalidOutput: the directory holds other weights, or cannot be written to.
        DiskFull: no space left; no half-written file is left under a final name.
    """
    shards = shards_of([item for item in items if item.entries], shard_bytes)
    names = shard_names(len(shards))
    ours = {*names, *([INDEX] if len(names) > 1 else [])}
    refuse_foreign(out, ["*.safetensors", "*.safetensors.index.json"], ours)
    hashes = write_beside(out, network.source.auxiliary() if auxiliary is None else auxiliary)
    for name, shard in zip(names, shards, strict=True):
        _write_shard(out / name, shard, network, compressed, layout, on_tensor)
    if len(shards) > 1:
        where = {
            e.name: name for name, shard in zip(names, shards, strict=True) for item in shard for e in item.entries
        }
        total = sum(item.bytes for item in items)
        write_file(out / INDEX, json_bytes({"metadata": {"total_size": total}, "weight_map": where}))
    for name, data in layout.beside(network, items).items():
        write_file(out / name, data)
    write_config(network, out, dtype, layout.config(network, items))
    return Accounting(
        rows=rows_of(items), expected=tuple(network.source.tensors),
        written=sum(_data_bytes(out / name) for name in names), auxiliary=hashes,
    )  # fmt: skip


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


def _write_shard(
    path: Path,
    items: Sequence[Item],
    network: Network,
    compressed: Callable[[Site], Compressed],
    layout: Layout,
    on_tensor: Callable[[str, int], None] | None,
) -> None:
    entries = [entry for item in items for entry in item.entries]
    if is_written(path, entries):
        for item in items if on_tensor else ():
            on_tensor(item.info.name, item.bytes)  # type: ignore[misc]
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(path, entries) as writer:
        for item in items:
            for entry, tensor in zip(item.entries, _tensors(item, network, compressed, layout), strict=True):
                writer.put(entry.name, tensor)
            if on_tensor:
                on_tensor(item.info.name, item.bytes)


def _tensors(
    item: Item, network: Network, compressed: Callable[[Site], Compressed], layout: Layout
) -> Iterator[Tensor]:
    if item.site is not None and item.format is not None:
        yield from layout.tensors(item.site, one_part(item.site.name, item.format, compressed(item.site)))
    else:
        tensor = network.source.read(item.info.name)
        yield rounded(item.info.name, tensor, item.entries[0].dtype) if item.action == "cast" else tensor
    yield from item.constants


def _data_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


class CheckpointFiles:
    """What `Files` asks and all kinds of model directories answer alike."""

    suffixes = (".safetensors",)
    one_file = False

    def handed(self, path: Path) -> Path:
        """The directory itself."""
        return path

    def kept_bytes(self, network: Network, site: Site, dtype: str) -> int:
        """Its elements in the model's type."""
        del network
        return Dense(dtype=dtype).stored_bits(site.shape) // 8

    def kept_as(self, network: Network, site: Site, dtype: str) -> str:
        """The model's type."""
        del network, site
        return f"dense {dtype}"

    def fixed_bytes(self, network: Network, decided: Collection[str], dtype: str) -> int:
        """All other tensors in the model's type, or their own where it is no wider."""
        others = (info for name, info in network.source.tensors.items() if name not in decided)
        return sum(dense_bytes(info, dtype) for info in others)

    def beside(self, network: Network, dtype: str) -> int:
        """What is copied, and headers and configurations with every name they may hold; at most."""
        del dtype
        sites = {network.stored_name(site.parameter) for site in network.sites}
        named = sum(
            (ENTRIES if name in sites else 1) * (len(name) + ENTRY) + 2 * (len(name) + NAMED)
            for name in network.source.tensors
        )
        if network.source.stored_bytes > SHARD_BYTES:  # an index names every tensor and its file once more
            named *= 2
        return named + CONFIG + beside_bytes(network)
