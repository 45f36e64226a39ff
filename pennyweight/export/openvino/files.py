"""OpenVINO models with compressed weights, as `export/files.py` asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pennyweight.errors import MissingFile
from pennyweight.export.accounting import Accounting
from pennyweight.export.openvino.layout import LAYOUT
from pennyweight.export.openvino.source import OpenVINOWeights, is_openvino
from pennyweight.export.openvino.write import XML, bytes_around, check, write
from pennyweight.export.programs import ProgramFiles
from pennyweight.formats import Compressed, Format, Part
from pennyweight.network.network import Network, Site


class OpenVINOFiles(ProgramFiles):
    """A directory with openvino_model.xml, openvino_model.bin and config.json."""

    name = "openvino"
    suffixes = (".xml", ".bin")

    def opens(self, path: Path) -> OpenVINOWeights | None:
        """A directory with config.json and openvino_model.xml, whoever wrote them."""
        return OpenVINOWeights(path) if is_openvino(path) else None

    def handed(self, path: Path) -> Path:
        """The representation; its numbers lie beside it."""
        found = path / XML if path.is_dir() else path
        if not found.is_file():
            raise MissingFile(
                f"there is no {XML} here", expected="what compress --for openvino wrote",
                mend="name the file, or another engine", site=str(path),
            )  # fmt: skip
        return found

    def stored_bytes(self, shape: tuple[int, int], format: Format, dtype: str) -> int:
        """Codes, scales, zero points, each filled up."""
        del dtype
        return LAYOUT.stored_bytes(shape, format)

    def around(self, network: Network) -> int:
        """See `bytes_around`."""
        return bytes_around(network)

    def check(self, network: Network, formats: Mapping[str, Format], dtype: str) -> None:
        """OpenVINO itself, the code of the first layers, formats."""
        check(network, formats, dtype)

    def write(
        self, network: Network, formats: Mapping[str, Format], compressed: Callable[[Site], Compressed], out: Path, *,
        dtype: str, on_tensor: Callable[[str, int], None] | None = None,
    ) -> Accounting:  # fmt: skip
        """See `write`."""
        return write(network, formats, compressed, out, dtype=dtype, on_tensor=on_tensor)

    def parts(self, out: Path) -> Callable[[str], Part]:
        """See `OpenVINOWeights.read_part`."""
        return OpenVINOWeights(out).read_part
