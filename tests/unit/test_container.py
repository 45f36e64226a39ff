"""The container: bit for bit, close to the entropy, the same bytes by any number of threads, nothing half-written."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pennyweight.cli import main
from pennyweight.container import Container, coders, cut, entropy
from pennyweight.container.chunks import chunk_size, count
from pennyweight.container.fields import CHUNK, LAYOUTS, PLAIN, TRIED, layouts_of
from pennyweight.errors import CorruptFile, DiskFull, InvalidModel, InvalidOutput, MissingExtra, MissingFile
from pennyweight.flow.packing import unpack as unpacking
from pennyweight.flow.packing.pack import Packed, pack
from pennyweight.flow.packing.unpack import unpack

pytest.importorskip("zstandard", reason="the container extra is not installed")


def tree(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def there_and_back(source: Path, tmp_path: Path, **options: Any) -> Packed:
    """Pack, unpack, compare every byte, and find nothing else lying about."""
    packed = pack(source, tmp_path / "out.pwpack", **options)
    restored = unpack(packed.out, tmp_path / "back")
    if source.is_dir():
        assert tree(restored.out) == tree(source)
    else:
        assert restored.out.read_bytes() == source.read_bytes()
    assert packed.out.stat().st_size == packed.after
    assert sum(account.stored for account in packed.kinds.values()) == pytest.approx(packed.after)
    assert sum(account.size for account in packed.kinds.values()) == pytest.approx(packed.before)
    assert not list(tmp_path.glob(".*"))
    return packed


def odd_tensors() -> dict[str, torch.Tensor]:
    """Everything that comparing floats would miss, in lengths that nothing divides."""
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(-(2**15), 2**15, (4099,), generator=generator, dtype=torch.int16)
    special = torch.tensor([0x7F800001, 0x7FC12345, -1, 0x7F800000, -8388608, 0, -(2**31), 1, 0x00400000])
    return {
        "every_bf16": torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16),
        "every_f16": torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16),
        "random_f16": bits.view(torch.float16),
        "special_f32": special.to(torch.int32).view(torch.float32).repeat(37),
        "f64": torch.randn(101, generator=generator, dtype=torch.float64),
        "empty": torch.empty(0, 7, dtype=torch.bfloat16),
        "one": torch.tensor(1.5),
        "zeros": torch.zeros(70_001, dtype=torch.bfloat16),
        "fp8": torch.randn(333, generator=generator).to(torch.float8_e4m3fn),
        "bool": torch.rand(77, generator=generator) > 0.5,
        "int8": torch.randint(-7, 8, (1009,), generator=generator, dtype=torch.int8),
        "layer.weight_packed": torch.randint(-(2**31), 2**31 - 1, (513, 3), generator=generator, dtype=torch.int32),
        "layer.weight_scale": torch.rand(513, 1, generator=generator).half(),
        "ids": torch.arange(301),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    (directory / "sub" / "deeper").mkdir(parents=True)
    save_file(odd_tensors(), directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps({"model_type": "odd", "list": list(range(2000))}))
    (directory / "empty.txt").write_bytes(b"")
    (directory / "sub" / "deeper" / "ünïcode name.bin").write_bytes(os.urandom(1000))
    return directory


def test_every_bit_of_odd_tensors_comes_back(model: Path, tmp_path: Path) -> None:
    packed = there_and_back(model, tmp_path)
    assert packed.files == 4
    assert packed.as_bytes == {}
    assert {kind for kind, account in packed.kinds.items() if account.size} == {
        "exponents", "mantissas", "codes", "scales", "other",
    }  # fmt: skip
    assert packed.kinds["scales"].size == 513 * 2


def test_the_bytes_do_not_depend_on_threads_or_time(model: Path, tmp_path: Path) -> None:
    made = [pack(model, tmp_path / f"{n}.pwpack", threads=n).out.read_bytes() for n in (1, 2, 5)]
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 100_000, os.urandom(100_003), b"ab" * 3_000_001])
def test_single_files_of_any_kind(data: bytes, tmp_path: Path) -> None:
    source = tmp_path / "file.bin"
    source.write_bytes(data)
    packed = there_and_back(source, tmp_path)
    assert packed.after < len(data) + len(data) / 1000 + 500  # what would grow is kept as it is


def test_a_gaussian_checkpoint_comes_within_two_percent_of_its_entropy(tmp_path: Path) -> None:
    """66.5 % of bfloat16 is what the exponents of a Gaussian leave, whatever its scale."""
    weight = (torch.randn(1200, 1000, generator=torch.Generator().manual_seed(1)) * 0.02).bfloat16()
    save_file({"w": weight}, tmp_path / "m.safetensors")
    packed = there_and_back(tmp_path / "m.safetensors", tmp_path)
    exponents = (weight.view(torch.int16).numpy().view(np.uint16) >> 7 & 255).astype(np.uint8).reshape(-1)
    share = np.bincount(exponents, minlength=256) / exponents.size
    expected = -sum(p * math.log2(p) for p in share if p) * exponents.size / 8
    assert packed.kinds["exponents"].bound == pytest.approx(expected)
    assert expected < packed.kinds["exponents"].stored < 1.03 * expected
    assert packed.ratio == pytest.approx(0.665, abs=0.007)
    assert packed.bound < packed.after < 1.02 * packed.bound


@pytest.mark.parametrize(("bits", "per_byte"), [(2, 4), (3, None), (4, 2)])
def test_packed_codes_are_coded_near_their_entropy(bits: int, per_byte: int | None, tmp_path: Path) -> None:
    """Codes of a Gaussian in words of 32 bits, low bit first, as compressed-tensors packs them."""
    generator = np.random.default_rng(4)
    top = 2 ** (bits - 1)
    codes = np.clip(np.round(generator.normal(size=960_000) * top / 3), -top, top - 1).astype(np.int64) + top
    stream = (codes[:, None] >> np.arange(bits) & 1).astype(np.uint8)
    words = np.packbits(stream.reshape(-1), bitorder="little").view(np.int32)
    save_file({"w.weight_packed": torch.from_numpy(words.copy())}, tmp_path / "m.safetensors")
    packed = there_and_back(tmp_path / "m.safetensors", tmp_path)
    share = np.bincount(codes) / codes.size
    least = -sum(p * math.log2(p) for p in share if p) * codes.size / 8
    assert least * 0.999 < packed.kinds["codes"].stored < 1.03 * least


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_layouts_are_bijections_and_know_their_sizes(name: str) -> None:
    layout = LAYOUTS[name]
    for records in (1, 2, 129):
        data = np.frombuffer(os.urandom(records * layout.stride), dtype=np.uint8)
        streams = layout.split(data)
        assert tuple(map(len, streams)) == layout.sizes(len(data))
        assert len(streams) == len(layout.kinds)
        assert layout.join(streams).tobytes() == data.tobytes()
    assert chunk_size(layout) % layout.stride == 0
    assert 0 < chunk_size(layout) <= CHUNK


def test_block_types_have_the_sizes_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf extra is not installed")
    for kind in gguf.GGMLQuantizationType:
        if kind.name.lower() in {name.removeprefix("gguf ") for name in LAYOUTS}:
            assert TRIED[kind.name][0].stride == gguf.GGML_QUANT_SIZES[kind][1], kind.name


@given(st.binary(max_size=4000), st.integers(1, 40))
def test_counting_and_entropy(data: bytes, repeats: int) -> None:
    stream = np.frombuffer(data * repeats, dtype=np.uint8)
    assert {i: int(n) for i, n in enumerate(count(stream)) if n} == dict(Counter(data * repeats))
    assert 0 <= entropy(count(stream)) <= len(stream) + 1e-9


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(sorted(LAYOUTS)), st.binary(max_size=300), st.integers(1, 30)), max_size=4))
def test_any_chunk_comes_back(parts: list[tuple[str, bytes, int]]) -> None:
    from pennyweight.container.chunks import choose, decode, encode

    for name, seed, repeats in parts:
        layout = LAYOUTS[name]
        data = (seed * repeats)[: len(seed) * repeats // layout.stride * layout.stride]
        if data:
            layout, used = choose(data, (layout,))
            coded = encode(data, layout, used)
            assert sum(map(len, coded.streams)) <= len(data)
            assert decode(coded.streams, coded.how, coded.crc, layout, len(data)) == data


def test_chunks_at_every_border(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pennyweight.container import chunks
    from pennyweight.flow.packing import pack as packing

    monkeypatch.setattr(chunks, "CHUNK", 1024)
    monkeypatch.setattr(packing, "CHUNK", 1024)
    for length in (511, 512, 513, 1023, 1024, 1025, 1536, 4001):
        for dtype in (torch.int8, torch.int16, torch.int32):
            here = tmp_path / f"{length}{dtype}"
            here.mkdir()
            values = torch.randint(0, 9, (length,), generator=torch.Generator().manual_seed(length)).to(dtype)
            save_file({"a": values, "b.weight_packed": values.flip(0)}, here / "m.safetensors")
            there_and_back(here / "m.safetensors", here)


def test_one_tensor_is_read_without_the_rest(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(model, tmp_path / "m.pwpack")
    read = 0
    pread = os.pread

    def counted(handle: int, size: int, offset: int) -> bytes:
        nonlocal read
        read += size
        return pread(handle, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    with Container(packed.out) as container:
        for name, tensor in odd_tensors().items():
            expected = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            assert container.read("model.safetensors", name) == expected
        read = 0
        container.read("model.safetensors", "special_f32")
        assert 0 < read <= 37 * 9 * 4
        with pytest.raises(MissingFile, match="has no tensor nobody"):
            container.read("model.safetensors", "nobody")
        with pytest.raises(MissingFile, match=r"there is no other\.safetensors"):
            container.read("other.safetensors", "one")


def test_gguf_blocks_are_taken_apart(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf extra is not installed")
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    values = generator.normal(size=(64, 512)).astype(np.float32) * 0.02
    kinds = [gguf.GGMLQuantizationType[name] for name in ("Q8_0", "Q4_0", "Q5_1", "TQ2_0")]
    for kind in kinds:
        raw = gguf.quants.quantize(values, kind)
        writer.add_tensor(kind.name, raw, raw_shape=raw.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    packed = there_and_back(tmp_path / "m.gguf", tmp_path)
    assert packed.kinds["scales"].size == 64 * (2 * 512 // 32 * 2 + 4 * 512 // 32 + 2 * 512 // 256)
    assert packed.kinds["codes"].size == 64 * (512 + 256 + 320 + 128)


def test_a_file_whose_header_makes_no_sense_is_packed_as_bytes(tmp_path: Path) -> None:
    overlap = {n: {"dtype": "U8", "shape": [4], "data_offsets": [at, at + 4]} for n, at in (("a", 0), ("b", 2))}
    for name, header in (("overlap", overlap), ("broken", [1, 2])):
        text = json.dumps(header).encode()
        (tmp_path / name).mkdir()
        source = tmp_path / name / "m.safetensors"
        source.write_bytes(len(text).to_bytes(8, "little") + text + b"123456")
        packed = there_and_back(source, tmp_path / name)
        assert list(packed.as_bytes) == ["m.safetensors"]
        assert [run.layouts for run in cut(source)[0]] == [(PLAIN,)]
    assert layouts_of("F8_E8M0", 5)[0].name == "integers"


def test_links_to_files_are_followed_and_others_refused(tmp_path: Path) -> None:
    source = tmp_path / "m"
    source.mkdir()
    (tmp_path / "blob").write_bytes(b"weights")
    (source / "model.bin").symlink_to(tmp_path / "blob")
    packed = pack(source)
    assert packed.out == tmp_path / "m.pwpack"
    assert unpack(packed.out, tmp_path / "back").files == 1
    assert not (tmp_path / "back" / "model.bin").is_symlink()
    assert (tmp_path / "back" / "model.bin").read_bytes() == b"weights"
    packed.out.unlink()
    makers: list[Callable[[Path], object]] = [
        lambda path: path.symlink_to(tmp_path / "nowhere"), lambda path: path.symlink_to(tmp_path / "back"), os.mkfifo,
    ]  # fmt: skip
    for make, words in zip(makers, ("a broken link", "a link to a directory", "not a file"), strict=True):
        make(source / "odd")
        with pytest.raises(InvalidModel, match=words):
            pack(source)
        (source / "odd").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "blob", "m"]


def test_what_cannot_be_packed_is_refused_before_any_work(model: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no such file"):
        pack(tmp_path / "nothing")
    (tmp_path / "hollow" / "sub").mkdir(parents=True)
    with pytest.raises(InvalidModel, match="no file in it"):
        pack(tmp_path / "hollow")
    with pytest.raises(InvalidOutput, match="would lie in the directory"):
        pack(model, model / "m.pwpack")
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InvalidOutput, match="already there"):
        pack(model, tmp_path / "taken")
    with pytest.raises(MissingFile, match="no directory"):
        pack(model, tmp_path / "no" / "where.pwpack")
    assert (tmp_path / "taken").read_text() == "mine"
    for name in ("Twice", "twice"):
        (tmp_path / "folded" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "folded" / name).write_text(name)
    if len(list((tmp_path / "folded").iterdir())) == 2:
        with pytest.raises(InvalidModel, match="small letters"):
            pack(tmp_path / "folded")
    bad = os.fsencode(tmp_path / "hollow" / "sub") + b"/\xff\xfe"
    with open(bad, "wb") as file:  # noqa: PTH123
        file.write(b"x")
    with pytest.raises(InvalidModel, match="not a name that can be packed"):
        pack(tmp_path / "hollow")


def test_unpacking_refuses_what_is_taken_and_what_does_not_fit(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(model)
    with pytest.raises(InvalidOutput, match="already there"):
        unpack(packed.out)  # its own source
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(DiskFull, match="10 are free"):
        unpack(packed.out, tmp_path / "back")
    with pytest.raises(MissingFile, match="no such file"):
        unpack(tmp_path / "nothing.pwpack")
    with pytest.raises(MissingFile, match="this is a directory"):
        unpack(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.pwpack"]


@pytest.mark.parametrize("verb", [pack, unpack])
def test_a_full_disk_leaves_nothing(verb: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.bin").write_bytes(b"x" * 5000)
    source = tmp_path / "file.bin" if verb is pack else pack(tmp_path / "file.bin").out
    before = sorted(tmp_path.iterdir())

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="no room"):
        verb(source, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_directory_is_named_by_where_it_is(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model / "sub")
    assert pack("..").out == model.parent / "model.pwpack"


def test_a_file_that_changes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pennyweight.flow.packing import pack as packing

    source = tmp_path / "file.bin"
    for change in (b"shorter", b"much longer than it was"):
        source.write_bytes(b"0123456789")

        def meddling(path: Path, change: bytes = change) -> Any:
            found = cut(path)
            path.write_bytes(change)
            return found

        monkeypatch.setattr(packing, "cut", meddling)
        with pytest.raises(CorruptFile, match="changed while it was packed"):
            pack(source)
        assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("verb", ["pack", "unpack"])
def test_an_interruption_leaves_nothing(
    verb: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from pennyweight.flow.packing import pack as packing

    arguments = ["pack", str(model), str(tmp_path / "out"), "--quiet"]
    if verb == "unpack":
        pack(model, tmp_path / "m.pwpack")
        arguments = ["unpack", str(tmp_path / "m.pwpack"), str(tmp_path / "out"), "--quiet"]
    before, threads = sorted(path.name for path in tmp_path.iterdir()), threading.active_count()
    calls = 0

    def interrupted(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return keep(*given)

    target, name = (packing, "encode") if verb == "pack" else (Container, "decode")
    keep = getattr(target, name)
    monkeypatch.setattr(target, name, interrupted)
    assert main(arguments) == 130
    assert capfd.readouterr().err.strip() == "Interrupted."
    assert calls >= 5
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    patience = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < patience:  # a chunk is coded to its end
        time.sleep(0.01)
    assert threading.active_count() <= threads


def test_without_zstandard_it_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="zstandard"):
        pack(model)
    with pytest.raises(MissingExtra, match="zstandard"):
        unpack(model / "config.json")


def test_the_verbs_print_json_and_tables(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(model), str(tmp_path / "a.pwpack"), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["bytes_before"] == sum(len(data) for data in tree(model).values())
    assert told["bytes_after"] == (tmp_path / "a.pwpack").stat().st_size
    assert told["ratio"] == pytest.approx(told["bytes_after"] / told["bytes_before"])
    assert told["entropy_bound"] == pytest.approx(sum(kind["bound"] for kind in told["kinds"].values()))
    assert set(told["seconds"]) == {"packing", "reading back"}
    assert main(["unpack", str(tmp_path / "a.pwpack"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["sha256"] == told["sha256"]
    assert tree(tmp_path / "a") == tree(model)
    assert main(["pack", str(model), str(tmp_path / "b.pwpack"), "--quiet"]) == 0
    shown = capfd.readouterr()
    assert "exponents" in shown.out
    assert not shown.err
    assert main(["unpack", str(tmp_path / "b.pwpack"), "--quiet"]) == 0
    assert "every hash as it was packed" in capfd.readouterr().out
    assert main(["unpack", str(model / "config.json")]) == 2
    assert "CorruptFile" in capfd.readouterr().err
