"""Containers that lie: a clear error each time, and nothing written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pennyweight.container import MAGIC, Container, Index, PackedFile, Segment, footer, safe, whole
from pennyweight.container.index import FOOTER, INDEX_LIMIT
from pennyweight.errors import CorruptFile, PennyweightError
from pennyweight.flow.packing.pack import pack
from pennyweight.flow.packing.unpack import unpack

zstandard = pytest.importorskip("zstandard", reason="the container extra is not installed")

Change = Callable[[Index], Index]


@pytest.fixture
def honest(tmp_path: Path) -> Path:
    (tmp_path / "m" / "sub").mkdir(parents=True)
    (tmp_path / "m" / "a.txt").write_bytes(b"abcabcabc" * 300)
    (tmp_path / "m" / "sub" / "b.bin").write_bytes(np.random.default_rng(0).bytes(500))
    return pack(tmp_path / "m").out


def rebuilt(container: Path, change: Change = lambda index: index, streams: bytes | None = None) -> Path:
    """A container with another table, and hashes that agree with it."""
    data = container.read_bytes()
    start, length, _, _ = FOOTER.unpack(data[-FOOTER.size :])
    index = change(msgspec.msgpack.decode(data[start : start + length], type=Index))
    body = MAGIC + (data[len(MAGIC) : start] if streams is None else streams)
    table = msgspec.msgpack.encode(index)
    container.write_bytes(body + table + footer(len(body), table))
    return container


def with_files(index: Index, files: tuple[PackedFile, ...]) -> Index:
    return msgspec.structs.replace(index, files=files, sha256=whole(files))


def renamed(*names: str) -> Change:
    def change(index: Index) -> Index:
        pairs = zip(index.files, names, strict=True)
        return with_files(index, tuple(msgspec.structs.replace(file, path=name) for file, name in pairs))

    return change


def first_segment(**fields: object) -> Change:
    def change(index: Index) -> Index:
        first, *others = index.files
        segments = (msgspec.structs.replace(first.segments[0], **fields), *first.segments[1:])
        size = sum(segment.size for segment in segments)
        return with_files(index, (msgspec.structs.replace(first, segments=segments, size=size), *others))

    return change


def refused(path: Path, words: str) -> None:
    with pytest.raises(CorruptFile, match=words) as caught:
        unpack(path, path.parent / "out")
    assert caught.value.site
    assert caught.value.expected
    assert sorted(p.name for p in path.parent.iterdir()) == ["m", "m.pwpack"]


def test_rebuilding_alone_changes_nothing(honest: Path) -> None:
    before = honest.read_bytes()
    assert rebuilt(honest).read_bytes() == before


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/../../evil", "", ".", "a//b", "a/.", "nul\0byte", "x" * 256, "d/" * 1500 + "f"]
)
def test_names_that_leave_the_directory_are_refused(name: str, honest: Path) -> None:
    assert not safe(name)
    refused(rebuilt(honest, renamed(name, "fine")), "a file is called")


def test_names_that_collide_are_refused(honest: Path) -> None:
    data = honest.read_bytes()
    refused(rebuilt(honest, renamed("same", "same")), "two files have the same name")
    refused(rebuilt(honest, renamed("Same", "same")), "small letters")
    refused(rebuilt(honest, renamed("a\\b", "same")), "a file is called")
    refused(rebuilt(honest, renamed("a\nb", "same")), "a file is called")
    honest.write_bytes(data)
    refused(rebuilt(honest, renamed("same", "same/below")), "'same' is a file and a directory")
    honest.write_bytes(data)
    refused(rebuilt(honest, lambda index: msgspec.structs.replace(index, single=True)), "should hold one file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (first_segment(size=2**40), "do not fit"),
        (first_segment(size=-5), "do not fit"),
        (first_segment(size=2701), "takes? 2701|declares|has"),
        (first_segment(layout="pickle"), "do not fit"),
        (first_segment(layout="float64"), "do not fit"),
        (first_segment(table=b""), "do not fit"),
        (first_segment(table=b"\xff" * 9), "do not fit"),
        (first_segment(table=b"\x00" * 9), "chunks take"),
        (lambda i: with_files(i, tuple(msgspec.structs.replace(f, size=f.size + 1) for f in i.files)), "make up"),
        (lambda i: with_files(i, i.files[:1]), "chunks take"),
        (lambda i: msgspec.structs.replace(i, sha256="0" * 64), "hash of the whole"),
        (lambda i: with_files(i, tuple(msgspec.structs.replace(f, sha256="0") for f in i.files)), "SHA-256 differs"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(change: Change, words: str, honest: Path) -> None:
    refused(rebuilt(honest, change), words)


def bomb(frame: bytes, declared: int) -> Change:
    table = np.array((0, [1], [len(frame)]), dtype=[("crc", "<u4"), ("how", "u1", (1,)), ("length", "<u4", (1,))])
    file = PackedFile("bomb", declared, "0" * 64, (Segment("", declared, "bytes", table.tobytes()),))
    return lambda index: with_files(index, (file,))


def test_a_frame_that_holds_more_than_it_should_is_never_expanded(honest: Path) -> None:
    """Sixteen gigabytes of zeros, declared in the frame or not, behind a table that says a thousand bytes."""
    import resource

    data = honest.read_bytes()
    small = zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * 900_000)
    large = b"".join([b"\x28\xb5\x2f\xfd\xe0", (2**34).to_bytes(8, "little"), b"\x01\x00\x00"])
    twice = zstandard.ZstdCompressor().compress(b"\0" * 1000) * 2
    for frame, words in (
        (small, "declares"),
        (large, f"declares {2**34}"),
        (twice, "cannot be decoded"),
        (b"x", "cannot"),
    ):
        honest.write_bytes(data)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused(rebuilt(honest, bomb(frame, 1000), frame), words)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # kilobytes


def test_footers_that_lie_are_refused(honest: Path) -> None:
    data = honest.read_bytes()
    start, length, digest, magic = FOOTER.unpack(data[-FOOTER.size :])
    for fields, words in (
        ((2**63, length, digest, magic), "said to be"), ((start, 2**63, digest, magic), "said to be"),
        ((start, INDEX_LIMIT + 1, digest, magic), "said to be"), ((0, len(data), digest, magic), "said to be"),
        ((start - 1, length + 1, digest, magic), "SHA-256 differs"), ((start, length, digest, b"PWPACK2\n"), "cut off"),
    ):  # fmt: skip
        honest.write_bytes(data[: -FOOTER.size] + FOOTER.pack(*fields))
        refused(honest, words)
    for table in (
        b"",
        b"\xc1",
        b"\x93" * 100_000,
        b"\x93\xc2\xa0\xdd\xff\xff\xff\xff",
        msgspec.msgpack.encode([1, 2, 3]),
    ):
        honest.write_bytes(MAGIC + table + FOOTER.pack(len(MAGIC), len(table), hashlib.sha256(table).digest(), MAGIC))
        refused(honest, "table cannot be read")


def test_every_truncation_is_refused(honest: Path) -> None:
    data = honest.read_bytes()
    for length in range(len(data)):
        honest.write_bytes(data[:length])
        with pytest.raises(CorruptFile):
            Container(honest)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_always_found(position: int, bit: int, honest: Path) -> None:
    data = bytearray(honest.read_bytes())
    data[position % len(data)] ^= 1 << bit
    damaged = honest.parent / "m.pwpack"
    kept = honest.read_bytes()
    damaged.write_bytes(data)
    try:
        with pytest.raises(PennyweightError):
            unpack(damaged, honest.parent / "out")
        assert sorted(path.name for path in honest.parent.iterdir()) == ["m", "m.pwpack"]
    finally:
        damaged.write_bytes(kept)
