"""Streaming: the same logits as transformers, and never more than one block's weights in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pennyweight.errors import InvalidWeights
from pennyweight.network.finding.trace import load_network
from pennyweight.network.network import Network
from pennyweight.network.running.stream import Stream
from pennyweight.network.sources.opening import open_source
from pennyweight.network.sources.source import Source, TensorInfo

FAMILIES = ("llama", "llama_tied", "qwen2", "qwen3", "mistral", "gemma2", "phi3")
NetworkOf = Callable[[str], Network]
ModelOf = Callable[[str], nn.Module]


def token_ids(windows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (windows, length), generator=torch.Generator().manual_seed(seed))


def streamed(runner: Stream, ids: Tensor) -> Tensor:
    hidden = runner.forward(ids)
    with torch.no_grad(), runner.end() as finish:
        return torch.stack([finish(window) for window in hidden])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family: str, network_of: NetworkOf, model_of: ModelOf) -> None:
    ids = token_ids(3, 40)  # longer than the sliding windows of mistral and gemma2
    with torch.no_grad():
        expected = model_of(family)(input_ids=ids, use_cache=False).logits
    result = streamed(Stream(network_of(family)), ids)
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()
    assert torch.equal(result.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_one_runner_takes_batches_of_any_shape(family: str, network_of: NetworkOf, model_of: ModelOf) -> None:
    runner = Stream(network_of(family))
    for windows, length in ((2, 8), (1, 30), (2, 8), (5, 3)):
        ids = token_ids(windows, length, seed=length)
        with torch.no_grad():
            expected = model_of(family)(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(streamed(runner, ids), expected, rtol=1e-4, atol=1e-4)


def test_the_end_takes_tokens_in_any_number(network_of: NetworkOf) -> None:
    runner = Stream(network_of("gemma2"))
    hidden = runner.forward(token_ids(1, 20))[0]
    with torch.no_grad(), runner.end() as finish:
        whole = finish(hidden)
        torch.testing.assert_close(torch.cat([finish(hidden[:7]), finish(hidden[7:8]), finish(hidden[8:])]), whole)
    assert whole.shape == (20, 256)


def test_gradients_flow_through_blocks_and_end(network_of: NetworkOf, model_of: ModelOf) -> None:
    runner, ids = Stream(network_of("llama")), token_ids(1, 6)
    with torch.no_grad(), runner.beginning() as begin:
        start = begin(ids)
    x = start.clone().requires_grad_()
    with torch.enable_grad():
        with runner.block(0) as run:
            middle = run(x)
        with runner.block(1) as run:
            last = run(middle)
        with runner.end() as finish:
            loss = finish(last[0]).log_softmax(-1)[:, 3].sum()
    (mine,) = torch.autograd.grad(loss, x)
    model, y = model_of("llama"), start.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(model(inputs_embeds=y, use_cache=False).logits.log_softmax(-1)[0, :, 3].sum(), y)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


class Spy:
    """A source that looks at the model whenever a tensor is read from it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.model: nn.Module | None = None
        self.in_memory: list[set[str]] = []
        self.reads: list[str] = []

    path = property(lambda self: self._source.path)
    config: Mapping[str, Any] = property(lambda self: self._source.config)  # type: ignore[assignment]
    tensors: Mapping[str, TensorInfo] = property(lambda self: self._source.tensors)  # type: ignore[assignment]
    fingerprint = property(lambda self: self._source.fingerprint)
    stored_bytes = property(lambda self: self._source.stored_bytes)
    description = property(lambda self: self._source.description)

    def auxiliary(self) -> Mapping[str, bytes | Path]:
        return self._source.auxiliary()

    def read(self, name: str) -> Tensor:
        assert self.model is not None
        self.reads.append(name)
        self.in_memory.append(real(self.model))
        return self._source.read(name)


def real(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters(remove_duplicate=False) if p.device.type != "meta"}


@pytest.fixture
def spied(llama_directory: Path) -> tuple[Stream, Spy, nn.Module]:
    network = load_network(open_source(llama_directory))
    spy = Spy(network.source)
    runner = Stream(dataclasses.replace(network, source=spy))
    spy.model = runner.module("")
    return runner, spy, spy.model


def test_only_one_block_is_ever_in_memory(spied: tuple[Stream, Spy, nn.Module]) -> None:
    runner, spy, model = spied
    assert real(model) == set()
    streamed(runner, token_ids(2, 8))
    blocks = [set(block.parameters) for block in runner.network.blocks]
    outer = set(runner.network.outer)
    for held in spy.in_memory:
        assert any(held <= part for part in (*blocks, outer)), held
        assert not {"model.embed_tokens.weight", "lm_head.weight"} <= held
    assert max(len(held) for held in spy.in_memory) == len(blocks[0]) - 1  # the last one is being read
    assert real(model) == set()


def test_every_tensor_is_read_once_a_pass(spied: tuple[Stream, Spy, nn.Module]) -> None:
    runner, spy, _ = spied
    streamed(runner, token_ids(2, 8))
    inside = [name for block in runner.network.blocks for name in block.parameters]
    assert sorted(name for name in spy.reads if name in set(inside)) == sorted(inside)
    assert spy.reads.count("model.embed_tokens.weight") == spy.reads.count("lm_head.weight") == 1


def test_weights_go_away_when_something_fails(spied: tuple[Stream, Spy, nn.Module]) -> None:
    runner, _, model = spied
    with runner.beginning() as begin:
        begin(token_ids(1, 4))
    held = []

    def run_with_hidden_states_of_another_size() -> None:
        with runner.block(0) as run:
            held.append(real(model))
            run(torch.zeros(1, 4, 63))

    with pytest.raises(RuntimeError):
        run_with_hidden_states_of_another_size()
    assert held == [set(runner.network.blocks[0].parameters)]
    assert real(model) == set()


def test_weights_that_are_not_finite_are_refused(spied: tuple[Stream, Spy, nn.Module]) -> None:
    runner, spy, model = spied
    bad = "model.layers.1.mlp.down_proj.weight"
    read = spy.read
    spy.read = lambda name: read(name) * (torch.nan if name == bad else 1)  # type: ignore[method-assign]
    with pytest.raises(InvalidWeights, match=r"model\.layers\.1\.mlp\.down_proj"):
        runner.forward(token_ids(1, 4))
    assert real(model) == set()


def test_vectors_are_added_to_what_a_weight_multiplies(network_of: NetworkOf, model_of: ModelOf) -> None:
    runner, ids = Stream(network_of("llama")), token_ids(2, 6)
    name = runner.network.sites[3].parameter
    (index,) = [site.block for site in runner.network.sites if site.parameter == name]
    assert index == 0
    vector = torch.randn(runner.network.sites[3].shape[0], generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), runner.beginning() as begin:
        start = begin(ids)
    with runner.block(0):
        vector.requires_grad_()
        moved = runner.replaced(0, start, {}, {name: vector, "elsewhere.weight": vector})
        plain = runner.replaced(0, start, {})
        moved.sum().backward()
    assert vector.grad is not None
    assert bool(vector.grad.any())
    model = model_of("llama")
    hook = model.get_submodule(name.removesuffix(".weight")).register_forward_hook(lambda _m, _i, y: y + vector)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[1]
    hook.remove()
    torch.testing.assert_close(moved.detach(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_what_modules_read_is_shown_and_no_more_is_run_than_that_takes(network_of: NetworkOf) -> None:
    network = network_of("llama")
    runner, ids = Stream(network), token_ids(1, 6)
    names = [name for name in network.blocks[0].parameters if name.endswith("proj.weight")]
    ran = list[str]()
    with torch.no_grad():
        with runner.beginning() as begin:
            start = begin(ids)
        with runner.block(0) as run:
            runner.module(names[-1].removesuffix(".weight")).register_forward_hook(lambda *_: ran.append("last"))
            with runner.reading([*names, "elsewhere.bias"], leave=True) as everything:
                expected = run(start)
            assert ran == ["last"]
            with runner.reading(names[:1], leave=True) as first:
                run(start)
            assert ran == ["last"], "it went on"
            with runner.reading(names, leave=False) as again:
                torch.testing.assert_close(run(start), expected)
            assert ran == ["last", "last"], "it did not go on"
            torch.testing.assert_close(run(start), expected)
    assert set(everything) == set(again) == set(names)
    assert all(torch.equal(again[name], x) for name, x in everything.items())
    assert torch.equal(first[names[0]], everything[names[0]])
    assert [len(x) for x in everything.values()] == [6] * len(names)
    shared = {name.split(".")[-2]: x.data_ptr() for name, x in everything.items()}
    assert shared["q_proj"] == shared["k_proj"] == shared["v_proj"] != shared["o_proj"]
    assert shared["gate_proj"] == shared["up_proj"] != shared["down_proj"]
