"""A model that runs on its codes, against the same numbers run dense."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer
from tokenizers import pre_tokenizers

from pennyweight import formats
from pennyweight.errors import InvalidModel
from pennyweight.export.files import files_of
from pennyweight.flow.load import load
from pennyweight.formats import Compressed
from pennyweight.network.network import Network, Site
from pennyweight.network.running.compressed import CompressedLinear, CompressedTable, Decoded
from pennyweight.network.running.runnable import runnable

Write = Callable[[Path, str, dict[str, str]], Network]


@pytest.fixture
def stored(tmp_path: Path) -> Write:
    """The network of a directory, written in formats by the last part of a site's name; the rest in bfloat16."""

    def write(model: Path, files: str, labels: dict[str, str]) -> Network:
        shutil.copytree(model, tmp_path / "model")
        tokenizer = byte_tokenizer()  # split as llama.cpp knows it
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
        network = load(tmp_path / "model")
        chosen = {s.name: formats.parse(labels[k]) for s in network.sites if (k := s.name.rpartition(".")[2]) in labels}

        def compressed(site: Site) -> Compressed:
            weight = network.source.read(network.stored_name(site.parameter)).float()
            return Compressed((chosen[site.name].store(weight),), site.shape)

        files_of(files).write(network, chosen, compressed, tmp_path / "out", dtype="bfloat16")
        return load(tmp_path / "out")

    return write


def logits(network: Network, dtype: torch.dtype, *, dense: bool) -> torch.Tensor:
    ids = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return runnable(network, dtype, dense=dense).model(input_ids=ids).logits.double()


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


MIXED = {
    "q_proj": "int4 g32 sym bfloat16", "k_proj": "int3 g16 sym bfloat16", "v_proj": "int8 row sym bfloat16",
    "o_proj": "int6 g32 sym bfloat16", "up_proj": "int2 g64 asym bfloat16", "down_proj": "int4 row asym bfloat16",
}  # fmt: skip


FLOATS = {
    "q_proj": "fp8 e4m3 row bfloat16", "v_proj": "fp8 e4m3 b16 bfloat16", "up_proj": "mxfp4", "down_proj": "nvfp4",
}  # fmt: skip


def test_numbers_that_are_not_even_are_decoded_as_they_are_read(llama_directory: Path, stored: Write) -> None:
    network = stored(llama_directory, "compressed-tensors", FLOATS)
    found = runnable(network, torch.float32)
    rows = {row.site.rpartition(".")[2]: row for row in found.ledger}
    for name in FLOATS:
        assert rows[name].held == "decoded at every call"
        assert "not evenly spaced" in rows[name].reason
        assert rows[name].bytes < 0.45 * 4 * 64 * (32 if name == "v_proj" else 64 if name == "q_proj" else 128)
    exact = logits(network, torch.float32, dense=True)
    torch.testing.assert_close(logits(network, torch.float32, dense=False), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_it_computes_what_the_numbers_give(family: str, directory_of: Callable[[str], Path], stored: Write) -> None:
    network = stored(directory_of(family), "compressed-tensors", MIXED)
    exact = logits(network, torch.float32, dense=True)
    torch.testing.assert_close(logits(network, torch.float32, dense=False), exact, rtol=1e-4, atol=1e-4)
    # in bfloat16 codes lose no more than the dense model does by rounding, give or take
    assert apart(exact, logits(network, torch.bfloat16, dense=False)) < 2e-4
    assert apart(exact, logits(network, torch.bfloat16, dense=True)) < 2e-4


def test_the_ledger_says_what_became_of_every_weight(llama_directory: Path, stored: Write) -> None:
    network = stored(llama_directory, "compressed-tensors", MIXED)
    found = runnable(network)
    rows = {row.site: row for row in found.ledger}
    assert len(rows) == len(found.ledger) == len({network.stored_name(s.parameter) for s in network.sites})
    block = "model.layers.1."
    assert rows[f"{block}self_attn.q_proj"].held == "four-bit codes"
    assert rows[f"{block}self_attn.v_proj"].held == "eight-bit codes"
    assert rows[f"{block}self_attn.k_proj"].held == "decoded at every call"
    assert rows[f"{block}self_attn.k_proj"].reason == "no kernel takes groups of 16"
    assert rows[f"{block}mlp.gate_proj"].held == "dense bfloat16"
    assert rows["lm_head"].reason == ""
    layer = found.model.get_submodule(f"{block}self_attn.k_proj")
    assert isinstance(layer, CompressedLinear)
    assert isinstance(layer.codes, Decoded)
    assert layer.weight.dtype == torch.bfloat16  # what some models' code asks for
    assert all(not parameter.is_meta for parameter in found.model.parameters())
    dense = {row.site: row for row in runnable(network, dense=True).ledger}
    assert sum(row.bytes for row in rows.values()) < 0.8 * sum(row.bytes for row in dense.values())
    assert not any(isinstance(m, CompressedLinear) for m in runnable(network, dense=True).model.modules())


@pytest.mark.parametrize("label", ["q8_0", "q5_1", "iq4_nl"])
def test_a_table_that_is_the_head_too_is_held_once(label: str, tied_llama_directory: Path, stored: Write) -> None:
    pytest.importorskip("gguf")
    network = stored(tied_llama_directory, "gguf", {"embed_tokens": label, "lm_head": label, "up_proj": "q4_0"})
    found = runnable(network, torch.float32).model
    table, head = found.get_submodule("model.embed_tokens"), found.get_submodule("lm_head")
    assert isinstance(table, CompressedTable)
    assert isinstance(head, CompressedLinear)
    assert table.codes is head.codes
    exact = logits(network, torch.float32, dense=True)
    torch.testing.assert_close(logits(network, torch.float32, dense=False), exact, rtol=1e-4, atol=1e-4)


def test_a_layer_that_computes_something_of_its_own_stays_dense(
    directory_of: Callable[[str], Path], stored: Write
) -> None:
    """Gemma multiplies what it looks up: a table of codes would not, so the tensor is dense, for the head as well."""
    pytest.importorskip("gguf")
    network = stored(directory_of("gemma2"), "gguf", {"embed_tokens": "q8_0", "lm_head": "q8_0"})
    found = runnable(network, torch.float32)
    (row,) = [row for row in found.ledger if row.stored == "q8_0"]
    assert row.held == "dense float32"
    assert "ScaledWordEmbedding computes something of its own" in row.reason
    weight = found.model.get_submodule("lm_head").weight
    assert weight is found.model.get_submodule("model.embed_tokens").weight


def test_a_plain_model_runs_as_it_is(directory_of: Callable[[str], Path]) -> None:
    network = load(directory_of("gpt2"))
    found = runnable(network)
    assert {row.held for row in found.ledger} == {"dense bfloat16"}
    assert not any(row.reason for row in found.ledger)
    exact = logits(network, torch.float32, dense=True)
    assert apart(exact, logits(network, torch.bfloat16, dense=False)) < 1e-3


def test_a_program_has_no_weights_to_run() -> None:
    class Program:
        path = Path("model.onnx")

    network = Network(source=Program(), blocks=(), sites=(), edges={}, tied=(), untouched={}, outer=())  # type: ignore[arg-type]
    with pytest.raises(InvalidModel, match="no weights"):
        runnable(network)
