"""Plain float checkpoints, as `export/files.py` asks: what was compressed is stored as the numbers it stands for.

Nothing becomes smaller by it. It is for engines and tools that know floats alone, and it shows what a compressed model
computes with. A site may be in another float type than the rest: the type of the model in config.json, to which engines
cast what they load, must hold all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from pennyweight.errors import InvalidFormat, InvalidModel
from pennyweight.export.accounting import Accounting
from pennyweight.export.checkpoint import CheckpointFiles, Layout, items_of, write_directory
from pennyweight.export.safetensors_stream import Entry
from pennyweight.formats import Compressed, Dense, Format, Part
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.opening import open_source
from pennyweight.network.sources.source import SafetensorsSource, Source, read_json_object


class DenseFiles(CheckpointFiles):
    """Safetensors of floats, config.json beside them."""

    name = "dense"

    def opens(self, path: Path) -> Source | None:
        """A model directory that says nothing of quantization."""
        if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
            return None
        if "quantization_config" in read_json_object(path / "config.json"):
            return None
        return open_source(path)

    def stored_bytes(self, shape: tuple[int, int], format: Format, dtype: str) -> int:
        """Its elements in its type."""
        _checked("weight", format, dtype)
        return format.stored_bits(shape) // 8

    def check(self, network: Network, formats: Mapping[str, Format], dtype: str) -> None:
        """Formats alone: any network can be written."""
        for name, format in formats.items():
            if name not in network.by_name:
                raise InvalidFormat("there is no such site", expected=f"one of {len(network.sites)}", site=name)
            _checked(name, format, dtype)

    def write(
        self, network: Network, formats: Mapping[str, Format], compressed: Callable[[Site], Compressed], out: Path, *,
        dtype: str, on_tensor: Callable[[str, int], None] | None = None,
    ) -> Accounting:  # fmt: skip
        """See `checkpoint.write_directory`."""
        self.check(network, formats, dtype)
        items = items_of(network, formats, dtype, LAYOUT)
        return write_directory(network, items, compressed, out, LAYOUT, dtype=dtype, on_tensor=on_tensor)

    def parts(self, out: Path) -> Callable[[str], Part]:
        """Every tensor, in its type."""
        source = SafetensorsSource(out)

        def read(name: str) -> Part:
            tensor = source.read(name)
            dtype = source.tensors[name].dtype
            if not tensor.is_floating_point():
                raise InvalidModel(f"{name} is stored as {dtype}", expected="floats", site=str(out))
            return Part(Dense(dtype=dtype), {"values": tensor})

        return read


def _checked(name: str, format: Format, dtype: str) -> Dense:
    wide = Dense(dtype=dtype).dtype
    if not isinstance(format, Dense) or (format.dtype != wide and wide != "float32"):
        raise InvalidFormat(
            f"{format.label()} in float files of a model in {dtype}", expected=f"{dtype}, or a model in float32",
            mend="--dtype float32, which holds all of them", site=name,
        )  # fmt: skip
    return format


def _entries(site: Site, format: Format) -> tuple[Entry, ...]:
    assert isinstance(format, Dense)
    return (Entry(site.parameter, format.dtype, site.shape),)


def _tensors(site: Site, part: Part) -> Iterator[Tensor]:
    del site
    yield part.tensors["values"]


LAYOUT = Layout(entries=_entries, tensors=_tensors, config=lambda _network, _items: {})
