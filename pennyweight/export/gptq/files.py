"""GPTQ checkpoints, as `export/files.py` asks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pennyweight.export.accounting import Accounting
from pennyweight.export.checkpoint import beside_bytes
from pennyweight.export.gptq import layout
from pennyweight.export.gptq.source import GPTQSource, is_gptq
from pennyweight.export.gptq.write import write
from pennyweight.export.uncompressed import dense_bytes
from pennyweight.formats import Compressed, Dense, Format, Part
from pennyweight.network.network import Network, Site


class GPTQFiles:
    """Safetensors with words of codes along the inputs, config.json and quantize_config.json beside them."""

    name = "gptq"
    suffixes = (".safetensors",)

    def opens(self, path: Path) -> GPTQSource | None:
        """A directory whose config.json says so, whoever wrote it."""
        return GPTQSource(path) if path.is_dir() and is_gptq(path) else None

    def handed(self, path: Path) -> Path:
        """The directory itself."""
        return path

    def stored_bytes(self, shape: tuple[int, int], format: Format, dtype: str) -> int:
        """Codes, zero points, scales, groups of inputs."""
        return layout.stored_bytes(shape, format, dtype)

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
        """What is copied, and enough for headers."""
        del dtype
        return beside_bytes(network)

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
