"""ONNX programs with packed weights, as `export/files.py` asks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pennyweight.errors import MissingFile
from pennyweight.export.accounting import Accounting
from pennyweight.export.onnx import layout
from pennyweight.export.onnx.source import OnnxWeights, is_onnx
from pennyweight.export.onnx.write import FOR_CONFIG, check, program_bytes, write
from pennyweight.export.safetensors_stream import Entry
from pennyweight.export.uncompressed import dense_dtype, tied_to
from pennyweight.formats import Compressed, Dense, Format, Part
from pennyweight.network.network import Network, Site


@dataclass(frozen=True, kw_only=True)
class OnnxFiles:
    """A directory with model.onnx, model.onnx.data and config.json.

    Args:
        name: as an engine's row calls it.
        level: accuracy of products with codes, as MatMulNBits counts: 1 float32, 4 activations rounded to int8.
    """

    name: str = "onnx"
    level: int = 1

    suffixes = (".onnx", ".data")

    def opens(self, path: Path) -> OnnxWeights | None:
        """A directory with config.json and one .onnx file, and no other weights, whoever wrote it."""
        return OnnxWeights(path) if is_onnx(path) else None

    def handed(self, path: Path) -> Path:
        """The program; its data lie beside it."""
        found = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
        if len(found) != 1:
            raise MissingFile(
                f"there are {len(found)} .onnx files here", expected="what compress --for onnxruntime wrote",
                mend="name the file, or another engine", site=str(path),
            )  # fmt: skip
        return found[0]

    def stored_bytes(self, shape: tuple[int, int], format: Format, dtype: str) -> int:
        """Codes, scales, zero points, each filled up."""
        del dtype
        return layout.stored_bytes("weight", shape, format)

    def kept_bytes(self, network: Network, site: Site, dtype: str) -> int:
        """Its elements in the model's type, or its own where that is no wider."""
        return layout.padded(Dense(dtype=_kept(network, site, dtype)).stored_bits(site.shape) // 8)

    def kept_as(self, network: Network, site: Site, dtype: str) -> str:
        """That type."""
        return f"dense {_kept(network, site, dtype)}"

    def fixed_bytes(self, network: Network, decided: Collection[str], dtype: str) -> int:
        """All other tensors that the network computes with, filled up."""
        names = (name for block in network.blocks for name in block.parameters)
        read = {network.stored_name(name) for name in (*names, *network.outer)} - set(decided)
        infos = [network.source.tensors[name] for name in read if tied_to(name, network) is None]
        return sum(layout.padded(Entry(info.name, dense_dtype(info, dtype), info.shape).bytes) for info in infos)

    def beside(self, network: Network, dtype: str) -> int:
        """The program, which is bounded by its first layers; what is copied; the data's header."""
        del dtype
        copied = network.source.auxiliary().values()
        sizes = (len(file) if isinstance(file, bytes) else file.stat().st_size for file in copied)
        return program_bytes(network) + FOR_CONFIG + layout.HEADER + sum(sizes)

    def check(self, network: Network, formats: Mapping[str, Format], dtype: str) -> None:
        """Packages, the code of the first layers, formats."""
        check(network, formats, dtype)

    def write(
        self, network: Network, formats: Mapping[str, Format], compressed: Callable[[Site], Compressed], out: Path, *,
        dtype: str, on_tensor: Callable[[str, int], None] | None = None,
    ) -> Accounting:  # fmt: skip
        """See `write`."""
        return write(network, formats, compressed, out, dtype=dtype, level=self.level, on_tensor=on_tensor)

    def parts(self, out: Path) -> Callable[[str], Part]:
        """See `OnnxWeights.read_part`."""
        return OnnxWeights(out).read_part


def _kept(network: Network, site: Site, dtype: str) -> str:
    return dense_dtype(network.source.tensors[network.stored_name(site.parameter)], dtype)
