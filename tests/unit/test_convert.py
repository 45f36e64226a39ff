"""From every kind of files to every other: equal numbers where they fit, and the truth where they do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import SHAPE, build, byte_tokenizer
from tokenizers import pre_tokenizers

from pennyweight import formats
from pennyweight.cli import main
from pennyweight.errors import (
    InvalidFormat,
    InvalidMethod,
    InvalidModel,
    InvalidOutput,
    MissingFile,
    PennyweightError,
    UnknownName,
    VerificationFailed,
)
from pennyweight.export import FILES
from pennyweight.export.engines import ENGINES, find
from pennyweight.flow import artifact
from pennyweight.flow.converting.convert import Settings, convert, target
from pennyweight.flow.load import load
from pennyweight.flow.verify import verify
from pennyweight.formats import Compressed, Format
from pennyweight.network.network import Network, Site

pytest.importorskip("gguf", reason="the gguf extra is not installed")

pytestmark = pytest.mark.xdist_group("convert")  # one process makes the sources

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "vocab_size": 264,
    "num_hidden_layers": 1,
    "tie_word_embeddings": False,
}
QUICK = Settings(windows=1, length=24)
# What every engine of these kinds holds: codes of four and eight bits around zero, with a scale for 32 inputs.
PLAIN = {"compressed-tensors": ("int4 g32 sym", "int8 g32 sym"), "gguf": ("q4_0", "q8_0"),
         "gptq": ("int4 g32 sym", "int8 g32 sym")}  # fmt: skip
Stored = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama in float16 whose tokenizer llama.cpp has a name for, so that no dense tensor hangs on a type."""
    directory = tmp_path_factory.mktemp("model") / "llama"
    made = cast(Any, build({"model_type": "llama", **SHAPE, **WIDE}))
    made.half().save_pretrained(directory)
    tokenizer = byte_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.add_special_tokens(["<|endoftext|>"])  # which transformers adds to what it reads of a GGUF file without
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def stored(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """A directory of one kind: `stored(kind, *labels)`, labels in turn over the linear layers."""
    made: dict[tuple[str, ...], Path] = {}
    network = load(model)

    def get(kind: str, *labels: str) -> Path:
        if (kind, *labels) not in made:
            made[kind, *labels] = tmp_path_factory.mktemp("stored") / kind
            write(network, kind, labels, made[kind, *labels])
        return made[kind, *labels]

    return get


def write(network: Network, kind: str, labels: tuple[str, ...], out: Path, dtype: str = "float16") -> None:
    linear = [site for site in network.sites if site.role == "linear"]
    chosen: dict[str, Format] = {
        site.name: formats.parse(labels[i % len(labels)]) for i, site in enumerate(linear) if labels
    }

    def compress(site: Site) -> Compressed:
        weight = network.source.read(site.parameter).float()
        return Compressed((chosen[site.name].store(weight, search=False),), site.shape)

    FILES[kind].write(network, chosen, compress, out, dtype=dtype).reconcile()


def equal(before: Path, after: Path) -> None:
    first, second = load(before).source, load(after).source
    assert set(first.tensors) <= set(second.tensors)
    for name in first.tensors:
        assert torch.equal(first.read(name).float(), second.read(name).float()), name


@pytest.mark.parametrize(("kind", "to"), list(permutations(PLAIN, 2)) + [(kind, "dense") for kind in PLAIN])
def test_every_pair_keeps_every_number_and_a_round_trip_every_code(
    kind: str, to: str, stored: Stored, tmp_path: Path
) -> None:
    source = stored(kind, *PLAIN[kind])
    done = convert(source, tmp_path / "there", to=to, settings=QUICK)
    assert done.exact
    assert done.kl == 0.0
    assert done.certificate == "the source has none"
    equal(source, tmp_path / "there")
    found = {row.how for row in done.rows if row.name.endswith("proj.weight")}
    assert found == {"exact (wider)" if to == "dense" else "exact (same codes)"}
    assert artifact.check_seal(tmp_path / "there") >= 3
    if to == "dense":
        return
    back = convert(tmp_path / "there", tmp_path / "back", to=kind, settings=QUICK)
    assert back.exact
    first, second = FILES[kind].parts(source), FILES[kind].parts(tmp_path / "back")
    for row in done.rows:
        if row.name.endswith("proj.weight"):
            before, after = first(row.name), second(row.name)
            assert before.format == after.format
            assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_zero_points_find_room_in_every_engine(engine: Any, stored: Stored, tmp_path: Path) -> None:
    source = stored("gptq", "int4 g32 asym", "int2 g64 asym")
    done = convert(source, tmp_path / "out", to=engine.name, settings=QUICK)
    assert done.engine == engine.name
    assert done.exact, [row for row in done.rows if not row.exact]
    equal(source, tmp_path / "out")


def test_what_does_not_fit_is_rounded_measured_and_said(stored: Stored, tmp_path: Path) -> None:
    source = stored("gguf", "q4_1", "q6_k", "q4_0")
    done = convert(source, tmp_path / "out", to="vllm", settings=QUICK)
    assert not done.exact
    assert done.kl > 0
    rows = {row.name: row for row in done.rows}
    before, after = load(source).source, load(tmp_path / "out").source
    for name, row in rows.items():
        first, second = before.read(name).double(), after.read(name).double()
        assert row.error == pytest.approx(float((first - second).square().sum() / first.square().sum()), abs=1e-15)
        assert row.exact == torch.equal(first, second)
    assert {row.how for row in done.rows if row.before == "q4_1"} == {"re-rounded"}
    assert max(row.error for row in done.rows) < 1e-3
    record = json.loads((tmp_path / "out" / "pennyweight" / "conversion.json").read_text())
    assert record["kl"] == done.kl
    assert record["exact"] is False
    assert sum(record["totals"].values()) == len(done.rows)
    assert len({rows[f"model.layers.0.self_attn.{p}_proj.weight"].after for p in "qkv"}) == 1
    with pytest.raises(VerificationFailed, match="no certificate was carried over"):
        verify(tmp_path / "out")


def test_strict_refuses_before_anything_is_written(stored: Stored, tmp_path: Path) -> None:
    source, strict = stored("gguf", "q4_1"), Settings(strict=True, windows=1, length=24)
    with pytest.raises(InvalidFormat, match=r"no room for the very numbers of model.layers.0"):
        convert(source, tmp_path / "out", to="compressed-tensors", settings=strict)
    assert list(tmp_path.iterdir()) == []
    assert convert(source, tmp_path / "floats", to="dense", settings=strict).dtype == "float32"
    with pytest.raises(InvalidFormat, match="in bfloat16"):
        convert(source, tmp_path / "out", to="dense", settings=Settings(strict=True, dtype="bfloat16"))
    assert [path.name for path in tmp_path.iterdir()] == ["floats"]


def test_a_named_type_is_kept_and_its_rounding_measured(stored: Stored, tmp_path: Path) -> None:
    source = stored("gptq", "int4 g32 sym")
    chosen = Settings(dtype="bfloat16", windows=1, length=24)
    done = convert(source, tmp_path / "out", to="dense", settings=chosen)
    changed = [row for row in done.rows if row.after == "bfloat16"]
    assert done.dtype == "bfloat16"
    assert changed
    assert all(0 < row.error < 2**-15 for row in changed if row.before == "int4 g32")
    assert 0 < done.kl < 1e-2


def test_one_gguf_file(stored: Stored, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    done = convert(stored("gptq", "int4 g32 sym"), out, to="gguf", settings=QUICK)
    assert done.out == out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "model.gguf.conversion.json"]
    equal(stored("gptq", "int4 g32 sym"), out)
    with pytest.raises(InvalidOutput, match="is a file"):
        convert(stored("gptq", "int4 g32 sym"), out, to="gguf", settings=QUICK)


def test_plain_floats_stay_floats(model: Path, tmp_path: Path) -> None:
    done = convert(model, tmp_path / "out", to="llama.cpp", settings=QUICK)
    assert done.exact
    assert {row.how for row in done.rows} == {"dense"}
    equal(model, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"to": "gptqq"}, UnknownName, "no kind of files and no engine"),
        ({"model": "nowhere"}, MissingFile, "no such file"),
        ({"settings": Settings(dtype="bfloat16")}, InvalidFormat, "float16"),
        ({"settings": Settings(method="gptq")}, InvalidMethod, "needs the gram"),
        ({"settings": Settings(method="nothing")}, UnknownName, "nothing"),
        ({"reference": "somewhere"}, InvalidModel, "no certificate whose limits"),
        ({"sealed": True}, VerificationFailed, "no artifact of pennyweight"),
        ({"out": "model.safetensors"}, InvalidOutput, "are a directory"),
    ],
)
def test_bad_input_is_refused_before_work(
    change: dict[str, Any], error: type[PennyweightError], says: str, stored: Stored, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = {"model": stored("gguf", "q4_0"), "out": tmp_path / "out", "to": "gptq", **change}
    with pytest.raises(error, match=says):
        convert(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tokenizer_is_known_before_anything_is_written(stored: Stored, tmp_path: Path) -> None:
    source = stored("gptq", "int4 g32 sym")
    bare = Path(shutil.copytree(source, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*")))
    assert convert(bare, tmp_path / "exact", to="compressed-tensors").exact
    with pytest.raises(InvalidModel, match="no tokenizer"):
        convert(bare, tmp_path / "out", to="dense", settings=Settings(dtype="bfloat16"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "exact"]


def test_a_taken_output_and_a_family_without_a_name(
    stored: Stored, directory_of: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(InvalidOutput, match="not empty"):
        convert(stored("gguf", "q4_0"), tmp_path / "full", to="gptq", settings=QUICK)
    with pytest.raises(InvalidModel, match="cannot be written to GGUF"):
        convert(directory_of("phi3"), tmp_path / "out", to="gguf", settings=QUICK)
    assert (tmp_path / "full" / "note").read_text() == "mine"


def test_a_killed_conversion_leaves_nothing(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pennyweight.flow.converting.convert.rows_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(stored("gguf", "q4_0"), tmp_path / "out", to="gptq", settings=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_files_that_hold_something_else_are_found_out(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = FILES["gptq"].write

    def damaged(network: Any, chosen: Any, compressed: Any, out: Path, **options: Any) -> Any:
        def other(site: Site) -> Compressed:
            meant = compressed(site)
            if site.name.endswith("o_proj"):
                meant.parts[0].tensors["codes"][0, 0] ^= 1
            return meant

        return wrong(network, chosen, other, out, **options)

    monkeypatch.setattr(type(FILES["gptq"]), "write", lambda self, *a, **k: damaged(*a, **k))
    with pytest.raises(VerificationFailed, match="numbers differ"):
        convert(stored("gguf", "q4_0"), tmp_path / "out", to="gptq", settings=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_the_verbs(stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(stored("gguf", "q4_0", "q8_0"))
    assert main(["convert", source, str(tmp_path / "a"), "--to", "gptq", "--quiet", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["exact"] is True
    assert told["totals"] == {"dense": 5, "exact (same codes)": 7}
    assert main(["convert", source, str(tmp_path / "b"), "--to", "vllm", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "Every number is equal" in said
    assert "exact (same codes)" in said
    assert main(["export", source, str(tmp_path / "c"), "--to", "gptq", "--quiet"]) == 2
    assert "no artifact of pennyweight" in capsys.readouterr().err


def test_targets_are_kinds_or_engines() -> None:
    assert target("gguf") is find("llama.cpp")
    assert target("compressed-tensors") is find("transformers")
    assert target("vLLM") is find("vllm")
    assert all(target(kind).file_format == kind for kind in FILES)
