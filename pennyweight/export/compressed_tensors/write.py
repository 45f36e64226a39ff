"""Write a compressed-tensors checkpoint: codes and scales in safetensors, described in config.json (see `schemes`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pennyweight.export.accounting import Accounting
from pennyweight.export.checkpoint import SHARD_BYTES, Item, Layout, items_of, write_directory
from pennyweight.export.compressed_tensors.activations import arguments, tensors_of
from pennyweight.export.compressed_tensors.layout import check
from pennyweight.export.compressed_tensors.schemes import scheme_for
from pennyweight.export.safetensors_stream import Entry
from pennyweight.formats import Compressed, Format, Part
from pennyweight.formats.passing import Activations, Passing
from pennyweight.network.network import Network, Site

MIXED = "mixed-precision"
LAYOUT_VERSION = "0.20.0"  # of the package whose layout this is; readers take it as information


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
    activations: Activations | None = None,
) -> Accounting:
    """Write a checkpoint; one tensor in memory at a time; see `checkpoint.write_directory`.

    Args:
        network: what is written; its source gives the tensors that are not compressed.
        formats: by name of site. All other float tensors wider than `dtype` are rounded to it; the rest is kept.
        compressed: called once for each of these sites whose file is not there yet, in the order of the file.
        out: directory, made if need be.
        dtype: of the model: float16, bfloat16 or float32; scales must be stored in it.
        shard_bytes: bytes of tensors in one file, unless a single tensor takes more.
        auxiliary: files to copy, by relative name; those of the source by default.
        on_tensor: called with the name of each tensor of the source, and its bytes in the output, when it is done.
        activations: how sites round what they read, and attention its keys and values; scales in `dtype`.

    Raises:
        InvalidFormat: a format does not fit its site, or this file format; raised before anything is written.
        InvalidModel: the source stores two different tensors where config.json says it is one.
        InvalidOutput: the directory holds other weights, or cannot be written to.
        DiskFull: no space left; no half-written file is left under a final name.
    """
    check(network, formats, dtype, activations)
    layout = _Rounding(activations or Activations(), dtype).layout()
    items = items_of(network, formats, dtype, layout)
    return write_directory(
        network, items, compressed, out, layout, dtype=dtype, shard_bytes=shard_bytes, auxiliary=auxiliary,
        on_tensor=on_tensor,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Rounding:
    """How tensors lie and what config.json says, of layers of which some round what they read."""

    activations: Activations
    dtype: str

    def layout(self) -> Layout:
        """As `checkpoint.write_directory` takes it."""
        stored = tensors_of(self.activations, self.dtype)
        return Layout(entries=self._entries, tensors=self._tensors, config=self._config, constants=stored)

    def _reads(self, site: Site) -> Passing | None:
        return self.activations.inputs[site.name].format if site.name in self.activations.inputs else None

    def _entries(self, site: Site, format: Format) -> tuple[Entry, ...]:
        return scheme_for(format, self._reads(site)).entries(site.parameter, site.shape)

    def _tensors(self, site: Site, part: Part) -> Iterator[Tensor]:
        scheme = scheme_for(part.format, self._reads(site))
        return (tensor for _, tensor in scheme.tensors(site.parameter, part))

    def _config(self, network: Network, items: Sequence[Item]) -> dict[str, Any]:
        targets: dict[tuple[Format, Passing | None], list[str]] = {}
        for item in items:
            if item.site is not None and item.format is not None:
                targets.setdefault((item.format, self._reads(item.site)), []).append(item.site.name)
        cache = next((both.keys.format for both in self.activations.caches.values()), None)
        if not targets and cache is None:
            return {}
        packed = {name for names in targets.values() for name in names}
        schemes = {pair: scheme_for(*pair) for pair in targets}
        layouts = {scheme.layout for scheme in schemes.values()}
        quantization = {
            "quant_method": "compressed-tensors",
            "version": LAYOUT_VERSION,
            "format": layouts.pop() if len(layouts) == 1 else MIXED if layouts else "dense",
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{i}": {
                    "targets": names,
                    "weights": schemes[pair].arguments(),
                    "input_activations": None if pair[1] is None else arguments(pair[1]),
                    "output_activations": None,
                    "format": schemes[pair].layout,
                }
                for i, (pair, names) in enumerate(targets.items())
            },
            "ignore": [s.name for s in network.sites if s.role != "embedding" and s.name not in packed],
            "kv_cache_scheme": None if cache is None else arguments(cache),
        }
        return {"quantization_config": quantization}
