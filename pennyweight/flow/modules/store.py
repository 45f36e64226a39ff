"""A compressed module as a file: every compressed tensor as the bytes of its format, everything else in 16 bits.

model.safetensors holds those bytes as `name.packed`, and under their own names all other parameters and the buffers.
module.json says the format of every tensor and how its matrix lies in it. Whoever has the module's code restores it bit
for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import load_file
from torch import Tensor, nn

from pennyweight import formats
from pennyweight.errors import CorruptFile, InvalidModel, MissingFile
from pennyweight.export.safetensors_stream import Entry, ShardWriter, write_file
from pennyweight.formats import Compressed, Dense, Format, Part
from pennyweight.network.network import Site
from pennyweight.network.sources.module import module_with
from pennyweight.network.sources.source import as_described
from pennyweight.numerics.hashing import canonical

WEIGHTS, ABOUT = "model.safetensors", "module.json"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Stored:
    """The tensors of a compressed module as they lie in its file.

    Args:
        tensors: by the name in the file.
        about: format, layout, shape of the matrix and of the tensor, of every compressed parameter.
        kind: class of the module.
    """

    tensors: Mapping[str, Tensor]
    about: Mapping[str, Mapping[str, Any]]
    kind: str

    @property
    def bytes(self) -> int:
        """Of all tensors: codes, scales, zero points, and everything dense."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def pack(module: nn.Module, compressed: Mapping[str, tuple[Site, Compressed]], dtype: str) -> Stored:
    """Everything a module stores.

    Args:
        module: the reference.
        compressed: of some of its parameters, with the site whose matrix it is.
        dtype: of all other parameters, but those that are in 16 bits already.

    Raises:
        InvalidFormat: a value overflows the type.
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if name not in compressed:
            tensors[name] = _dense(parameter.detach(), dtype)
            continue
        site, result = compressed[name]
        (part,) = result.parts
        tensors[f"{name}.packed"] = part.format.pack(part.tensors, site.shape)
        about[name] = {
            "format": part.format.label(), "layout": site.layout, "matrix": list(site.shape),
            "shape": list(parameter.shape),
        }  # fmt: skip
    return Stored(tensors | _buffers(module), about, type(module).__name__)


def unpack(module: nn.Module, stored: Stored, *, site: str = "") -> nn.Module:
    """A copy of a module with the stored weights in place.

    Raises:
        InvalidModel: the tensors are not those of this module.
    """
    with as_described(lambda error: _undescribed(error, site)):
        return _unpacked(module, stored, site)


def _unpacked(module: nn.Module, stored: Stored, site: str) -> nn.Module:
    parameters, buffers, values = dict(module.named_parameters()), _buffers(module), dict[str, Tensor]()
    taken = {f"{name}.packed" for name in stored.about}
    known = {n for n in stored.tensors if n not in taken} | set(stored.about)
    if known != parameters.keys() | buffers.keys():
        wrong = sorted(known ^ (parameters.keys() | buffers.keys()))
        raise InvalidModel(
            f"{len(wrong)} tensors are only on one side, such as {wrong[0]}",
            expected=f"a module of the kind that was compressed ({stored.kind}), tied in the same way",
            mend="build the module as it was built then", site=site,
        )  # fmt: skip
    for name, parameter in parameters.items():
        own = stored.about.get(name)
        shape = tuple(own["shape"]) if own else tuple(stored.tensors[name].shape)
        if shape != tuple(parameter.shape):
            raise InvalidModel(
                f"{name} is {list(shape)} in the file and {list(parameter.shape)} in the module", site=site,
                expected="equal shapes", mend="build the module with the configuration it had",
            )  # fmt: skip
        values[name] = stored.tensors[name] if own is None else _decoded(stored.tensors, name, own)
    own_copy = module_with(module, values).eval()
    copied = dict(own_copy.named_buffers())
    for name in buffers:
        copied[name].copy_(stored.tensors[name])
    return own_copy.requires_grad_(False)


def _undescribed(error: str, site: str) -> InvalidModel:
    return InvalidModel(
        f"{ABOUT} does not describe these weights ({error})", expected="the files as they were written",
        mend="restore them from a copy", site=site,
    )  # fmt: skip


def write(stored: Stored, directory: Path) -> None:
    """Write both files.

    Raises:
        DiskFull: there is no room for them.
        InvalidOutput: the directory cannot be written to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    entries = [Entry(n, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in stored.tensors.items()]
    with ShardWriter(directory / WEIGHTS, entries) as file:
        for name, tensor in stored.tensors.items():
            file.put(name, tensor)
    about = {"version": VERSION, "kind": stored.kind, "tensors": stored.about}
    write_file(directory / ABOUT, canonical(about))


def read(directory: Path) -> Stored:
    """Read both files back.

    Raises:
        MissingFile: one is not there.
        CorruptFile: one is not what `write` writes.
    """
    for name in (WEIGHTS, ABOUT):
        if not (directory / name).is_file():
            raise MissingFile(
                f"there is no {name}", expected="a directory that save_compressed wrote",
                mend="check the path", site=str(directory),
            )  # fmt: skip
    try:
        about = msgspec.json.decode((directory / ABOUT).read_bytes())
        if about["version"] != VERSION:
            raise ValueError(f"version {about['version']}, and this reads {VERSION}")
        return Stored(load_file(str(directory / WEIGHTS)), about["tensors"], about["kind"])
    except Exception as error:
        raise CorruptFile(
            f"cannot be read: {str(error).splitlines()[0]}", expected="the files as they were written",
            mend="restore them from a copy", site=str(directory),
        ) from error  # fmt: skip


def packed_bytes(shape: tuple[int, int], format: Format) -> int:
    """What a matrix takes in the file."""
    return sum(field.bytes for field in format.fields(shape))


def dense_bytes(module: nn.Module, leave_out: set[str] | frozenset[str] = frozenset()) -> int:
    """What a module takes with its parameters in 16 bits and its buffers as they are; some may be left out."""
    widths = {name: 2 if p.is_floating_point() else p.element_size() for name, p in module.named_parameters()}
    own = sum(p.numel() * widths[name] for name, p in module.named_parameters() if name not in leave_out)
    return own + sum(buffer.numel() * buffer.element_size() for buffer in _buffers(module).values())


def _dense(value: Tensor, dtype: str) -> Tensor:
    if not value.is_floating_point() or value.element_size() == 2:
        return value
    return Dense(dtype=dtype).store(value).tensors["values"]


def _decoded(tensors: Mapping[str, Tensor], name: str, about: Mapping[str, Any]) -> Tensor:
    format, (rows, columns) = formats.parse(about["format"]), about["matrix"]
    parts = format.unpack(tensors[f"{name}.packed"], (rows, columns))
    site = Site(
        name=name, block=None, shape=(rows, columns), reads="", writes="", role="", layout=about["layout"]
    )  # fmt: skip
    return site.restored(Compressed((Part(format, parts),), (rows, columns)).dequantize(), about["shape"])


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that a checkpoint holds; in the file they keep their types."""
    stored = module.state_dict().keys()
    return {name: buffer.detach() for name, buffer in module.named_buffers() if name in stored}
