"""Safetensors directories: exact round trips, and every way they can be broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pennyweight.errors import CorruptFile, InvalidModel, InvalidWeights, MissingFile, PennyweightError
from pennyweight.network.sources.opening import open_source
from pennyweight.network.sources.source import DTYPES, INDEX, SafetensorsSource, Source, check_finite
from pennyweight.network.sources.tokenizer import load_tokenizer, separator_id


def values(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape) % 97
    return (numbers % 2 == 0) if dtype == torch.bool else numbers.to(dtype)


def model(directory: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if tensors is None:
        tensors = {"a.weight": values(torch.float32, 3, 4), "b.weight": values(torch.bfloat16, 5)}
    save_file(tensors, directory / "model.safetensors")
    return directory


def sharded(directory: Path) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    save_file({"a": values(torch.float32, 3)}, directory / "one.safetensors")
    save_file({"b": values(torch.float16, 2, 2), "c": values(torch.int8, 7)}, directory / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}}
    (directory / INDEX).write_text(json.dumps(index))
    return directory


def raw_header(directory: Path, header: object, data: bytes = b"") -> Path:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return directory


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_survives(code: str, tmp_path: Path) -> None:
    dtype = DTYPES[code]
    tensors = {"m": values(dtype, 6, 5), "v": values(dtype, 7), "scalar": values(dtype), "empty": values(dtype, 0, 3)}
    source = SafetensorsSource(model(tmp_path / "m", tensors))
    assert set(source.tensors) == set(tensors)
    for name, expected in tensors.items():
        result = source.read(name)
        assert result.dtype == dtype
        assert result.shape == expected.shape == source.tensors[name].shape
        assert torch.equal(result.view(torch.uint8) if expected.dim() else result.float(),
                           expected.view(torch.uint8) if expected.dim() else expected.float())  # fmt: skip
        assert source.tensors[name].bytes == expected.numel() * dtype.itemsize


def test_shards_are_one_model(tmp_path: Path) -> None:
    source = open_source(sharded(tmp_path / "m"))
    assert isinstance(source, Source)
    assert torch.equal(source.read("b"), values(torch.float16, 2, 2))
    assert torch.equal(source.read("c"), values(torch.int8, 7))
    assert source.stored_bytes == sum(f.stat().st_size for f in (tmp_path / "m").glob("*.safetensors"))
    assert "3 tensors" in source.description


def test_a_tensor_read_is_ours(tmp_path: Path) -> None:
    source = SafetensorsSource(model(tmp_path / "m"))
    source.read("a.weight").zero_()
    assert source.read("a.weight").sum() > 0


def test_fingerprint_depends_on_content_only(tmp_path: Path) -> None:
    first, second = SafetensorsSource(sharded(tmp_path / "m")), SafetensorsSource(sharded(tmp_path / "n"))
    assert first.fingerprint == second.fingerprint
    (tmp_path / "n" / "config.json").write_text('{"rope_theta": 1}')
    assert SafetensorsSource(tmp_path / "n").fingerprint != first.fingerprint
    other = model(tmp_path / "o", {"a.weight": torch.ones(3), "b.weight": torch.zeros(2)})
    changed = model(tmp_path / "p", {"a.weight": torch.ones(3), "b.weight": torch.zeros(2) - 0.0})
    assert SafetensorsSource(other).fingerprint == SafetensorsSource(changed).fingerprint
    changed = model(tmp_path / "p", {"a.weight": torch.ones(3), "b.weight": torch.tensor([0.0, -0.0])})
    assert SafetensorsSource(other).fingerprint != SafetensorsSource(changed).fingerprint


def test_auxiliary_leaves_weights_out(tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    kept = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "merges.txt",
            "tokenizer.model", "LICENSE", "README.md"]  # fmt: skip
    for name in [*kept, ".gitattributes", "pytorch_model.bin", "x.gguf", INDEX]:
        (directory / name).write_text("x")
    (directory / "onnx").mkdir()
    (directory / "onnx" / "config.json").write_text("x")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool.jinja").write_text("x")
    found = SafetensorsSource(directory).auxiliary()
    assert set(found) == {*kept, "additional_chat_templates/tool.jinja"}
    assert all(isinstance(path, Path) and path.is_file() for path in found.values())


def test_missing_directory_and_config(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no such directory"):
        SafetensorsSource(tmp_path / "nowhere")
    (tmp_path / "config.json").unlink(missing_ok=True)
    with pytest.raises(MissingFile, match=r"no config\.json"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_config_that_is_not_a_json_object(content: bytes, tmp_path: Path) -> None:
    (model(tmp_path / "m") / "config.json").write_bytes(content)
    with pytest.raises(CorruptFile, match="JSON"):
        SafetensorsSource(tmp_path / "m")


def test_no_safetensors(tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    (directory / "model.safetensors").unlink()
    with pytest.raises(InvalidModel, match="no safetensors file"):
        SafetensorsSource(directory)
    (directory / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InvalidModel, match=r"only pickled weights \(pytorch_model\.bin\)") as caught:
        SafetensorsSource(directory)
    assert "save_pretrained" in caught.value.mend
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidModel, match="adapter"):
        SafetensorsSource(directory)


def test_shards_without_index(tmp_path: Path) -> None:
    directory = sharded(tmp_path / "m")
    (directory / INDEX).unlink()
    with pytest.raises(MissingFile, match=INDEX):
        SafetensorsSource(directory)
    (directory / "two.safetensors").unlink()
    assert set(SafetensorsSource(directory).tensors) == {"a"}  # one file, whatever its name, is a whole model
    (directory / "one.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    with pytest.raises(MissingFile, match=INDEX):
        SafetensorsSource(directory)


def test_broken_index(tmp_path: Path) -> None:
    directory = sharded(tmp_path / "m")
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["d"] = "one.safetensors"
    (directory / INDEX).write_text(json.dumps(index))
    with pytest.raises(CorruptFile, match=r"d is not in one\.safetensors"):
        SafetensorsSource(directory)
    index["weight_map"]["d"] = "../one.safetensors"
    (directory / INDEX).write_text(json.dumps(index))
    with pytest.raises(CorruptFile, match="lists"):
        SafetensorsSource(directory)
    (directory / INDEX).write_text('{"weight_map": 3}')
    with pytest.raises(CorruptFile, match="weight_map"):
        SafetensorsSource(directory)


def test_missing_shard(tmp_path: Path) -> None:
    directory = sharded(tmp_path / "m")
    (directory / "two.safetensors").unlink()
    with pytest.raises(MissingFile, match=r"1 of 2 shards are missing: two\.safetensors"):
        SafetensorsSource(directory)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    directory = sharded(tmp_path / "m")
    save_file({"a": torch.ones(3), "b": torch.ones(1), "c": torch.ones(1)}, directory / "two.safetensors")
    with pytest.raises(CorruptFile, match="a is stored twice"):
        SafetensorsSource(directory)


def test_empty_file(tmp_path: Path) -> None:
    (model(tmp_path / "m") / "model.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFile, match="empty"):
        SafetensorsSource(tmp_path / "m")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncation_anywhere_is_noticed_at_once(share: float, tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    file = directory / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CorruptFile):
        SafetensorsSource(directory)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_never_ends_in_a_foreign_error(data: st.DataObject, tmp_path: Path) -> None:
    directory = model(tmp_path / "m")
    file = directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        source = SafetensorsSource(directory)
        for name in source.tensors:
            source.read(name)
    except PennyweightError:
        pass


@pytest.mark.parametrize(
    ("header", "error", "message"),
    [
        (b"not json at all ", CorruptFile, "header is not what"),
        ([1, 2], CorruptFile, "header is not what"),
        ({"a": {"dtype": "F32", "shape": [1]}}, CorruptFile, "header is not what"),
        ({"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, InvalidModel, "a is stored as F4"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, CorruptFile, "bytes 0 to 4"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, CorruptFile, "bytes 4 to 8"),
        ({"a": {"dtype": "I8", "shape": [-2, -2], "data_offsets": [0, 4]}}, CorruptFile, "bytes 0 to 4"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, CorruptFile, "4 bytes follow"),
        ({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, CorruptFile, "tensors need"),
        ({"__metadata__": {}}, CorruptFile, "8 bytes follow"),
    ],
)
def test_broken_headers(header: object, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        SafetensorsSource(raw_header(tmp_path / "m", header, bytes(8)))


def test_no_tensor_at_all(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="no tensor"):
        SafetensorsSource(raw_header(tmp_path / "m", {}))


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    source = SafetensorsSource(model(tmp_path / "m"))
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(CorruptFile, match="short of the end"):
        source.read("a.weight")


def test_unknown_tensor_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"no tensor a\.weigth") as caught:
        SafetensorsSource(model(tmp_path / "m")).read("a.weigth")
    assert "a.weight" in caught.value.expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_check_finite(dtype: torch.dtype) -> None:
    good = torch.ones(4, 3).to(dtype)
    check_finite("w", good)
    check_finite("w", torch.empty(0, 3, dtype=dtype))
    bad = torch.ones(4, 3)
    bad[1, 1] = bad[2, 0] = float("nan")
    with pytest.raises(InvalidWeights, match="2 of 12 values are NaN and 0 are infinite") as caught:
        check_finite("model.layers.0.w", bad.to(dtype))
    assert caught.value.site == "model.layers.0.w"
    if dtype != torch.float8_e4m3fn:  # this format has no infinity
        bad[0, 0] = -float("inf")
        with pytest.raises(InvalidWeights, match="2 of 12 values are NaN and 1 are infinite"):
            check_finite("w", bad.to(dtype))
    check_finite("w", torch.ones(3, dtype=torch.int8))


def test_open_source_refuses_what_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(MissingFile) as caught:
        open_source("someone/model")
    assert "--allow-network" in caught.value.mend
    with pytest.raises(MissingFile) as caught:
        open_source(tmp_path / "nowhere")
    assert "--allow-network" not in caught.value.mend
    directory = model(tmp_path / "m")
    with pytest.raises(InvalidModel, match=r"\.safetensors file") as wrong:
        open_source(directory / "model.safetensors")
    assert str(directory) in wrong.value.mend
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "x.gguf").write_bytes(b"")
    with pytest.raises(CorruptFile, match="empty"):  # the only one is the model
        open_source(tmp_path / "g")
    (tmp_path / "g" / "y.gguf").write_bytes(b"")
    with pytest.raises(InvalidModel, match="2 GGUF files ") as wrong:
        open_source(tmp_path / "g")
    assert "x.gguf" in wrong.value.mend


def test_network_only_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    directory = model(tmp_path / "m")

    class Hub:
        @staticmethod
        def snapshot_download(name: str, **options: object) -> str:
            asked.append(name)
            if name == "someone/else":
                raise OSError("401\nunauthorised")
            return str(directory)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    with pytest.raises(MissingFile):
        open_source("someone/model")
    assert asked == []
    assert "a.weight" in open_source("someone/model", allow_network=True).tensors
    with pytest.raises(MissingFile, match="401 unauthorised"):
        open_source("someone/else", allow_network=True)
    with pytest.raises(MissingFile):
        open_source("/not/a/hub/name", allow_network=True)
    assert asked == ["someone/model", "someone/else"]


def test_quantized_models_are_the_callers_decision(tmp_path: Path) -> None:
    directory = model(tmp_path / "m", quantization_config={"quant_method": "awq"})
    with pytest.raises(InvalidModel, match="already quantized by awq"):
        open_source(directory, quantized={"compressed-tensors"})
    assert open_source(directory, quantized={"awq"}).config["quantization_config"]["quant_method"] == "awq"
    assert SafetensorsSource(directory).tensors


def test_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    directory = model(tmp_path / "m", eos_token_id=[1, 0])
    with pytest.raises(InvalidModel, match=r"no tokenizer\.json"):
        load_tokenizer(SafetensorsSource(directory))
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptFile, match="tokenizers package"):
        load_tokenizer(SafetensorsSource(directory))
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    tokenizer.enable_truncation(2)
    tokenizer.save(str(directory / "tokenizer.json"))
    source = SafetensorsSource(directory)
    loaded = load_tokenizer(source)
    assert loaded.truncation is None
    assert separator_id(source, loaded) == 1
    (directory / "config.json").write_text("{}")
    source = SafetensorsSource(directory)
    assert separator_id(source, loaded) is None
    (directory / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    assert separator_id(source, loaded) == 1
    loaded.add_special_tokens(["<|endoftext|>"])
    assert separator_id(source, loaded) == 2
