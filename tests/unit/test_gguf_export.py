"""Files for llama.cpp: names, order, bytes and numbers against the gguf package, which shares nothing with them."""

from __future__ import annotations

import importlib.util
import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import GEMMA, SHAPE, build, byte_tokenizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from pennyweight import formats
from pennyweight.errors import (
    DiskFull,
    InvalidFormat,
    InvalidModel,
    InvalidOutput,
    MissingExtra,
    PennyweightError,
    UnknownName,
)
from pennyweight.export import Accounting, files_of, safetensors_stream
from pennyweight.export.engines import find
from pennyweight.export.gguf import stream
from pennyweight.export.gguf.tokenizer import LLAMA3, QWEN2, tokenizer_values
from pennyweight.export.gguf.write import check, write
from pennyweight.flow.load import load
from pennyweight.flow.options import outline
from pennyweight.formats import Compressed, Dense, Format, Grid
from pennyweight.formats.gguf.blocks import Blocks
from pennyweight.network.network import Network, Site
from pennyweight.network.running.run import outputs
from pennyweight.network.sources.gguf import GGUFSource
from pennyweight.network.sources.opening import open_source

gguf = pytest.importorskip("gguf", reason="the gguf extra is not installed")

LLAMA = find("llama.cpp")
ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 10000.0,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SHAPE, "tie_word_embeddings": False},
    "llama3": {"model_type": "llama", **SHAPE, "tie_word_embeddings": True, "rope_parameters": ROPE},
    "mistral": {"model_type": "mistral", **SHAPE, "sliding_window": None, "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", **SHAPE, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **SHAPE, "head_dim": 32, "tie_word_embeddings": False},
    "gemma": {"model_type": "gemma", **SHAPE, "head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {"model_type": "gemma2", **SHAPE, **GEMMA},
    "gemma3": {"model_type": "gemma3_text", **SHAPE, **GEMMA, "num_hidden_layers": 7},
}  # fmt: skip
ARCHITECTURES = {"llama3": "LLAMA", "mistral": "LLAMA"}


def words(**options: Any) -> Tokenizer:
    """One token a byte, split into words: what llama.cpp calls gpt-2."""
    tokenizer = byte_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return tokenizer


def saved(config: dict[str, Any], directory: Path, tokenizer: Tokenizer | None = None) -> Path:
    from transformers.utils import logging

    logging.disable_progress_bar()
    cast(Any, build(config)).save_pretrained(directory)
    (tokenizer or words()).save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Network]:
    made: dict[str, Network] = {}

    def get(name: str) -> Network:
        if name not in made:
            made[name] = load(saved(FAMILIES[name], tmp_path_factory.mktemp("family") / name))
        return made[name]

    return get


@pytest.fixture(scope="module")
def broad(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """One block whose widths are 256, so that every type fits; 259 tokens, of which two have no word."""
    config = {**FAMILIES["llama"], "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    return load(saved({**config, "vocab_size": 259}, tmp_path_factory.mktemp("broad") / "model"))


def stored(network: Network, chosen: dict[str, Format]) -> Callable[[Site], Compressed]:
    def compress(site: Site) -> Compressed:
        weight = network.source.read(site.parameter).float()
        return Compressed((chosen[site.name].store(weight, search=False),), site.shape)

    return compress


def every(network: Network, label: str) -> dict[str, Format]:
    return {site.name: formats.parse(label) for site in network.sites if site.role == "linear"}


def export(network: Network, out: Path, label: str = "", dtype: str = "float32") -> Accounting:
    chosen = every(network, label) if label else {}
    made = write(network, chosen, stored(network, chosen), out, dtype=dtype)
    made.reconcile()
    return made


def rotated(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head in the order in which llama.cpp rotates them: the slow, obvious way round."""
    rows = len(weight) // heads
    order = [h * rows + i + half * rows // 2 for h in range(heads) for i in range(rows // 2) for half in (0, 1)]
    return weight[order]


@pytest.mark.parametrize("label", [format.label() for format in cast(Any, LLAMA.reads).loads])
def test_every_type_byte_for_byte(label: str, broad: Network, tmp_path: Path) -> None:
    chosen = every(broad, label)
    export(broad, tmp_path, label)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    source = open_source(tmp_path)
    assert isinstance(source, GGUFSource)
    for site in broad.sites:
        if site.name not in chosen:
            continue
        compressed = stored(broad, chosen)(site)
        name = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}.get(
            site.name.rpartition(".")[2], f"ffn_{site.name.rpartition('.')[2].removesuffix('_proj')}"
        )
        tensor = tensors[f"blk.0.{name}.weight"]
        assert tensor.tensor_type.name.lower() == label
        assert tuple(tensor.shape) == site.shape[::-1], "inputs first"
        theirs = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
        ours = compressed.dequantize()
        heads = {"attn_q": 4, "attn_k": 2}.get(name)
        assert torch.equal(theirs, rotated(ours, heads) if heads else ours)
        assert torch.equal(source.read(site.parameter), ours)
        part = source.read_part(site.parameter)
        assert part.format == chosen[site.name]
        assert part.tensors.keys() == compressed.parts[0].tensors.keys()
        assert all(torch.equal(part.tensors[key], value) for key, value in compressed.parts[0].tensors.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_under_the_names_of_the_gguf_package(
    name: str, family: Callable[[str], Network], tmp_path: Path
) -> None:
    network = family(name)
    accounting = export(network, tmp_path)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    blocks = len(network.blocks)
    kind = gguf.MODEL_ARCH[ARCHITECTURES.get(name, name.upper())]
    known = gguf.get_tensor_name_map(kind, blocks)
    found = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    assert reader.fields["general.architecture"].contents() == gguf.MODEL_ARCH_NAMES[kind]
    expected = set()
    for row in accounting.rows:
        if row.action == "dropped":
            continue
        stem, _, suffix = row.name.rpartition(".")
        theirs = f"{known.get_name(stem)}.{suffix}"
        expected.add(theirs)
        weight = network.source.read(row.name)
        if name.startswith("gemma") and row.name.endswith("norm.weight"):
            weight = weight + 1
            assert row.action == "transformed"
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(stem.split(".", 3)[-1])
        if heads and name.startswith(("llama", "mistral")):
            weight = rotated(weight, heads)
        assert torch.equal(found[theirs].reshape(weight.shape), weight), row.name
    extra = {"rope_freqs.weight"} if name == "llama3" else set()
    assert set(found) == expected | extra
    assert [row.name for row in accounting.added] == sorted(extra)
    assert accounting == Accounting.from_dict(json.loads(json.dumps(accounting.to_dict())))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_read_again_is_the_same_function(
    name: str, family: Callable[[str], Network], tmp_path: Path
) -> None:
    network = family(name)
    export(network, tmp_path)
    assert torch.allclose(outputs(load(tmp_path)), outputs(network), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_hyperparameters(name: str, family: Callable[[str], Network], tmp_path: Path) -> None:
    network = family(name)
    export(network, tmp_path)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    config, arch = network.source.config, fields["general.architecture"]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    keys = gguf.Keys
    expected = {
        keys.LLM.CONTEXT_LENGTH: config["max_position_embeddings"], keys.LLM.EMBEDDING_LENGTH: config["hidden_size"],
        keys.LLM.BLOCK_COUNT: config["num_hidden_layers"], keys.LLM.VOCAB_SIZE: config["vocab_size"],
        keys.LLM.FEED_FORWARD_LENGTH: config["intermediate_size"],
        keys.Attention.HEAD_COUNT: config["num_attention_heads"],
        keys.Attention.HEAD_COUNT_KV: config["num_key_value_heads"], keys.Attention.KEY_LENGTH: size,
        keys.Attention.VALUE_LENGTH: size, keys.Rope.DIMENSION_COUNT: size,
        keys.Attention.LAYERNORM_RMS_EPS: config["rms_norm_eps"],
    }  # fmt: skip
    if name == "gemma2":
        expected |= {keys.LLM.ATTN_LOGIT_SOFTCAPPING: 50.0, keys.LLM.FINAL_LOGIT_SOFTCAPPING: 30.0}
    if name in ("gemma2", "gemma3"):
        expected[keys.Attention.SLIDING_WINDOW] = 16
    if name == "gemma3":
        expected[keys.Rope.FREQ_BASE_SWA] = 10000.0
    for key, value in expected.items():
        assert fields[key.format(arch=arch)] == pytest.approx(value, rel=1e-7), key
    assert fields[keys.Rope.FREQ_BASE.format(arch=arch)] == (1e6 if name == "gemma3" else 1e4)
    assert fields["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert fields["general.file_type"] == gguf.LlamaFileType.ALL_F32


def test_scaled_rotary_frequencies(family: Callable[[str], Network], tmp_path: Path) -> None:
    """Factor by factor, as the model's own code says them; and a file that contradicts itself is refused."""
    export(family("llama3"), tmp_path)
    path = tmp_path / "model.gguf"
    (factors,) = [t for t in gguf.GGUFReader(path).tensors if t.name == "rope_freqs.weight"]
    expected = []
    for i in range(8):
        wave = 2 * math.pi * 10000.0 ** (2 * i / 16)
        if wave < 64 / 4:
            expected.append(1.0)
        elif wave > 64 / 1:
            expected.append(8.0)
        else:
            smooth = (64 / wave - 1) / (4 - 1)
            expected.append(1 / ((1 - smooth) / 8 + smooth))
    assert {1.0, 8.0} < set(expected)
    assert np.array(factors.data) == pytest.approx(expected, rel=1e-5)
    config = open_source(path).config
    assert config["rope_parameters"] == {**ROPE, "rope_theta": 10000.0}
    data = bytearray(path.read_bytes())
    data[int(factors.data_offset) : int(factors.data_offset) + 4] = struct.pack("<f", 2.0)
    path.write_bytes(data)
    with pytest.raises(InvalidModel, match="not the factors"):
        open_source(path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_is_not_compressed(dtype: str, family: Callable[[str], Network], tmp_path: Path) -> None:
    network = family("qwen2")
    accounting = export(network, tmp_path, dtype=dtype)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    short = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}[dtype]
    assert kinds["token_embd.weight"] == kinds["blk.0.attn_q.weight"] == short
    assert kinds["blk.0.attn_q.bias"] == kinds["blk.0.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"
    rows = {row.name: row for row in accounting.rows}
    assert rows["model.embed_tokens.weight"].action == ("kept" if dtype == "float32" else "cast")
    assert rows["model.norm.weight"].action == "kept"
    assert {name for name, row in rows.items() if row.action == "dropped"} <= {"lm_head.weight"}


def test_tied_heads_are_absent_and_others_are_not(family: Callable[[str], Network], tmp_path: Path) -> None:
    for name, there in (("llama", True), ("qwen2", False)):
        export(family(name), tmp_path / name)
        names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / name / "model.gguf").tensors}
        assert ("output.weight" in names) is there


def test_layout_by_hand() -> None:
    """A header of one value and two tensors, byte by byte; both tensors are filled up to 32 bytes."""
    tensors = [stream.Stored.of("a", "F16", (3, 5)), stream.Stored.of("b", "Q4_0", (2, 32))]
    header, offsets, size = stream.layout({"k": stream.u32(7)}, tensors)
    expected = b"GGUF" + struct.pack("<IQQ", 3, 2, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<II", 4, 7)
    expected += struct.pack("<Q", 1) + b"a" + struct.pack("<IQQIQ", 2, 5, 3, 1, 0)
    expected += struct.pack("<Q", 1) + b"b" + struct.pack("<IQQIQ", 2, 32, 2, 2, 32)
    assert header == expected + bytes(-len(expected) % 32)
    assert offsets == {"a": len(header), "b": len(header) + 32}
    assert size == len(header) + 32 + 64  # 30 bytes and 36


def test_types_are_those_of_the_gguf_package() -> None:
    for name, (number, block, width) in stream.TYPES.items():
        kind = gguf.GGMLQuantizationType[name]
        assert (int(kind), gguf.GGML_QUANT_SIZES[kind]) == (number, (block, width))
    for format in cast(Any, LLAMA.reads).loads:
        assert format.type.upper() in stream.TYPES


@pytest.mark.parametrize("label", ["", "q4_0", "q5_1", "q8_0", "iq4_nl", "q3_k", "tq1_0"])
def test_sizes_are_exact(label: str, broad: Network, tmp_path: Path) -> None:
    """Predicted tensor by tensor, and in all, and the header; padding included."""
    files = LLAMA.files
    accounting = export(broad, tmp_path, label, dtype="float16")
    chosen = every(broad, label) if label else {}
    decided = [site for site in broad.sites if site.role == "linear"]
    sizes = [
        files.stored_bytes(s.shape, chosen[s.name], "float16") if label else files.kept_bytes(broad, s, "float16")
        for s in decided
    ]  # fmt: skip
    fixed = files.fixed_bytes(broad, {site.parameter for site in decided}, "float16")
    whole = (tmp_path / "model.gguf").stat().st_size
    assert sum(sizes) + fixed == accounting.written
    assert accounting.written + files.beside(broad, "float16") == whole
    rows = {row.name: row.bytes_after for row in accounting.rows}
    assert [rows[site.parameter] for site in decided] == sizes


@pytest.mark.parametrize(
    ("shape", "label", "size"),
    [((3, 32), "q4_0", 64), ((1, 256), "q6_k", 224), ((16, 32), "q8_0", 544), ((3, 5), "float16", 32)],
)
def test_stored_bytes_are_filled_up(shape: tuple[int, int], label: str, size: int) -> None:
    assert LLAMA.files.stored_bytes(shape, formats.parse(label), "float16") == size


def test_the_menu_follows_the_widths() -> None:
    narrow = {format.label() for format in LLAMA.menu([576, 1536], "float16")}
    wide = {format.label() for format in LLAMA.menu([1536], "float16")}
    assert narrow == {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl"}
    assert wide == {"q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0"}
    assert LLAMA.menu([100], "float16") == ()
    assert {grid.bits for grid in cast(Any, find("vllm").menu([256], "float16"))} == {4, 8}


def test_the_outline_offers_what_fits(broad: Network) -> None:
    table = outline(broad, LLAMA, dtype="float16")
    kinds = {option.step.stages[0].format.name for group in table.groups for option in group}
    assert kinds == {"dense", "gguf_k", "gguf_legacy"}
    assert table.kept == {}
    sizes = {group[0].sites: {o.step.stages[0].format.label(): o.bytes for o in group} for group in table.groups}
    assert sizes[("lm_head",)] == {  # the widest blocks that fit, and eight bits
        "float16": 259 * 512 + 0, "q8_0": -(-259 * 8 * 34 // 32) * 32, "q4_k": 259 * 144 + 16, "q5_k": 259 * 176 + 16,
        "q6_k": -(-259 * 210 // 32) * 32,
    }  # fmt: skip


# The tokenizer


def test_tokens(broad: Network, tmp_path: Path) -> None:
    tokenizer = words()
    vocabulary = {**tokenizer.get_vocab(), "ka": 256}
    tokenizer.model = models.BPE(vocab=vocabulary, merges=[("k", "a")])
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.add_tokens(["<|tool|>", "plain"])
    directory = saved({**FAMILIES["llama"], "vocab_size": 262}, tmp_path / "model", tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "<|tool|>", "chat_template": "{{ messages }}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    export(load(directory), tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer")}
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.tokens"][255:] == [
        max(byte_tokenizer().get_vocab()), "ka", "<s>", "<|tool|>", "plain", "[PAD260]", "[PAD261]",
    ]  # fmt: skip
    assert fields["tokenizer.ggml.token_type"] == [1] * 257 + [3, 3, 4, 5, 5]
    assert fields["tokenizer.ggml.merges"] == ["k a"]
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (257, 258)
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.add_eos_token"] is False
    assert fields["tokenizer.chat_template"] == "{{ messages }}"


def with_tokenizer(tokenizer: Tokenizer, **model: Any) -> Any:
    """A source of nothing but a tokenizer."""
    data = json.loads(tokenizer.to_str())
    data["model"].update(model)
    files = {"tokenizer.json": json.dumps(data).encode()}
    return type("Source", (), {"auxiliary": lambda _: files, "config": {}, "path": Path("model")})()


def splitting(*steps: Any) -> Tokenizer:
    tokenizer = words()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    return tokenizer


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
DIGITS = pre_tokenizers.Digits(individual_digits=True)


@pytest.mark.parametrize(
    ("steps", "form", "ignore_merges", "name"),
    [
        ([WORDS], None, False, "gpt-2"),
        ([DIGITS, WORDS], None, False, "smollm"),
        ([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES], None, True, "llama-bpe"),
        ([pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTES], normalizers.NFC(), False, "qwen2"),
    ],
)
def test_names_of_ways_to_split(steps: list[Any], form: Any, ignore_merges: bool, name: str) -> None:
    tokenizer = splitting(*steps)
    if form is not None:
        tokenizer.normalizer = form
    values = tokenizer_values(with_tokenizer(tokenizer, ignore_merges=ignore_merges), 256)
    assert values["tokenizer.ggml.pre"] == stream.string(name)


def lowercase() -> Tokenizer:
    tokenizer = words()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def surrounded() -> Tokenizer:
    tokenizer = words()
    tokenizer.post_processor = processors.TemplateProcessing(single="k $A", special_tokens=[("k", 74)])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "model", "message"),
    [
        (splitting(BYTES), {}, "no name for how its tokenizer splits text: bytes"),
        (splitting(pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES), {}, "no name"),  # merges inside of words
        (splitting(pre_tokenizers.Split(Regex("x"), "removed"), BYTES), {}, "options of its own"),
        (splitting(pre_tokenizers.Digits(individual_digits=False), WORDS), {}, "by Digits"),
        (splitting(pre_tokenizers.Metaspace()), {}, "by Metaspace"),
        (words(), {"byte_fallback": True}, "splits text by ByteLevel"),
        (words(), {"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        (lowercase(), {}, "normalizes text"),
        (surrounded(), {}, "tokens of its own around"),
        (Tokenizer(models.WordLevel({"a": 0}, "a")), {}, "WordLevel"),
    ],
)
def test_tokenizers_that_llama_cpp_cannot_be_told(tokenizer: Tokenizer, model: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidModel, match=message) as caught:
        tokenizer_values(with_tokenizer(tokenizer, **model), 256)
    assert caught.value.expected
    assert "GGUF file" in caught.value.mend


def test_more_tokens_than_rows() -> None:
    with pytest.raises(InvalidModel, match="token 255 of an embedding table of 100"):
        tokenizer_values(with_tokenizer(words()), 100)


# What is refused, before any work


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, r"scaled \(linear\)"),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding_window is 16"),
        ({"model_type": "phi3"}, "models of type phi3"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16}, "use_sliding_window is True"),
        ({"model_type": "gemma2", **GEMMA, "query_pre_attn_scalar": 20}, "query_pre_attn_scalar is 20"),
        ({"model_type": "gemma2", **GEMMA, "attn_logit_softcapping": None}, "attn_logit_softcapping is not set"),
        ({"model_type": "gemma2", **GEMMA, "layer_types": ["full_attention"] * 2}, "another order"),
        ({"model_type": "gemma", "head_dim": 16, "tie_word_embeddings": False}, "its head is not its embedding table"),
    ],
)
def test_models_that_llama_cpp_does_not_compute(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    network = load(saved({**FAMILIES["llama"], **change}, tmp_path / "model"))
    with pytest.raises(InvalidModel, match=message):
        check(network, {}, "float16")
    assert message.replace("\\", "").split(" is ")[0] in str(LLAMA.refuses_all(network, "float16"))
    with pytest.raises(InvalidModel):
        export(network, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_it_has_no_name_for(family: Callable[[str], Network]) -> None:
    from pennyweight.export.gguf.architectures import ARCHITECTURES

    llama = ARCHITECTURES["llama"]
    for name in (
        "model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.experts.0.weight", "score.weight",
        "model.norm.bias", "model.layers.x.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.qweight",
    ):  # fmt: skip
        assert llama.name_of(name) is None
    assert ARCHITECTURES["qwen2"].name_of("model.layers.3.self_attn.q_proj.bias") == "blk.3.attn_q.bias"


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ({"model.layers.0.mlp.up_proj": Grid(bits=4, group_size=32)}, InvalidFormat, "in GGUF files"),
        ({"model.layers.0.mlp.up_proj": formats.parse("q4_k")}, InvalidFormat, "64 inputs do not split"),
        ({"model.layers.9.mlp.up_proj": formats.parse("q4_0")}, InvalidFormat, "no such site"),
    ],
)
def test_formats_that_do_not_fit(
    chosen: dict[str, Format], error: type[PennyweightError], message: str, family: Callable[[str], Network],
    tmp_path: Path,
) -> None:  # fmt: skip
    network = family("llama")
    with pytest.raises(error, match=message):
        write(network, chosen, stored(network, chosen), tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_other_codes_than_planned(family: Callable[[str], Network], tmp_path: Path) -> None:
    network = family("llama")
    with pytest.raises(InvalidFormat, match="was compressed as q8_0"):
        write(
            network, every(network, "q4_0"), stored(network, every(network, "q8_0")), tmp_path / "out", dtype="float16"
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_the_reader_must_be_there(family: Callable[[str], Network], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="gguf package"):
        check(family("llama"), {}, "float16")


def test_files_are_found_by_name() -> None:
    assert files_of("gguf") is LLAMA.files
    assert files_of("compressed-tensors") is find("vllm").files is find("transformers").files
    with pytest.raises(UnknownName, match="compressed-tensors, gguf"):
        files_of("zip")


def test_what_the_engine_refuses(broad: Network) -> None:
    site = broad.by_name["model.layers.0.mlp.up_proj"]
    assert LLAMA.refuses(site, formats.parse("q4_k"), broad) is None
    assert LLAMA.refuses(site, Dense(dtype="bfloat16"), broad) is None
    assert "block types of GGUF, not int4 g32 sym" in str(LLAMA.refuses(site, Grid(bits=4, group_size=32), broad))
    head = broad.by_name["lm_head"]
    assert LLAMA.refuses(head, formats.parse("q8_0"), broad) is None
    assert "quantized experts" in str(LLAMA.refuses(replace(head, role="experts"), formats.parse("q8_0"), broad))
    small = type(site)(name="x", block=0, shape=(8, 96), reads="a", writes="b", role="linear")
    assert "96 inputs do not split into blocks of 256" in str(LLAMA.refuses(small, formats.parse("q4_k"), broad))
    for format in cast(Any, LLAMA.reads).loads:
        assert isinstance(format, Blocks)


# Accidents


def test_an_error_half_way_leaves_no_file(family: Callable[[str], Network], tmp_path: Path) -> None:
    network, count = family("llama"), 0
    chosen = every(network, "q8_0")

    def fail(site: Site) -> Compressed:
        nonlocal count
        count += 1
        if count > 5:
            raise KeyboardInterrupt
        return stored(network, chosen)(site)

    with pytest.raises(KeyboardInterrupt):
        write(network, chosen, fail, tmp_path, dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(family: Callable[[str], Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = safetensors_stream._write, 60_000

    def limited(file: Any, offset: int, data: Any) -> None:
        nonlocal left
        left -= len(data)
        if left < 0:
            raise OSError(28, "No space left on device")
        real(file, offset, data)

    monkeypatch.setattr(safetensors_stream, "_write", limited)
    with pytest.raises(DiskFull):
        export(family("llama"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_whole_file_is_not_made_again_and_another_is_not_touched(
    family: Callable[[str], Network], tmp_path: Path
) -> None:
    network = family("llama")
    first = export(network, tmp_path, "q8_0", dtype="float16")
    before = (tmp_path / "model.gguf").stat().st_mtime_ns
    seen: list[str] = []
    chosen = every(network, "q8_0")
    again = write(
        network, chosen, cast(Any, None), tmp_path, dtype="float16", on_tensor=lambda name, _: seen.append(name)
    )
    assert again == first
    assert (tmp_path / "model.gguf").stat().st_mtime_ns == before
    assert set(seen) == set(network.source.tensors)
    with pytest.raises(InvalidOutput, match="other tensors"):
        export(network, tmp_path, "q4_0", dtype="float16")
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(InvalidOutput, match=r"other\.gguf"):
        export(network, tmp_path, "q8_0", dtype="float16")


def test_a_file_made_of_a_file_keeps_its_bytes(broad: Network, tmp_path: Path) -> None:
    """What is not compressed again lies in the second file as in the first, codes and tokenizer."""
    export(broad, tmp_path / "first", "q5_k", dtype="float16")
    network = load(tmp_path / "first")
    name = "model.layers.0.mlp.up_proj"
    chosen: dict[str, Format] = {name: formats.parse("q4_0")}
    write(network, chosen, stored(network, chosen), tmp_path / "second", dtype="float16").reconcile()
    first, second = (gguf.GGUFReader(tmp_path / place / "model.gguf") for place in ("first", "second"))
    for before, after in zip(first.tensors, second.tensors, strict=True):
        assert before.name == after.name
        assert np.array_equal(before.data, after.data) is ("ffn_up" not in before.name)
    kept = network.by_name["model.layers.0.self_attn.q_proj"]
    assert LLAMA.files.kept_bytes(network, kept, "float16") == 256 * 176
    for key in first.fields:
        if key.startswith("tokenizer."):
            assert np.array_equal(first.fields[key].contents(), second.fields[key].contents())
