"""Timing in turn: what is asked, what engines answer, and what becomes of one that fails."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import byte_tokenizer
from tokenizers import pre_tokenizers

from pennyweight.cli import main
from pennyweight.errors import EngineFailed, InvalidMethod, MissingFile, UnknownName
from pennyweight.export.engines import ENGINES, find
from pennyweight.export.probes import FOLDER
from pennyweight.flow.bench.bench import Spread, _Table, bench
from pennyweight.flow.bench.contenders import Contender, chosen, having, own
from pennyweight.flow.bench.process import started
from pennyweight.flow.load import load

# An engine that notes what it reads, takes a known time, and fails where it is told to.
PROBE = """
import json, sys, time
class Timed:
    version = "engine 1"
    def __init__(self, path, options):
        if path.endswith("broken"):
            sys.exit("no such file")
        print("a line of its own")
        self.log, self.options = open(path, "a"), options
    def note(self, *what):
        self.log.write(json.dumps([self.options["name"], *what]) + "\\n")
        self.log.flush()
    def prefill(self, ids):
        if len(ids) > self.options.get("most", 99):
            raise MemoryError("too many texts")
        assert ids.max() < self.options["vocabulary"]
        self.note("read", *ids.shape)
        time.sleep(0.02)
    def step(self, ids):
        self.note("wrote", *ids.shape)
        time.sleep(0.01)
timed = Timed
"""
Make = Callable[..., Contender]
OPTIONS = {"threads": 1, "batch": 2, "length": 12, "vocabulary": 7}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Contender]:
    (tmp_path / "probe.py").write_text(PROBE)

    def contender(name: str, files: str = "log", **options: int) -> Contender:
        return Contender(
            name=name, probe=tmp_path / "probe.py", python=Path(sys.executable), files=tmp_path / files, bytes=5,
            options={"name": name, **options},
        )  # fmt: skip

    return contender


def test_an_engine_answers_with_seconds_and_memory(make: Make, tmp_path: Path) -> None:
    with started(make("one"), OPTIONS) as process:
        assert process.loaded["version"] == "engine 1"
        answer = process.ask(2, 10, 2)
    assert 0.02 <= answer["prefill"] < 1
    assert 0.02 <= answer["decode"] < 1
    assert 1e6 < answer["peak"] < 1e9
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert log == [["one", "read", 2, 10], ["one", "wrote", 2], ["one", "wrote", 2]]


def test_an_engine_that_cannot_load_or_ends_says_why(make: Make, tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="no such file"), started(make("one", "broken"), OPTIONS):
        pass
    bad = Contender(name="x", probe=tmp_path, python=tmp_path / "python", files=tmp_path, bytes=0)
    with pytest.raises(EngineFailed, match="No such file"), started(bad, OPTIONS):
        pass
    with started(make("one", most=1), OPTIONS) as process:
        with pytest.raises(EngineFailed, match="too many texts"):
            process.ask(2, 4, 1)
        assert process.ask(1, 4, 1)["prefill"] > 0  # it goes on
        process._running.kill()
        with pytest.raises(EngineFailed, match="signal 9"):
            process.ask(1, 4, 1)


def test_a_failure_takes_one_row_and_not_the_table(make: Make) -> None:
    found = [make("one"), make("two", most=1), make("three", "broken")]
    table = _Table(found, (1, 2), 10, 2)
    with ExitStack() as stack:
        for contender in found:
            table.start(contender, stack, OPTIONS)
        for batch in (1, 2):
            for contender in found:
                table.ask(contender, batch)
    one, two, three = (table.row(contender) for contender in found)
    assert one.failed == ""
    assert one.version == "engine 1"
    assert 10 < one.prefill[1].median < 10 / 0.02
    assert one.decode[2].median > one.decode[1].median  # two texts in the time of one
    assert "too many texts" in two.failed
    assert "no such file" in three.failed
    assert three.bytes == 5


def test_a_spread_is_of_rates() -> None:
    assert Spread.of(100, [1.0, 4.0, 2.0]) == Spread(median=50.0, least=25.0, most=100.0)


def test_names_and_interpreters(tmp_path: Path) -> None:
    assert chosen(["all"]) == ("pennyweight", "dense", *(engine.name for engine in ENGINES if engine.probe))
    assert "onnxruntime" in chosen(["all"])
    assert chosen(["llama.cpp", "dense"]) == ("dense", "llama.cpp")
    with pytest.raises(UnknownName, match="vlm"):
        chosen(["vlm"])
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    assert having(find("llama.cpp"), [Path(sys.executable), python]) == python
    assert having(find("llama.cpp"), [Path(sys.executable)]) is None


def test_files_are_timed_by_our_run_time_and_their_engine(
    llama_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("compressed_tensors")
    arguments = [
        "bench",
        str(llama_directory),
        "--engine",
        "pennyweight,transformers",
        "--prompt",
        "8",
        "--tokens",
        "2",
    ]
    assert main([*arguments, "--repeats", "1", "--batches", "1,2", "--threads", "1", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["rows"]] == ["pennyweight", "transformers"]
    for row in found["rows"]:
        assert row["failed"] == ""
        assert row["peak"] > row["bytes"] > 0
        assert set(row["prefill"]) == set(row["decode"]) == {"1", "2"}
        assert all(spread["least"] == spread["median"] > 0 for spread in row["decode"].values())
    assert found["without"] == {}


def test_what_cannot_be_asked_is_said(llama_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidMethod, match="300 tokens, and the model has 256"):
        bench(llama_directory, prompt=290, written=10)
    with pytest.raises(MissingFile, match="no such interpreter"):
        bench(llama_directory, prompt=4, written=4, pythons=[llama_directory / "python"])
    assert (
        main(["bench", str(llama_directory), "--engine", "llama.cpp", "--quiet", "--prompt", "4", "--tokens", "2"]) == 0
    )
    assert "without llama.cpp: no interpreter has llama-cpp-python==" in capsys.readouterr().out


# A llama.cpp that notes what it is given; its quantizer makes files of a known size for every type.
LLAMA = """
import json, os, types
__version__ = "0.0 (a stub)"
log = open({log!r}, "a")
llama_log_callback = lambda f: f
llama_log_set = llama_backend_init = llama_memory_clear = llama_synchronize = lambda *_: None
llama_model_default_params = llama_context_default_params = llama_model_quantize_default_params = types.SimpleNamespace
llama_model_load_from_file = lambda path, _: path
llama_get_memory = lambda context: context
llama_init_from_model = lambda model, settings: settings
SIZES = {sizes!r}
for number, name in enumerate(SIZES):
    globals()["LLAMA_FTYPE_MOSTLY_" + name] = number
def llama_batch_init(n, embd, seqs):
    return types.SimpleNamespace(n_tokens=0, token=[0] * n, pos=[0] * n, n_seq_id=[0] * n, logits=[0] * n,
                                 seq_id=[[0] * seqs for _ in range(n)])
def llama_decode(settings, batch):
    n = batch.n_tokens
    rows = list(zip(batch.token[:n], batch.pos[:n], [s[0] for s in batch.seq_id[:n]], map(bool, batch.logits[:n])))
    log.write(json.dumps([settings.n_ctx, settings.n_seq_max, rows]) + "\\n")
    log.flush()
    return 0
def llama_model_quantize(before, after, settings):
    refused = {log!r} + " refuses"
    if os.path.exists(refused) and open(refused).read() in ("all", list(SIZES)[settings.ftype]):
        return 1
    assert open(before.decode(), "rb").read(4) == b"GGUF"
    with open(after.decode(), "wb") as file:
        file.truncate(list(SIZES.values())[settings.ftype])
    return 0
"""


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """An interpreter in which `import llama_cpp` finds the stub."""
    sizes = {kind: 1000 * (number + 1) for number, kind in enumerate(find("llama.cpp").own)}
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "llama_cpp.py").write_text(LLAMA.format(log=str(tmp_path / "log"), sizes=sizes))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path / "stub"}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def test_llama_cpp_is_given_several_texts_at_once(llama: Path, tmp_path: Path) -> None:
    row = find("llama.cpp")
    contender = Contender(name="x", probe=FOLDER / row.probe, python=llama, files=tmp_path / "m.gguf", bytes=0)
    with started(contender, OPTIONS) as process:
        assert process.loaded["version"] == "llama-cpp-python 0.0 (a stub)"
        for _ in range(2):  # from nothing every time
            process.ask(2, 3, 2)
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [entry[:2] for entry in log] == [[24, 2]] * 6
    places = [[row[1:] for row in rows] for _, _, rows in log]
    assert places[:3] == places[3:]
    read, first, second = places[:3]
    assert read == [[0, 0, False], [1, 0, False], [2, 0, True], [0, 1, False], [1, 1, False], [2, 1, True]]
    assert first == [[3, 0, True], [3, 1, True]]
    assert second == [[4, 0, True], [4, 1, True]]


@pytest.mark.parametrize(("size", "kind"), [(1, "Q2_K"), (4400, "Q3_K_L"), (7600, "Q5_0"), (10**9, "Q8_0")])
def test_an_engines_own_rounding_is_the_one_of_the_nearest_size(
    size: int, kind: str, llama: Path, llama_directory: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    model = with_words(llama_directory, tmp_path)
    (tmp_path / "work").mkdir()
    found, folder = own(load(model), find("llama.cpp"), llama, size, tmp_path / "work")
    assert found == kind
    assert [path for path in (tmp_path / "work").rglob("*") if path.is_file()] == [folder / "model.gguf"]


def test_a_kind_that_does_not_fit_is_passed_over(llama: Path, llama_directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model, refuses = with_words(llama_directory, tmp_path), tmp_path / "log refuses"
    refuses.write_text("Q5_0")
    (tmp_path / "work").mkdir()
    assert own(load(model), find("llama.cpp"), llama, 7600, tmp_path / "work")[0] == "Q5_K_M"
    refuses.write_text("all")
    (tmp_path / "again").mkdir()
    with pytest.raises(EngineFailed, match="its quantizer failed: Q8_0"):
        own(load(model), find("llama.cpp"), llama, 7600, tmp_path / "again")


def with_words(directory: Path, place: Path) -> Path:
    """A copy whose tokenizer splits text as llama.cpp knows it."""
    shutil.copytree(directory, place / "model")
    tokenizer = byte_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.save(str(place / "model" / "tokenizer.json"))
    return place / "model"
