"""What is written beside its place and moved there when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pennyweight.errors import DiskFull, InvalidOutput, MissingFile
from pennyweight.export.safetensors_stream import NO_SPACE


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a name to write a file or a directory under; it becomes `out` at the end, or vanishes.

    Raises:
        InvalidOutput: `out` exists, or cannot be made.
        DiskFull: there is no room.
    """
    check_new(out)
    part = out.absolute().with_name(f".{out.name}.{os.getpid()}.part")
    try:
        yield part
        sync(part.parent)
        check_new(out)  # nobody else made it meanwhile
        part.rename(out)
        sync(part.parent)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise DiskFull(
            "there is no room to write this", expected=f"free space on the disk that holds {out.absolute().parent}",
            mend="free some space, or name another disk", site=str(out),
        ) from error  # fmt: skip
    finally:
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)


def check_new(out: Path) -> None:
    """Refuse a name that is taken, or whose directory is not there.

    Raises:
        MissingFile: there is no such directory.
        InvalidOutput: it is taken.
    """
    if os.path.lexists(out):
        raise InvalidOutput(
            "this is already there", expected="a name that is free", mend="choose another, or remove it", site=str(out)
        )
    if not out.absolute().parent.is_dir():
        raise MissingFile(
            "there is no directory to put it in", expected="a directory", mend="make it first", site=str(out)
        )


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
