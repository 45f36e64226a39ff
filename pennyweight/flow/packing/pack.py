"""Pack a file or a directory into one container, without loss."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from pennyweight.container import (
    MAGIC,
    Coded,
    Container,
    Index,
    PackedFile,
    Segment,
    choose,
    chunk_size,
    cut,
    encode,
    footer,
    record,
    require,
    safe,
    whole,
)  # fmt: skip
from pennyweight.container.cutting import Cut
from pennyweight.container.fields import CHUNK, Layout
from pennyweight.container.index import INDEX_LIMIT
from pennyweight.errors import CorruptFile, InvalidModel, InvalidOutput, MissingFile
from pennyweight.flow.packing.accounts import Account, Accounts, Tally
from pennyweight.flow.packing.staging import staged
from pennyweight.flow.packing.threads import cores, in_order
from pennyweight.flow.packing.unpack import SUFFIX, Hash, check_contents
from pennyweight.flow.progress import QUIET, Advance, Progress


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What packing came to.

    Args:
        out: the container.
        files: in it.
        before: bytes of the files.
        after: bytes of the container, table included.
        sha256: over paths and hashes of the files.
        kinds: of streams, and what became of each.
        as_bytes: files that should hold tensors and were packed as bytes, with the reason.
        seconds: by stage.
    """

    out: Path
    files: int
    before: int
    after: int
    sha256: str
    kinds: Mapping[str, Account]
    as_bytes: Mapping[str, str]
    seconds: Mapping[str, float]

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before if self.before else 1.0

    @property
    def bound(self) -> float:
        """Order-0 entropy of all streams, in bytes."""
        return sum(account.bound for account in self.kinds.values())

    def summary(self) -> dict[str, object]:
        """Numbers for machines."""
        return {
            "out": str(self.out), "files": self.files, "bytes_before": self.before, "bytes_after": self.after,
            "ratio": self.ratio, "entropy_bound": self.bound, "sha256": self.sha256,
            "kinds": {kind: asdict(account) for kind, account in self.kinds.items()}, "as_bytes": self.as_bytes,
            "seconds": self.seconds,
        }  # fmt: skip


@dataclass(eq=False)
class _Run:
    """One run of a file, while its chunks are coded."""

    cut: Cut
    layout: Layout
    coders: tuple[int, ...]
    tally: Tally
    table: bytearray = field(default_factory=bytearray)
    done: int = 0

    def add(self, data: bytes, coded: Coded) -> None:
        """Note a chunk that was written."""
        self.table += record(coded, self.layout)
        self.tally.add(len(data), coded)
        self.done += len(data)
        if self.done == self.cut.size:
            self.tally.close()


@dataclass(frozen=True, eq=False)
class _Chunk:
    run: _Run
    data: bytes


def pack(
    source: str | Path, out: str | Path | None = None, *, threads: int | None = None, progress: Progress = QUIET
) -> Packed:
    """Pack every file of a directory, or one file, into a container that is read back before it gets its name.

    Args:
        source: a directory or a file. Links to files are followed; of a file only its name and bytes are kept.
        out: the container; without it, the name of `source` with `.pwpack` behind it.
        threads: that code chunks; without it, as many as there are cores. The bytes do not depend on it.
        progress: told about every byte.

    Raises:
        MissingExtra: zstandard is not installed.
        MissingFile: there is no such source.
        InvalidModel: it holds no file, or something that is no file.
        InvalidOutput: `out` is taken, or lies in `source`.
        CorruptFile: a file changed while it was read.
    """
    require()
    source, threads = Path(source), threads or cores()
    files = listed(source)
    out = Path(os.path.abspath(source) + SUFFIX) if out is None else Path(out)  # noqa: PTH100 `..` has no name
    if source.is_dir() and out.absolute().resolve().is_relative_to(source.resolve()):
        raise InvalidOutput(
            "the container would lie in the directory it is made of", expected="another place",
            mend="name one as the second argument", site=str(out),
        )  # fmt: skip
    before = sum(path.stat().st_size for path in files.values())
    accounts, packed, reasons = Accounts(), [], {}
    with staged(out) as part:
        with part.open("xb") as target, progress.stage("packing", before) as advance:
            target.write(MAGIC)
            for name, path in files.items():
                runs, reason = cut(path)
                if reason:
                    reasons[name] = reason
                file = _pack_file(name, path, runs, target, accounts, threads, advance)
                packed.append(file)
            start, index = target.tell(), Index(source.is_file(), whole(packed), tuple(packed))
            table = msgspec.msgpack.encode(index)
            if len(table) > INDEX_LIMIT:
                raise InvalidModel(
                    f"the table of its chunks takes {len(table)} bytes", expected=f"at most {INDEX_LIMIT}",
                    mend="pack its files one by one", site=str(source),
                )  # fmt: skip
            target.write(table + footer(start, table))
            target.flush()
            os.fsync(target.fileno())
        with Container(part) as container:
            check_contents(container, threads=threads, progress=progress)
        after = part.stat().st_size
    kinds = {**accounts.kinds, "table": Account(stored=after - accounts.total().stored)}
    return Packed(
        out=out, files=len(files), before=index.size, after=after, sha256=index.sha256, kinds=kinds,
        as_bytes=reasons, seconds=dict(progress.seconds),
    )  # fmt: skip


def listed(source: Path) -> dict[str, Path]:
    """Every file to pack, by the name it will have, sorted.

    Raises:
        MissingFile: the source is not there.
        InvalidModel: it holds no file, or something that cannot be packed.
    """
    if not source.exists():
        raise MissingFile(
            "there is no such file or directory", expected="a model", mend="check the path", site=str(source)
        )
    if not source.is_dir():
        found = {source.name: source}
    else:
        entries = {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*"))}
        found = {name: path for name, path in entries.items() if path.is_symlink() or not path.is_dir()}
    for name, path in found.items():
        if not path.is_file() or not safe(name):
            what = "a link to a directory" if path.is_dir() else "not a file" if path.exists() else "a broken link"
            raise InvalidModel(
                f"{name!r} is {what if not path.is_file() else 'not a name that can be packed'}",
                expected="files, links to files, and directories of them, with plain names in UTF-8",
                mend="remove it, or put a copy in its place", site=str(source),
            )  # fmt: skip
    folded: dict[str, str] = {}
    for name in found:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise InvalidModel(
                f"{other!r} and {name!r} are one file to disks that do not tell small letters from large ones",
                expected="names that differ in more than that", mend="rename one of them", site=str(source),
            )  # fmt: skip
    if not found:
        raise InvalidModel("there is no file in it", expected="a model", mend="check the path", site=str(source))
    return found


def _pack_file(
    name: str, path: Path, cuts: tuple[Cut, ...], target: BinaryIO, accounts: Accounts, threads: int, advance: Advance
) -> PackedFile:
    digest, runs = hashlib.sha256(), list[_Run]()
    with path.open("rb") as stream:
        chunks = _read(stream, path, cuts, runs, digest, accounts)
        for chunk, coded in in_order(_encode, chunks, threads):
            target.writelines(coded.streams)
            chunk.run.add(chunk.data, coded)
            advance(len(chunk.data))
        if stream.read(1):
            raise _changed(path)
    segments = tuple(Segment(run.cut.name, run.cut.size, run.layout.name, bytes(run.table)) for run in runs)
    return PackedFile(name, sum(segment.size for segment in segments), digest.hexdigest(), segments)


def _read(
    stream: BinaryIO, path: Path, cuts: tuple[Cut, ...], runs: list[_Run], digest: Hash, accounts: Accounts
) -> Iterator[_Chunk]:
    """Chunks in the order of the file; every run is added to `runs` before its first."""
    for part in cuts:
        first = _take(stream, min(part.size, CHUNK), path, digest)
        layout, coders = choose(first, part.layouts)
        run = _Run(part, layout, coders, accounts.begin(part.name, layout))
        runs.append(run)
        step, position = chunk_size(layout), 0
        while position < part.size:
            more = min(step, part.size - position) - len(first)
            data = first + _take(stream, more, path, digest) if more > 0 else first
            first = data[step:]
            yield _Chunk(run, data[:step])
            position += min(step, part.size - position)


def _take(stream: BinaryIO, size: int, path: Path, digest: Hash) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise _changed(path)
    digest.update(data)
    return data


def _encode(chunk: _Chunk) -> Coded:
    return encode(chunk.data, chunk.run.layout, chunk.run.coders)


def _changed(path: Path) -> CorruptFile:
    return CorruptFile(
        "it changed while it was packed", expected="a file nobody writes to", mend="pack it again", site=str(path)
    )
