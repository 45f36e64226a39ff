"""ONNX programs with packed weights, as `export/files.py` asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pennyweight.errors import MissingFile
from pennyweight.export.accounting import Accounting
from pennyweight.export.onnx.layout import LAYOUT
from pennyweight.export.onnx.source import OnnxWeights, is_onnx
from pennyweight.export.onnx.write import check, program_bytes, write
from pennyweight.export.programs import HEADER, ProgramFiles
from pennyweight.formats import Compressed, Format, Part
from pennyweight.network.network import Network, Site


@dataclass(frozen=True, kw_only=True)
class OnnxFiles(ProgramFiles):
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
        return LAYOUT.stored_bytes(shape, format)

    def around(self, network: Network) -> int:
        """See `program_bytes`."""
        return program_bytes(network) + HEADER

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
