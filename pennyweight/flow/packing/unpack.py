"""Restore what a container holds, every hash checked before anything gets its name."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pennyweight.container import Container, PackedFile
from pennyweight.errors import CorruptFile, DiskFull
from pennyweight.flow.packing.staging import check_new, staged, sync
from pennyweight.flow.packing.threads import cores, in_order
from pennyweight.flow.progress import QUIET, Advance, Progress

SUFFIX = ".pwpack"


class Hash(Protocol):
    """What `hashlib` makes."""

    def update(self, data: bytes, /) -> None:
        """Read more bytes."""
        ...

    def hexdigest(self) -> str:
        """Of all bytes so far."""
        ...


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """What was restored.

    Args:
        out: the file or directory.
        files: restored.
        size: of all of them, in bytes.
        packed: bytes of the container.
        sha256: over paths and hashes of the files.
        seconds: it took.
    """

    out: Path
    files: int
    size: int
    packed: int
    sha256: str
    seconds: float


def unpack(
    path: str | Path, out: str | Path | None = None, *, threads: int | None = None, progress: Progress = QUIET
) -> Unpacked:
    """Restore the file or the directory that was packed, bit for bit.

    Args:
        path: the container.
        out: what to make; without it, the container's name without `.pwpack`.
        threads: that decode chunks; without it, as many as there are cores.
        progress: told about every byte.

    Raises:
        MissingExtra: zstandard is not installed.
        MissingFile: there is no such container.
        CorruptFile: it is not whole, or its bytes are not what was packed; nothing is left of `out`.
        InvalidOutput: `out` is taken.
        DiskFull: it would not fit.
    """
    path, threads = Path(path), threads or cores()
    with Container(path) as container:
        out = Path(out) if out is not None else _usual(path)
        check_new(out)
        _check_room(container, out)
        with staged(out) as part, progress.stage("unpacking", container.index.size) as advance:
            for file in container.index.files:
                target = part if container.index.single else part / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as stream:
                    _restore(container, file, stream.write, threads, advance)
                    stream.flush()
                    os.fsync(stream.fileno())
            for folder in (folder for folder, _, _ in os.walk(part)):
                sync(Path(folder))
        index = container.index
        return Unpacked(
            out=out, files=len(index.files), size=index.size, packed=path.stat().st_size, sha256=index.sha256,
            seconds=progress.seconds["unpacking"],
        )  # fmt: skip


def check_contents(container: Container, *, threads: int, progress: Progress = QUIET) -> None:
    """Decode everything and check every hash; nothing is written.

    Raises:
        CorruptFile: something is not what was packed.
    """
    with progress.stage("reading back", container.index.size) as advance:
        for file in container.index.files:
            _restore(container, file, len, threads, advance)


def _restore(
    container: Container, file: PackedFile, write: Callable[[bytes], object], threads: int, advance: Advance
) -> None:
    digest = hashlib.sha256()
    for _, data in in_order(container.decode, container.pieces(file), threads):
        digest.update(data)
        write(data)
        advance(len(data))
    if digest.hexdigest() != file.sha256:
        raise CorruptFile(
            f"{file.path} is not what was packed (its SHA-256 differs)", expected=file.sha256,
            mend="copy or download the container again", site=str(container.path),
        )  # fmt: skip


def _usual(path: Path) -> Path:
    named = path.absolute()
    return named.with_suffix("") if named.suffix == SUFFIX else named.with_name(f"{named.name}.unpacked")


def _check_room(container: Container, out: Path) -> None:
    free, size = shutil.disk_usage(out.absolute().parent).free, container.index.size
    if size > free:
        raise DiskFull(
            f"what it holds takes {size} bytes and {free} are free", expected=f"room beside {out}",
            mend="free some space, or name another disk", site=str(container.path),
        )  # fmt: skip
