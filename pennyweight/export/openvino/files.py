"""OpenVINO models with compressed weights, as `export/files.py` asks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pennyweight.errors import MissingFile
from pennyweight.export.accounting import Accounting
from pennyweight.export.openvino import layout
from pennyweight.export.openvino.source import OpenVINOWeights, is_openvino
from pennyweight.export.openvino.write import FOR_CONFIG, XML, bytes_around, check, write
from pennyweight.export.uncompressed import dense_bytes, dense_dtype, tied_to
from pennyweight.formats import Compressed, Format, Part
from pennyweight.network.network import Network, Site


@dataclass(frozen=True, kw_only=True)
class OpenVINOFiles:
    """A directory with openvino_model.xml, openvino_model.bin and config.json."""

    name: str = "openvino"

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
        return layout.stored_bytes(shape, format)

    def kept_bytes(self, network: Network, site: Site, dtype: str) -> int:
        """Its elements in the model's type, or its own where that is no wider."""
        return layout.padded(dense_bytes(network.source.tensors[network.stored_name(site.parameter)], dtype))

    def kept_as(self, network: Network, site: Site, dtype: str) -> str:
        """That type."""
        return f"dense {dense_dtype(network.source.tensors[network.stored_name(site.parameter)], dtype)}"

    def fixed_bytes(self, network: Network, decided: Collection[str], dtype: str) -> int:
        """All other tensors that the network computes with, filled up."""
        names = (name for block in network.blocks for name in block.parameters)
        read = {network.stored_name(name) for name in (*names, *network.outer)} - set(decided)
        infos = [network.source.tensors[name] for name in read if tied_to(name, network) is None]
        return sum(layout.padded(dense_bytes(info, dtype)) for info in infos)

    def beside(self, network: Network, dtype: str) -> int:
        """The representation, which is bounded by its first layers, what is copied, and configuration; at most."""
        del dtype
        copied = network.source.auxiliary().values()
        sizes = (len(file) if isinstance(file, bytes) else file.stat().st_size for file in copied)
        return bytes_around(network) + FOR_CONFIG + sum(sizes)

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
