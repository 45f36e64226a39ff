"""The kinds of files we write: for each, what it takes, what writes it and what reads it back, in one place.

An engine's row names one of them (`file_format`); nothing else branches on what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from pennyweight.errors import UnknownName
from pennyweight.export import compressed_tensors, compressed_tensors_layout
from pennyweight.export.accounting import Accounting
from pennyweight.export.compressed_tensors_source import CompressedTensorsSource
from pennyweight.export.gguf import layout as gguf_layout
from pennyweight.export.gguf import write as gguf
from pennyweight.formats import Compressed, Dense, Format, Part
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.gguf import GGUFSource

HEADERS = 65_536  # bytes of headers, config and index beside the tensors; the exact number is known once written


@runtime_checkable
class Files(Protocol):
    """One file format; every size is exact, padding included, unless it says otherwise."""

    @property
    def name(self) -> str:
        """As an engine's row calls it."""
        ...

    def stored_bytes(self, shape: tuple[int, int], format: Format, dtype: str) -> int:
        """Bytes of tensor data that a site takes in a format.

        Raises:
            InvalidFormat: it does not fit the shape, or these files.
        """
        ...

    def kept_bytes(self, network: Network, site: Site, dtype: str) -> int:
        """Bytes of tensor data that a site takes that is not compressed."""
        ...

    def kept_as(self, network: Network, site: Site, dtype: str) -> str:
        """What a site is stored as that is not compressed, for the ledger."""
        ...

    def fixed_bytes(self, network: Network, decided: Collection[str], dtype: str) -> int:
        """Bytes of tensor data beside the sites of these parameters."""
        ...

    def beside(self, network: Network, dtype: str) -> int:
        """Bytes beside all tensor data: headers, tokenizer, other files; at most."""
        ...

    def check(self, network: Network, formats: Mapping[str, Format], dtype: str) -> None:
        """Refuse a network and formats that these files cannot hold, before any work.

        Raises:
            PennyweightError: InvalidFormat names a site, InvalidModel says what is not known of the network.
        """
        ...

    def write(
        self, network: Network, formats: Mapping[str, Format], compressed: Callable[[Site], Compressed], out: Path, *,
        dtype: str, on_tensor: Callable[[str, int], None] | None = None,
    ) -> Accounting:  # fmt: skip
        """Write the files, one tensor in memory at a time; see `compressed_tensors.write`."""
        ...

    def parts(self, out: Path) -> Callable[[str], Part]:
        """What is stored of compressed tensors, by name, by a reader that shares no code with the writer."""
        ...


class CompressedTensorsFiles:
    """Safetensors with packed integers, config.json beside them."""

    name = "compressed-tensors"

    def stored_bytes(self, shape: tuple[int, int], format: Format, dtype: str) -> int:
        """Codes, scales, shape, zero points."""
        return compressed_tensors_layout.stored_bytes(shape, format, dtype)

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
        return sum(compressed_tensors_layout.dense_bytes(info, dtype) for info in others)

    def beside(self, network: Network, dtype: str) -> int:
        """What is copied, and enough for headers."""
        del dtype
        copied = network.source.auxiliary().values()
        return HEADERS + sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in copied)

    def check(self, network: Network, formats: Mapping[str, Format], dtype: str) -> None:
        """Formats alone: any network can be written."""
        compressed_tensors_layout.check(network, formats, dtype)

    def write(
        self, network: Network, formats: Mapping[str, Format], compressed: Callable[[Site], Compressed], out: Path, *,
        dtype: str, on_tensor: Callable[[str, int], None] | None = None,
    ) -> Accounting:  # fmt: skip
        """See `compressed_tensors.write`."""
        return compressed_tensors.write(network, formats, compressed, out, dtype=dtype, on_tensor=on_tensor)

    def parts(self, out: Path) -> Callable[[str], Part]:
        """See `CompressedTensorsSource.read_part`."""
        source = CompressedTensorsSource(out)
        return source.read_part


class GGUFFiles:
    """One file for llama.cpp, tokenizer included."""

    name = "gguf"

    def stored_bytes(self, shape: tuple[int, int], format: Format, dtype: str) -> int:
        """Whole blocks, filled up."""
        return gguf_layout.stored_bytes(shape, format, dtype)

    def kept_bytes(self, network: Network, site: Site, dtype: str) -> int:
        """The bytes of a GGUF file as they are; otherwise its elements in the model's type."""
        return gguf_layout.kept_bytes(network, site, dtype)

    def kept_as(self, network: Network, site: Site, dtype: str) -> str:
        """The model's type, or that of the GGUF file it is copied from."""
        return gguf_layout.kept_as(network, site, dtype)

    def fixed_bytes(self, network: Network, decided: Collection[str], dtype: str) -> int:
        """All other tensors, norms in float32, and what the configuration adds."""
        items = gguf_layout.items_of(network, {}, dtype)
        fixed = sum(item.bytes for item in items if item.info.name not in decided)
        return fixed + sum(stored.padded for stored, _ in gguf_layout.added(network))

    def beside(self, network: Network, dtype: str) -> int:
        """The header, which holds the tokenizer."""
        return gguf.header_bytes(network, dtype)

    def check(self, network: Network, formats: Mapping[str, Format], dtype: str) -> None:
        """Family, options, tensors, tokenizer, formats, and the package that reads them back."""
        gguf.check(network, formats, dtype)

    def write(
        self, network: Network, formats: Mapping[str, Format], compressed: Callable[[Site], Compressed], out: Path, *,
        dtype: str, on_tensor: Callable[[str, int], None] | None = None,
    ) -> Accounting:  # fmt: skip
        """See `gguf.write`."""
        return gguf.write(network, formats, compressed, out, dtype=dtype, on_tensor=on_tensor)

    def parts(self, out: Path) -> Callable[[str], Part]:
        """See `GGUFSource.read_part`."""
        source = GGUFSource(out / gguf.NAME)
        return source.read_part


FILES: Mapping[str, Files] = {files.name: files for files in (CompressedTensorsFiles(), GGUFFiles())}


def files_of(file_format: str) -> Files:
    """The files of a name.

    Raises:
        UnknownName: there are none.
    """
    if file_format not in FILES:
        raise UnknownName(f"no files are called {file_format!r}", expected=f"one of {', '.join(FILES)}")
    return FILES[file_format]
