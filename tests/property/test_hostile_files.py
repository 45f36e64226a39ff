"""Damaged files of every kind: read, or refused with an error that says so. benchmarks/fuzz.py does it for longer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pennyweight import catalogue
from pennyweight.errors import (
    CorruptFile,
    InvalidModel,
    InvalidOutput,
    InvalidPlan,
    PennyweightError,
    UnknownName,
    VerificationFailed,
)
from pennyweight.export.gptq.source import GPTQSource
from pennyweight.flow import artifact
from pennyweight.flow.load import load
from pennyweight.flow.modules import store
from pennyweight.flow.profiling.profile import is_task
from pennyweight.flow.search.study import open_study
from pennyweight.network.running.onnx import OnnxSource
from pennyweight.network.sources.gguf import GGUFSource
from pennyweight.network.sources.opening import open_source
from pennyweight.network.sources.tokenizer import load_tokenizer, separator_id
from pennyweight.plan import Plan

NEEDS = {
    "gguf": "gguf", "gguf tokenizer": "gguf", "onnx": "onnx", "onnx weights": "onnxscript", "openvino": "openvino",
    "container": "zstandard",
}  # fmt: skip
SLOW = {"gguf tokenizer": 10, "network": 20, "certificate, sealed again": 40}  # inputs; 60 of the others
DEEP = "[" * 20_000


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, bytes]]]:
    """A directory with the honest files of a reader, and their contents."""
    made: dict[str, tuple[Path, dict[str, bytes]]] = {}

    def get(name: str) -> tuple[Path, dict[str, bytes]]:
        if name in NEEDS:
            pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
        if name not in made:
            directory = tmp_path_factory.mktemp("hostile")
            hostile.READERS[name].seed(directory)
            made[name] = directory, hostile.files_of(directory)
        hostile.put(*made[name])
        return made[name]

    return get


@pytest.mark.parametrize("name", list(hostile.READERS))
def test_honest_files_are_read(name: str, honest: Callable[[str], tuple[Path, dict[str, bytes]]]) -> None:
    directory, _ = honest(name)
    hostile.READERS[name].read(directory)


@pytest.mark.parametrize("name", list(hostile.READERS))
def test_damaged_files_are_read_or_refused(name: str, honest: Callable[[str], tuple[Path, dict[str, bytes]]]) -> None:
    directory, files = honest(name)

    @settings(max_examples=SLOW.get(name, 60), suppress_health_check=list(HealthCheck))
    @given(number=st.integers(0, 2**32))
    def check(number: int) -> None:
        chance = random.Random(number)
        damaged = chance.choice(sorted(files))
        hostile.put(directory, {**files, damaged: hostile.damaged(files[damaged], chance)})
        with suppress(PennyweightError):
            hostile.READERS[name].read(directory)

    check()


def test_damage_is_damage() -> None:
    """Nearly every input differs from the honest file, and a seed gives the same one again."""
    data = json.dumps({"a": [1, 2, {"b": "c"}], "d": 5}).encode()
    made = [hostile.damaged(data, random.Random(seed)) for seed in range(400)]
    assert made == [hostile.damaged(data, random.Random(seed)) for seed in range(400)]
    assert sum(one != data for one in made) > 360
    assert len(set(made)) > 200


# What was found once.


def test_brackets_without_end(tmp_path: Path) -> None:
    """The readers of JSON and TOML give up on them with a RecursionError."""
    hostile.seed_safetensors(tmp_path)
    (tmp_path / "config.json").write_text(DEEP)
    with pytest.raises(CorruptFile, match="not JSON"):
        open_source(tmp_path)
    with pytest.raises(InvalidPlan, match="not a plan"):
        Plan.from_toml(f"a = {DEEP}")
    (tmp_path / "quiz.jsonl").write_text(DEEP)
    assert not is_task(tmp_path / "quiz.jsonl")
    (tmp_path / artifact.FOLDER).mkdir()
    (tmp_path / artifact.FOLDER / "run.json").write_text(DEEP)
    with pytest.raises(VerificationFailed, match="not JSON"):
        artifact.read_record(tmp_path, "run.json")


def test_a_shard_with_a_name_no_file_can_have(tmp_path: Path) -> None:
    hostile.seed_shards(tmp_path)
    index = {"weight_map": {"a": "x" * 3000}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PennyweightError, match="1 of 1 shards are missing"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "change", [{"bits": None}, {"bits": 0}, {"bits": "four"}, {"checkpoint_format": ["gptq"]}, {"bits": 10**40}]
)
def test_a_gptq_section_with_values_of_other_kinds(change: dict[str, Any], tmp_path: Path) -> None:
    hostile.seed_gptq_without_order(tmp_path)
    edit(tmp_path / "config.json", lambda config: config["quantization_config"].update(change))
    with pytest.raises(InvalidModel, match=r"does not describe these weights|do not fit together"):
        GPTQSource(tmp_path)


@pytest.mark.parametrize(
    "change", [{"config_groups": [1]}, {"ignore": 5}, {"config_groups": {"g": {"targets": 7, "weights": {}}}}]
)
def test_a_compressed_tensors_section_with_values_of_other_kinds(change: dict[str, Any], tmp_path: Path) -> None:
    hostile.seed_compressed_tensors(tmp_path)
    edit(tmp_path / "config.json", lambda config: config["quantization_config"].update(change))
    with pytest.raises(InvalidModel):
        load(tmp_path)


def test_a_group_without_its_size(tmp_path: Path) -> None:
    hostile.seed_compressed_tensors(tmp_path)
    edit(
        tmp_path / "config.json",
        lambda config: config["quantization_config"]["config_groups"]["group_0"]["weights"].pop("group_size"),
    )
    with pytest.raises(InvalidModel, match="group_size"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 2**31}, "2147483648, and the files hold"),
        ({"intermediate_size": 2**34}, "asks for a tensor"),
        ({"hidden_act": 5}, "cannot build"),
        ({"num_attention_heads": 0}, "cannot build"),
        ({"pad_token_id": 10**6}, "cannot build"),
        ({"hidden_size": -16}, "cannot build"),
    ],
)
def test_a_configuration_that_asks_for_the_impossible(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    hostile.seed_network(tmp_path)
    edit(tmp_path / "config.json", lambda config: config.update(change))
    with pytest.raises(InvalidModel, match=words):
        load(tmp_path)


@pytest.mark.parametrize("change", [{"matrix": None}, {"matrix": [8]}, {"format": 3}, {"matrix": [8, 2**63]}])
def test_a_module_file_that_does_not_describe_its_weights(change: dict[str, Any], tmp_path: Path) -> None:
    hostile.seed_modules(tmp_path)
    edit(tmp_path / store.ABOUT, lambda about: about["tensors"]["weight"].update(change))
    with pytest.raises(PennyweightError, match=r"describe|format|parse"):
        hostile.read_modules(tmp_path)


@pytest.mark.parametrize("name", ["../weights", "/etc/passwd", "a/../../weights"])
def test_weights_of_an_onnx_file_lie_beside_it(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    (tmp_path / "sub").mkdir()
    (tmp_path / "weights").write_bytes(bytes(64))
    hostile.seed_onnx(tmp_path / "sub")
    path = tmp_path / "sub" / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    model.graph.initializer[0].external_data[0].value = name
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CorruptFile, match="outside of its directory"):
        OnnxSource(path)


def test_names_in_a_graph_that_are_no_text(tmp_path: Path) -> None:
    """Protobuf hands them over as bytes."""
    pytest.importorskip("onnx")
    hostile.seed_onnx(tmp_path)
    path, config = tmp_path / "model.onnx", tmp_path / "config.json"
    config.write_text(json.dumps(hostile.CONFIG))
    path.write_bytes(path.read_bytes().replace(b"weights", b"weight\xff"))
    with pytest.raises(CorruptFile, match="outside of its directory"):
        OnnxSource(path)
    with pytest.raises(InvalidModel, match="cannot be followed"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda evidence: evidence["populations"][0].update(counted=True),
        lambda evidence: evidence["rules"].update(numbers="all"),
        lambda evidence: evidence["rules"].update(opening=[1]),
        lambda evidence: evidence["populations"][0]["certification"].update(metrics={"kl": 5}),
        lambda evidence: evidence["populations"][0].update(size=1 << 31),
    ],
)
def test_evidence_with_values_of_other_kinds(
    change: Callable[[Any], object], honest: Callable[[str], tuple[Path, dict[str, bytes]]]
) -> None:
    """Sealed again, so that the seal does not tell."""
    directory, _ = honest("certificate, sealed again")
    edit(directory / "certificate" / artifact.FOLDER / "evidence.json", change)
    with pytest.raises(VerificationFailed):
        hostile.READERS["certificate, sealed again"].read(directory)


def test_a_study_whose_rows_were_changed(tmp_path: Path) -> None:
    hostile.seed_study(tmp_path)
    with open_study(tmp_path / "study.sqlite", "world") as study, study.connection:
        study.connection.execute("UPDATE trial SET labels = '{'")
    with open_study(tmp_path / "study.sqlite", "world") as study, pytest.raises(InvalidOutput, match="no study"):
        study.rows()


def test_a_vocabulary_that_tokenizers_cannot_use(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the gguf extra is not installed")
    hostile.seed_gguf(tmp_path)
    path = tmp_path / "model.gguf"
    path.write_bytes(path.read_bytes().replace((3).to_bytes(8, "little") + b"a b", (3).to_bytes(8, "little") + b"f b"))
    with pytest.raises(InvalidModel, match="cannot rebuild its tokenizer"):
        GGUFSource(path).auxiliary()


def test_codes_that_are_no_matrix(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the gguf extra is not installed")
    hostile.seed_gguf(tmp_path, norms="Q8_0")
    source = GGUFSource(tmp_path / "model.gguf")
    assert source.read("model.norm.weight").shape == (32,)
    with pytest.raises(InvalidModel, match=r"\[32\] is stored as q8_0"):
        source.read_part("model.norm.weight")


def test_a_chat_template_that_is_no_text(tmp_path: Path) -> None:
    hostile.seed_chat(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ messages[0]['content'] }}\xf1")
    hostile.read_chat(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(chat_template=[1, None]))
    with pytest.raises(InvalidModel, match="no chat template"):
        hostile.read_chat(tmp_path)


@pytest.mark.parametrize(
    "argument", ["-" * 20_000 + "1", "not " * 5000 + "1", "1+" * 50_000 + "1", "(" * 250 + "1" + ")" * 250]
)
def test_arguments_that_are_nested_too_deeply(argument: str) -> None:
    with pytest.raises(UnknownName, match="cannot read"):
        catalogue.find(f"hadamard(seed={argument})", "rewrites")


def test_a_token_that_is_half_of_a_pair(tmp_path: Path) -> None:
    """JSON can write what no text holds."""
    hostile.seed_chat(tmp_path)
    edit(tmp_path / "config.json", lambda config: config.pop("eos_token_id", None))
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(eos_token="\ud800"))
    source = open_source(tmp_path)
    assert separator_id(source, load_tokenizer(source)) is None


def test_a_tensor_that_overflows(tmp_path: Path) -> None:
    """Sizes in a header are checked against the file before anything is made of them."""
    save_file({"a": torch.zeros(4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hostile.CONFIG))
    data = (tmp_path / "model.safetensors").read_bytes()
    for text in (
        b'"shape":[4611686018427387904,4]',
        b'"shape":[Infinity]',
        b'"shape":[-2,-2]',
        b'"shape":[0,18446744073709551616]',
    ):
        changed = data[8:].replace(b'"shape":[4]', text)
        (tmp_path / "model.safetensors").write_bytes((len(changed) - 16).to_bytes(8, "little") + changed)
        with pytest.raises(CorruptFile):
            open_source(tmp_path)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
