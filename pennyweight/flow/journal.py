"""A run's directory: every finished piece of work is a file that appeared at once; a killed run goes on where it was.

A piece is written under a temporary name and renamed. Finding a piece therefore means it is whole. The header holds
everything that the pieces depend on; a run with another header does not touch them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pennyweight.errors import DiskFull, InvalidOutput, RunInUse
from pennyweight.export.safetensors_stream import Entry, ShardWriter
from pennyweight.numerics.hashing import canonical

FACTS = "facts"  # name of the tensor that holds JSON bytes


@dataclass(frozen=True)
class Journal:
    """The pieces of one run.

    Args:
        directory: where they lie.
        part: how the name of a file ends that is not finished; every process that writes has its own.
    """

    directory: Path
    part: str = "part"

    def path(self, key: str) -> Path:
        """Where a piece lies; its folder is made."""
        path = self.directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def has(self, key: str) -> bool:
        """Whether a piece is finished."""
        return (self.directory / key).exists()

    def save(self, key: str, value: Any) -> None:
        """Write a value as canonical JSON."""
        with self.writing(key) as path:
            path.write_bytes(canonical(value))

    def load(self, key: str) -> Any:
        """Read a value back."""
        return msgspec.json.decode((self.directory / key).read_bytes())

    def save_tensors(self, key: str, tensors: Mapping[str, Tensor], facts: Any = None) -> None:
        """Write tensors one by one, with facts about them as JSON; no copy of them all is made."""
        text = torch.frombuffer(bytearray(canonical(facts)), dtype=torch.uint8)
        every = {**tensors, FACTS: text}
        entries = [Entry(n, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in every.items()]
        with ShardWriter(self.path(key), entries, part=self.part) as file:
            for name, tensor in every.items():
                file.put(name, tensor)

    def load_tensors(self, key: str) -> dict[str, Tensor]:
        """Read tensors back."""
        loaded: dict[str, Tensor] = load_file(str(self.directory / key))
        del loaded[FACTS]
        return loaded

    def facts(self, key: str) -> Any:
        """The facts saved with tensors."""
        with safe_open(str(self.directory / key), framework="pt") as file:
            return msgspec.json.decode(file.get_tensor(FACTS).numpy().tobytes())

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A temporary path that becomes the piece when the block ends well, and vanishes otherwise.

        Raises:
            DiskFull: there was no room; nothing finished before is touched.
        """
        final = self.path(key)
        temporary = final.with_name(f"{final.name}.{self.part}")
        try:
            with disk_errors(final):
                yield temporary
                temporary.replace(final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def drop(self, key: str) -> None:
        """Delete a piece that nothing needs any more."""
        path = self.directory / key
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's words for a full disk into ours."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not full and not any(f"os error {n}" in str(error) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            raise
        raise DiskFull(
            "there is no room to write this file",
            expected=f"free space on the disk that holds {path.parent}",
            mend="free some space and run the same command again: it goes on where it stopped",
            site=str(path),
        ) from error


@contextmanager
def open_run(directory: Path, header: Mapping[str, Any]) -> Iterator[Journal]:
    """Lock a run's directory and check that it holds this run's work, or nothing.

    Args:
        directory: of the run, made if missing.
        header: everything the pieces depend on: hashes of model and text, settings, versions.

    Raises:
        RunInUse: another process works on it.
        InvalidOutput: it holds another run's work, or cannot be written.
    """
    try:
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR)
    except DiskFull:
        raise
    except OSError as error:
        raise InvalidOutput(
            f"cannot write here: {error.strerror}",
            expected="a directory whose parent can be written to",
            mend="choose another --out",
            site=str(directory),
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunInUse(
                "another process is working on this run",
                expected="one process a run",
                mend="wait for it, stop it, or choose another --out",
                site=str(directory),
            ) from error
        journal = Journal(directory)
        _check_header(journal, header)
        yield journal
    finally:
        os.close(lock)


def _check_header(journal: Journal, header: Mapping[str, Any]) -> None:
    if not journal.has("header.json"):
        journal.save("header.json", header)
        return
    before = journal.load("header.json")
    now = msgspec.json.decode(canonical(header))
    different = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if different:
        raise InvalidOutput(
            f"an unfinished run with other settings is here; different: {', '.join(different)}",
            expected="the same model, text and settings as the run that was interrupted, to go on with it",
            mend=f"run the original command, or remove {journal.directory} to start over",
            site=str(journal.directory),
        )


class Spill:
    """Activations `[windows, length, size]` in float32 on disk; only the windows asked for are in memory."""

    def __init__(self, path: Path, windows: int, length: int, size: int) -> None:
        self.path, self.windows, self.length, self.size = path, windows, length, size
        self._row = length * size * 4

    def write(self, start: int, hidden: Tensor) -> None:
        """Write windows from `start` on."""
        with disk_errors(self.path), self.path.open("r+b" if self.path.exists() else "w+b") as file:
            file.seek(start * self._row)
            file.write(hidden.detach().contiguous().numpy().data.cast("B"))

    def read(self, start: int, stop: int) -> Tensor:
        """Read windows `start` to `stop`."""
        buffer = bytearray((stop - start) * self._row)
        with self.path.open("rb") as file:
            file.seek(start * self._row)
            count = file.readinto(buffer)
        if count != len(buffer):
            raise InvalidOutput(
                f"{len(buffer)} bytes were expected and {count} are there",
                expected="activations of every window",
                mend=f"remove {self.path.parent} and run again",
                site=str(self.path),
            )
        return torch.frombuffer(buffer, dtype=torch.float32).reshape(stop - start, self.length, self.size)
