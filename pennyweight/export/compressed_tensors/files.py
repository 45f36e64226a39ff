"""Safetensors with packed integers, as `export/files.py` asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pennyweight.export.accounting import Accounting
from pennyweight.export.checkpoint import CheckpointFiles
from pennyweight.export.compressed_tensors import layout
from pennyweight.export.compressed_tensors.source import CompressedTensorsSource, is_compressed_tensors
from pennyweight.export.compressed_tensors.write import write
from pennyweight.export.safetensors_stream import Entry
from pennyweight.formats import Compressed, Format, Part
from pennyweight.formats.passing import Activations, Passing
from pennyweight.network.finding.trace import skeleton
from pennyweight.network.network import Network, Site
from pennyweight.network.running.rounding import attentions


@dataclass(frozen=True, eq=False)
class CompressedTensorsFiles(CheckpointFiles):
    """Safetensors with packed integers, config.json beside them.

    Args:
        activations: that the files say are to be rounded.
    """

    name: ClassVar[str] = "compressed-tensors"
    activations: Activations = field(default_factory=Activations)

    def rounding(self, activations: Activations) -> CompressedTensorsFiles:
        """Files that also say how activations and caches are rounded."""
        return CompressedTensorsFiles(activations)

    def rounded_bytes(self, shape: tuple[int, int], format: Format, reads: Passing, dtype: str) -> int:
        """Of a layer that rounds what it reads: codes and scales of both."""
        return layout.stored_bytes(shape, format, dtype, reads)

    def cache_bytes(self, network: Network, dtype: str) -> int:
        """Two scales for every module of attention."""
        return 2 * Entry("", dtype, (1,)).bytes * len(attentions(skeleton(network.source)))

    def opens(self, path: Path) -> CompressedTensorsSource | None:
        """A directory whose config.json says so, whoever wrote it."""
        return CompressedTensorsSource(path) if path.is_dir() and is_compressed_tensors(path) else None

    def stored_bytes(self, shape: tuple[int, int], format: Format, dtype: str) -> int:
        """Codes, scales, shape, zero points."""
        return layout.stored_bytes(shape, format, dtype)

    def check(self, network: Network, formats: Mapping[str, Format], dtype: str) -> None:
        """Formats alone: any network can be written."""
        layout.check(network, formats, dtype, self.activations)

    def write(
        self, network: Network, formats: Mapping[str, Format], compressed: Callable[[Site], Compressed], out: Path, *,
        dtype: str, on_tensor: Callable[[str, int], None] | None = None,
    ) -> Accounting:  # fmt: skip
        """See `write`."""
        return write(
            network, formats, compressed, out, dtype=dtype, on_tensor=on_tensor, activations=self.activations
        )  # fmt: skip

    def parts(self, out: Path) -> Callable[[str], Part]:
        """See `CompressedTensorsSource.read_part`."""
        return CompressedTensorsSource(out).read_part
