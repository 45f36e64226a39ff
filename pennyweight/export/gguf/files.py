"""One file for llama.cpp, as `export/files.py` asks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pennyweight.errors import MissingFile
from pennyweight.export.accounting import Accounting
from pennyweight.export.gguf import layout
from pennyweight.export.gguf.write import NAME, check, header_bytes, write
from pennyweight.formats import Compressed, Format, Part
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.gguf import GGUFSource
from pennyweight.network.sources.opening import open_source
from pennyweight.network.sources.source import Source


class GGUFFiles:
    """One file for llama.cpp, tokenizer included."""

    name = "gguf"
    suffixes = (".gguf",)
    one_file = True

    def opens(self, path: Path) -> Source | None:
        """A .gguf file, or a directory that holds one and no config.json."""
        if path.is_dir() and ((path / "config.json").exists() or not any(path.glob("*.gguf"))):
            return None
        return open_source(path) if path.is_dir() or path.suffix.lower() == ".gguf" else None

    def handed(self, path: Path) -> Path:
        """The file."""
        found = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
        if not found:
            raise MissingFile(
                "there is no GGUF file here", expected="what compress --for llama.cpp wrote",
                mend="--engine transformers", site=str(path),
            )  # fmt: skip
        return found[0]

    def stored_bytes(self, shape: tuple[int, int], format: Format, dtype: str) -> int:
        """Whole blocks, filled up."""
        return layout.stored_bytes(shape, format, dtype)

    def kept_bytes(self, network: Network, site: Site, dtype: str) -> int:
        """The bytes of a GGUF file as they are; otherwise its elements in the model's type."""
        return layout.kept_bytes(network, site, dtype)

    def kept_as(self, network: Network, site: Site, dtype: str) -> str:
        """The model's type, or that of the GGUF file it is copied from."""
        return layout.kept_as(network, site, dtype)

    def fixed_bytes(self, network: Network, decided: Collection[str], dtype: str) -> int:
        """All other tensors, norms in float32, and what the configuration adds."""
        items = layout.items_of(network, {}, dtype)
        fixed = sum(item.bytes for item in items if item.info.name not in decided)
        return fixed + sum(stored.padded for stored, _ in layout.added(network))

    def beside(self, network: Network, dtype: str) -> int:
        """The header, which holds the tokenizer."""
        return header_bytes(network, dtype)

    def check(self, network: Network, formats: Mapping[str, Format], dtype: str) -> None:
        """Family, options, tensors, tokenizer, formats, and the package that reads them back."""
        check(network, formats, dtype)

    def write(
        self, network: Network, formats: Mapping[str, Format], compressed: Callable[[Site], Compressed], out: Path, *,
        dtype: str, on_tensor: Callable[[str, int], None] | None = None,
    ) -> Accounting:  # fmt: skip
        """See `write`."""
        return write(network, formats, compressed, out, dtype=dtype, on_tensor=on_tensor)

    def parts(self, out: Path) -> Callable[[str], Part]:
        """See `GGUFSource.read_part`."""
        return GGUFSource(out / NAME).read_part
