"""The kinds of files we write: for each, what it takes, what writes it and what reads it back, in one place.

An engine's row names one of them (`file_format`); nothing else branches on what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from pennyweight.errors import UnknownName
from pennyweight.export.accounting import Accounting
from pennyweight.export.compressed_tensors.files import CompressedTensorsFiles
from pennyweight.export.dense.files import DenseFiles
from pennyweight.export.gguf.files import GGUFFiles
from pennyweight.export.gptq.files import GPTQFiles
from pennyweight.export.onnx.files import OnnxFiles
from pennyweight.export.openvino.files import OpenVINOFiles
from pennyweight.formats import Compressed, Format, Part
from pennyweight.formats.passing import Activations, Passing
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.source import Source


@runtime_checkable
class Files(Protocol):
    """One file format; every size is exact, padding included, unless it says otherwise."""

    @property
    def name(self) -> str:
        """As an engine's row calls it."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files that hold weights."""
        ...

    @property
    def one_file(self) -> bool:
        """Whether a model is one file, tokenizer and all; otherwise it is a directory."""
        ...

    def opens(self, path: Path) -> Source | None:
        """The model that lies at a path, if it is stored in these files, whoever wrote them; headers only.

        Raises:
            CorruptFile: a file's bytes are not what its header says.
            InvalidModel: it is stored in a way we do not read.
        """
        ...

    def handed(self, path: Path) -> Path:
        """What an engine is handed of a path that the user named: the directory, or a file of it.

        Raises:
            MissingFile: there is no such file.
        """
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


FILES: Mapping[str, Files] = {
    files.name: files
    for files in (
        CompressedTensorsFiles(),
        GGUFFiles(),
        GPTQFiles(),
        OnnxFiles(),
        OnnxFiles(name="onnx-int8", level=4),
        OpenVINOFiles(),
        DenseFiles(),
    )
}


@runtime_checkable
class RoundsActivations(Protocol):
    """Files that can say how activations and caches are rounded."""

    def rounding(self, activations: Activations) -> Files:
        """The same files, which say it."""
        ...

    def rounded_bytes(self, shape: tuple[int, int], format: Format, reads: Passing, dtype: str) -> int:
        """Bytes of tensor data of a site that rounds what it reads."""
        ...

    def cache_bytes(self, network: Network, dtype: str) -> int:
        """Bytes of tensor data of scales for keys and values."""
        ...


@runtime_checkable
class StoresParts(Protocol):
    """A source that can say what is stored of a tensor, not only what it stands for."""

    def read_part(self, name: str) -> Part:
        """Codes and scales, exactly as they are stored.

        Raises:
            InvalidModel: there is no such tensor, or it is stored as something that no format of ours is.
        """
        ...


def rounding_files(files: Files) -> RoundsActivations:
    """Files of an engine whose row says that it rounds."""
    assert isinstance(files, RoundsActivations), "an engine's row names roundings that its files cannot say"
    return files


def files_of(file_format: str) -> Files:
    """The files of a name.

    Raises:
        UnknownName: there are none.
    """
    if file_format not in FILES:
        raise UnknownName(f"no files are called {file_format!r}", expected=f"one of {', '.join(FILES)}")
    return FILES[file_format]
