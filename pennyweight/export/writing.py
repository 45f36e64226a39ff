"""What every writer of files does: one part for a site, what is cast, what lies beside, and what became of tensors."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pennyweight.errors import InvalidFormat, InvalidOutput
from pennyweight.export.accounting import Row
from pennyweight.export.safetensors_stream import write_file
from pennyweight.formats import Compressed, Dense, Format, Part
from pennyweight.network.network import Network
from pennyweight.network.sources.source import TensorInfo
from pennyweight.numerics.hashing import of_bytes


class Became(Protocol):
    """What one tensor of the source becomes."""

    @property
    def info(self) -> TensorInfo:
        """Of the source."""
        ...

    @property
    def action(self) -> str:
        """As in the accounting."""
        ...

    @property
    def reason(self) -> str:
        """From what to what, or why."""
        ...

    @property
    def bytes(self) -> int:
        """In the files."""
        ...


def one_part(name: str, format: Format, compressed: Compressed) -> Part:
    """The only part of a compressed site, in the format that was planned.

    Raises:
        InvalidFormat: there are several, or it is in another format.
    """
    part = compressed.parts[0]
    if len(compressed.parts) != 1 or part.format != format:
        found = " + ".join(part.format.label() for part in compressed.parts)
        raise InvalidFormat(
            f"was compressed as {found}", expected=f"one part in {format.label()}, as planned",
            mend="these files hold one format for each tensor", site=name,
        )  # fmt: skip
    return part


def rounded(name: str, tensor: Tensor, dtype: str) -> Tensor:
    """A tensor in another float type.

    Raises:
        InvalidFormat: it overflows.
    """
    try:
        return Dense(dtype=dtype).store(tensor).tensors["values"]
    except InvalidFormat as error:
        error.site = name
        raise


def refuse_foreign(out: Path, patterns: Iterable[str], ours: Collection[str]) -> None:
    """Refuse a directory with files of these patterns that are not of this model.

    Raises:
        InvalidOutput: names the first.
    """
    foreign = sorted(path.name for pattern in patterns for path in out.glob(pattern) if path.name not in ours)
    if foreign:
        raise InvalidOutput(
            f"holds {foreign[0]}, which is not of this model",
            expected="an empty directory, or one that the same command left unfinished",
            mend="choose another output directory", site=str(out),
        )  # fmt: skip


def write_beside(out: Path, files: Mapping[str, bytes | Path]) -> dict[str, str]:
    """Copy tokenizer and the like; the SHA-256 of each."""
    hashes = {}
    for name, content in sorted(files.items()):
        data = content if isinstance(content, bytes) else content.read_bytes()
        write_file(out / name, data)
        hashes[name] = of_bytes(data)
    return hashes


def beside_bytes(network: Network) -> int:
    """Bytes of what is copied."""
    copied = network.source.auxiliary().values()
    return sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in copied)


def write_config(network: Network, out: Path, dtype: str, said: Mapping[str, Any]) -> None:
    """Write config.json of the source with another type, and what is said of these files besides."""
    config = {k: v for k, v in network.source.config.items() if k not in ("quantization_config", "torch_dtype")}
    write_file(out / "config.json", json_bytes({**config, "dtype": dtype, **said}))


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A configuration as it is written: sorted, so that equal ones are equal files."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def rows_of(items: Iterable[Became]) -> tuple[Row, ...]:
    """A row for every tensor of the source."""
    return tuple(
        Row(name=item.info.name, action=item.action, reason=item.reason,
            bytes_before=item.info.bytes, bytes_after=item.bytes)
        for item in items
    )  # fmt: skip
