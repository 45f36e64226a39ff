"""Tracing: sites, edges, ties and blocks of every family, with no family named in the package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pennyweight.errors import InvalidModel
from pennyweight.network.finding.trace import load_network, skeleton, trace
from pennyweight.network.network import Network
from pennyweight.network.sources.opening import open_source

SPLIT = ("llama", "llama_tied", "qwen2", "qwen3", "mistral", "gemma2")  # q, k, v and gate, up are layers of their own
EVERY = (*SPLIT, "phi3", "gpt2")
TIED = {"llama_tied", "qwen2", "gemma2", "gpt2"}
NetworkOf = Callable[[str], Network]


@pytest.mark.parametrize("family", EVERY)
def test_every_parameter_is_a_site_or_untouched(
    family: str, network_of: NetworkOf, model_of: Callable[[str], nn.Module]
) -> None:
    network = network_of(family)
    names = {name for name, _ in model_of(family).named_parameters()}
    sites = {site.parameter for site in network.sites}
    assert names <= sites | set(network.untouched)
    assert not sites & set(network.untouched)
    for site in network.sites:
        parameter = model_of(family).get_parameter(site.parameter)
        assert site.matrix(parameter).shape == site.shape
        assert torch.equal(site.restored(site.matrix(parameter), parameter.shape), parameter)
        assert site.elements == parameter.numel()


@pytest.mark.parametrize("family", EVERY)
def test_blocks_come_in_order_and_hold_their_parameters(
    family: str, network_of: NetworkOf, model_of: Callable[[str], nn.Module]
) -> None:
    network = network_of(family)
    assert [block.name.rpartition(".")[2] for block in network.blocks] == ["0", "1"]
    for block in network.blocks:
        inside = model_of(family).get_submodule(block.name)
        assert set(block.parameters) == {f"{block.name}.{name}" for name, _ in inside.named_parameters()}
    everything = {name for name, _ in model_of(family).named_parameters(remove_duplicate=False)}
    held = {name for block in network.blocks for name in block.parameters}
    assert held | set(network.outer) == everything
    assert not held & set(network.outer)
    for site in network.sites:
        owner = next((i for i, b in enumerate(network.blocks) if site.name.startswith(b.name + ".")), None)
        assert site.block == owner


@pytest.mark.parametrize("family", SPLIT)
def test_queries_keys_and_values_read_one_edge_that_a_norm_produces(family: str, network_of: NetworkOf) -> None:
    network = network_of(family)
    for i in range(2):
        prefix = f"model.layers.{i}"
        q, k, v, gate, up, o, down = (
            network.by_name[f"{prefix}.{name}_proj"]
            for name in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up", "self_attn.o", "mlp.down")
        )
        assert q.reads == k.reads == v.reads
        assert gate.reads == up.reads != q.reads
        assert len({q.reads, gate.reads, o.reads, down.reads}) == 4
        edge = network.edges[q.reads]
        assert edge.producers == (f"{prefix}.input_layernorm",)
        assert edge.consumers == (q.name, k.name, v.name)
        assert edge.size == 64
        assert network.edges[gate.reads].producers[0].endswith("norm")
        assert network.edges[gate.reads].consumers == (gate.name, up.name)
        assert network.edges[down.reads].producers == ()  # a product of two activations: no module made it
        assert network.edges[down.reads].size == 128
        assert all(site.role == "linear" and site.block == i for site in (q, k, v, gate, up, o, down))
    assert (
        network.by_name["model.layers.0.self_attn.q_proj"].reads
        != network.by_name["model.layers.1.self_attn.q_proj"].reads
    )


@pytest.mark.parametrize("family", SPLIT)
def test_groups_are_what_an_engine_fuses(family: str, network_of: NetworkOf) -> None:
    groups = [tuple(site.name.rpartition(".")[2] for site in group) for group in network_of(family).groups()]
    expected = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    head = [("embed_tokens", "lm_head")] if family in TIED else [("embed_tokens",), ("lm_head",)]
    assert sorted(groups) == sorted(expected * 2 + head)


def test_fused_layers_are_sites_as_they_are(network_of: NetworkOf) -> None:
    network = network_of("phi3")
    assert network.by_name["model.layers.0.self_attn.qkv_proj"].shape == (128, 64)
    assert network.by_name["model.layers.0.mlp.gate_up_proj"].shape == (256, 64)
    assert network.edges[network.by_name["model.layers.0.mlp.gate_up_proj"].reads].producers == (
        "model.layers.0.post_attention_layernorm",
    )


def test_weights_stored_with_their_inputs_first_are_sites_no_engine_takes(network_of: NetworkOf) -> None:
    """GPT-2 keeps its weights transposed, in a layer of its own kind: understood, and told apart by role."""
    network = network_of("gpt2")
    inner = {f"transformer.h.{i}.{n}": "transposed" for i in range(2)
             for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}  # fmt: skip
    outer = {"transformer.wte": "embedding", "transformer.wpe": "embedding", "lm_head": "head"}
    assert {site.name: site.role for site in network.sites} == inner | outer
    assert network.by_name["transformer.h.0.mlp.c_fc"].shape == (256, 64)
    assert network.by_name["transformer.h.0.mlp.c_fc"].layout == "in out"
    assert set(network.untouched.values()) == {"a vector: norm gain or bias"}
    assert [block.name for block in network.blocks] == ["transformer.h.0", "transformer.h.1"]


class Wrapped(nn.Module):
    """A module that returns what the module inside it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class ToyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = Wrapped(), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(16, 8), nn.ModuleList(ToyBlock() for _ in range(3))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return x


def test_the_producer_is_the_module_that_made_the_tensor(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file(Toy().state_dict(), tmp_path / "model.safetensors")
    network = trace(Toy(), open_source(tmp_path))
    assert [block.name for block in network.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    for i in range(3):
        up, down = network.by_name[f"blocks.{i}.up"], network.by_name[f"blocks.{i}.down"]
        assert network.edges[up.reads].producers == (f"blocks.{i}.norm.inner",)
        assert network.edges[down.reads].producers == (up.name,)
        assert down.reads == up.writes


@pytest.mark.parametrize("family", EVERY)
def test_vectors_are_untouched_and_say_why(family: str, network_of: NetworkOf) -> None:
    network = network_of(family)
    vectors = [name for name, reason in network.untouched.items() if "norm gain or bias" in reason]
    assert len(vectors) >= 5
    assert all(len(network.source.tensors[name].shape) == 1 for name in vectors)
    if family == "qwen2":
        assert "model.layers.0.self_attn.q_proj.bias" in vectors


@pytest.mark.parametrize("family", EVERY)
def test_ties_and_heads(family: str, network_of: NetworkOf) -> None:
    network = network_of(family)
    head = next(site for site in network.sites if site.role == "head")
    embedding = next(site for site in network.sites if site.role == "embedding")
    assert head.name == "lm_head"
    assert head.block is None
    if family in TIED:
        assert [set(names) for names in network.tied] == [{embedding.parameter, head.parameter}]
        assert network.stored_name(head.parameter) == network.stored_name(embedding.parameter) == embedding.parameter
    else:
        assert network.tied == ()
        assert network.stored_name(head.parameter) == head.parameter


def copy(directory: Path, target: Path) -> Path:
    shutil.copytree(directory, target)
    return target


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_a_missing_tensor_is_named(llama_directory: Path, tmp_path: Path) -> None:
    lost = "model.layers.1.mlp.up_proj.weight"
    directory = rewrite(copy(llama_directory, tmp_path / "m"), lambda tensors: tensors.pop(lost))
    with pytest.raises(InvalidModel, match=f"{lost} is missing".replace(".", r"\.")) as error:
        load_network(open_source(directory))
    assert error.value.site == str(directory)
    assert error.value.mend


def test_many_missing_tensors_are_counted(llama_directory: Path, tmp_path: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".1." in name]:
            del tensors[name]

    with pytest.raises(InvalidModel, match="and 6 more"):
        load_network(open_source(rewrite(copy(llama_directory, tmp_path / "m"), drop)))


def test_a_tensor_of_another_shape_is_named(llama_directory: Path, tmp_path: Path) -> None:
    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:200].clone()

    with pytest.raises(InvalidModel, match=r"lm_head\.weight is \[200, 64\], not \[256, 64\]"):
        load_network(open_source(rewrite(copy(llama_directory, tmp_path / "m"), shrink)))


@pytest.mark.parametrize("change", [{"model_type": "nosuchmodel"}, {"model_type": None}, {"model_type": "vit"}])
def test_configurations_transformers_does_not_know(
    change: dict[str, Any], llama_directory: Path, tmp_path: Path
) -> None:
    directory = copy(llama_directory, tmp_path / "m")
    config = json.loads((directory / "config.json").read_text()) | change
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModel, match="cannot build a causal language model"):
        load_network(open_source(directory))


def test_the_skeleton_takes_no_memory_for_weights(llama_directory: Path) -> None:
    model = skeleton(open_source(llama_directory))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert all(not buffer.is_meta for buffer in model.buffers())
    assert not model.training


def test_tracing_leaves_the_module_class_alone(network_of: NetworkOf) -> None:
    network_of("llama")
    layer = nn.Linear(3, 2)
    assert layer.weight.device.type == "cpu"
    assert layer(torch.zeros(1, 3)).shape == (1, 2)
