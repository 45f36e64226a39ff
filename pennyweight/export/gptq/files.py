"""GPTQ checkpoints, as `export/files.py` asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pennyweight.export.accounting import Accounting
from pennyweight.export.checkpoint import CheckpointFiles
from pennyweight.export.gptq import layout
from pennyweight.export.gptq.source import GPTQSource, is_gptq
from pennyweight.export.gptq.write import write
from pennyweight.formats import Compressed, Format, Part
from pennyweight.network.network import Network, Site


class GPTQFiles(CheckpointFiles):
    """Safetensors with words of codes along the inputs, config.json and quantize_config.json beside them."""

    name = "gptq"

    def opens(self, path: Path) -> GPTQSource | None:
        """A directory whose config.json says so, whoever wrote it."""
        return GPTQSource(path) if path.is_dir() and is_gptq(path) else None

    def stored_bytes(self, shape: tuple[int, int], format: Format, dtype: str) -> int:
        """Codes, zero points, scales, groups of inputs."""
        return layout.stored_bytes(shape, format, dtype)

    def check(self, network: Network, formats: Mapping[str, Format], dtype: str) -> None:
        """Formats alone: any network can be written."""
        layout.check(network, formats, dtype)

    def write(
        self, network: Network, formats: Mapping[str, Format], compressed: Callable[[Site], Compressed], out: Path, *,
        dtype: str, on_tensor: Callable[[str, int], None] | None = None,
    ) -> Accounting:  # fmt: skip
        """See `write`."""
        return write(network, formats, compressed, out, dtype=dtype, on_tensor=on_tensor)

    def parts(self, out: Path) -> Callable[[str], Part]:
        """See `GPTQSource.read_part`."""
        return GPTQSource(out).read_part
