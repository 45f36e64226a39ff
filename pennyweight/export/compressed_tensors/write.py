"""Write a compressed-tensors checkpoint: codes and scales in safetensors, described in config.json (see `schemes`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pennyweight.errors import InvalidFormat, InvalidOutput
from pennyweight.export.accounting import Accounting, Row
from pennyweight.export.compressed_tensors.layout import Item, check, items_of, shard_names, shards_of
from pennyweight.export.compressed_tensors.schemes import scheme_for
from pennyweight.export.safetensors_stream import ShardWriter, is_written, write_file
from pennyweight.formats import Compressed, Dense, Format, Part
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.source import INDEX
from pennyweight.numerics.hashing import of_bytes

MIXED = "mixed-precision"
LAYOUT_VERSION = "0.20.0"  # of the package whose layout this is; readers take it as information
SHARD_BYTES = 2_000_000_000


def write(
    network: Network,
    formats: Mapping[str, Format],
    compressed: Callable[[Site], Compressed],
    out: Path,
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
        formats: by name of site. All other float tensors wider than `dtype` are rounded to it; the rest is kept.
        compressed: called once for each of these sites whose file is not there yet, in the order of the file.
        out: directory, made if need be.
        dtype: of the model: float16, bfloat16 or float32; scales must be stored in it.
        shard_bytes: bytes of tensors in one file, unless a single tensor takes more.
        auxiliary: files to copy, by relative name; those of the source by default.
        on_tensor: called with the name of each tensor of the source, and its bytes in the output, when it is done.

    Raises:
        InvalidFormat: a format does not fit its site, or this file format; raised before anything is written.
        InvalidModel: the source stores two different tensors where config.json says it is one.
        InvalidOutput: the directory holds other weights, or cannot be written to.
        DiskFull: no space left; no half-written file is left under a final name.
    """
    check(network, formats, dtype)
    items = items_of(network, formats, dtype)
    shards = shards_of([item for item in items if item.entries], shard_bytes)
    names = shard_names(len(shards))
    _check_directory(out, names)
    copied = network.source.auxiliary() if auxiliary is None else auxiliary
    hashes = {name: _copy(out / name, content) for name, content in sorted(copied.items())}
    for name, shard in zip(names, shards, strict=True):
        _write_shard(out / name, shard, network, compressed, dtype, on_tensor)
    if len(shards) > 1:
        where = {
            e.name: name for name, shard in zip(names, shards, strict=True) for item in shard for e in item.entries
        }
        total = sum(item.bytes for item in items)
        write_file(out / INDEX, _json({"metadata": {"total_size": total}, "weight_map": where}))
    write_file(out / "config.json", _json(_config(network, items, dtype)))
    rows = tuple(
        Row(name=item.info.name, action=item.action, reason=item.reason,
            bytes_before=item.info.bytes, bytes_after=item.bytes)
        for item in items
    )  # fmt: skip
    return Accounting(
        rows=rows, expected=tuple(network.source.tensors),
        written=sum(_data_bytes(out / name) for name in names), auxiliary=hashes,
    )  # fmt: skip


def _check_directory(out: Path, names: Sequence[str]) -> None:
    ours = {*names, *([INDEX] if len(names) > 1 else [])}
    found = [*out.glob("*.safetensors"), *out.glob("*.safetensors.index.json")] if out.is_dir() else []
    foreign = sorted(file.name for file in found if file.name not in ours)
    if foreign:
        raise InvalidOutput(
            f"holds {foreign[0]}, which is not of this model",
            expected="an empty directory, or one that the same command left unfinished",
            mend="choose another output directory",
            site=str(out),
        )


def _copy(path: Path, content: bytes | Path) -> str:
    data = content if isinstance(content, bytes) else content.read_bytes()
    write_file(path, data)
    return of_bytes(data)


def _write_shard(
    path: Path,
    items: Sequence[Item],
    network: Network,
    compressed: Callable[[Site], Compressed],
    dtype: str,
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
            for name, tensor in _tensors(item, network, compressed, dtype):
                writer.put(name, tensor)
            if on_tensor:
                on_tensor(item.info.name, item.bytes)


def _tensors(
    item: Item, network: Network, compressed: Callable[[Site], Compressed], dtype: str
) -> Iterator[tuple[str, Tensor]]:
    name = item.info.name
    if item.site is None or item.format is None:
        tensor = network.source.read(name)
        yield name, _rounded(name, tensor, dtype) if item.action == "cast" else tensor
        return
    part = _part(item.site, item.format, compressed(item.site))
    yield from scheme_for(item.format).tensors(name, part)


def _rounded(name: str, tensor: Tensor, dtype: str) -> Tensor:
    try:
        return Dense(dtype=dtype).store(tensor).tensors["values"]
    except InvalidFormat as error:
        error.site = name
        raise


def _part(site: Site, format: Format, compressed: Compressed) -> Part:
    part = compressed.parts[0]
    if len(compressed.parts) != 1 or part.format != format:
        found = " + ".join(part.format.label() for part in compressed.parts)
        raise InvalidFormat(
            f"was compressed as {found}",
            expected=f"one part in {format.label()}, as planned",
            mend="a compressed-tensors file holds one format for each tensor",
            site=site.name,
        )
    return part


def _config(network: Network, items: Sequence[Item], dtype: str) -> dict[str, Any]:
    config = {k: v for k, v in network.source.config.items() if k not in ("quantization_config", "torch_dtype")}
    config["dtype"] = dtype
    targets: dict[Format, list[str]] = {}
    for item in items:
        if item.site is not None and item.format is not None:
            targets.setdefault(item.format, []).append(item.site.name)
    if not targets:
        return config
    packed = {name for names in targets.values() for name in names}
    schemes = {format: scheme_for(format) for format in targets}
    layouts = {scheme.layout for scheme in schemes.values()}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "version": LAYOUT_VERSION,
        "format": layouts.pop() if len(layouts) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {
                "targets": names,
                "weights": schemes[format].arguments(),
                "input_activations": None,
                "output_activations": None,
                "format": schemes[format].layout,
            }
            for i, (format, names) in enumerate(targets.items())
        },
        "ignore": [s.name for s in network.sites if s.role != "embedding" and s.name not in packed],
        "kv_cache_scheme": None,
    }
    return config


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _data_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
