"""Two networks: the same bits, the same function in other numbers, or different, and from where on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pennyweight.errors import InvalidMeasurement
from pennyweight.flow.load import load
from pennyweight.flow.prove import ALGEBRAIC, BITWISE, DIFFERENT, prove
from pennyweight.flow.rewrite import rewrite
from pennyweight.flow.save import save
from pennyweight.network.changing.fold import Fold, Rewritten, Transform
from pennyweight.network.finding.inputs import example
from pennyweight.network.finding.symmetry import PERMUTATION
from pennyweight.network.finding.trace import network_of, skeleton, symmetries_of
from pennyweight.network.network import Network
from pennyweight.network.running import run

FAMILIES = ("llama", "llama_tied", "qwen2", "qwen3", "mistral", "gemma2", "phi3", "gpt2")
Directory = Callable[[str], Path]


def edited(directory: Path, out: Path, change: Callable[[dict[str, Tensor]], object]) -> Network:
    """A copy of a model with some of its tensors changed in place."""
    shutil.copytree(directory, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return load(out)


def reconfigured(directory: Path, out: Path, **settings: object) -> Network:
    shutil.copytree(directory, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | settings))
    return load(out)


@pytest.mark.parametrize("family", FAMILIES)
def test_block_by_block_is_the_same_as_whole(family: str, directory_of: Directory) -> None:
    network = load(directory_of(family))
    given = [example(skeleton(network.source))]
    assert run.streams(network, given)
    (streamed,) = run.passes(network, given, read=network.source.read)
    (whole,) = run._whole(network, given, network.source.read, None)
    assert streamed.dtype == torch.float64
    assert torch.equal(streamed, whole)


def test_a_copy_is_bitwise(directory_of: Directory, tmp_path: Path) -> None:
    network = load(directory_of("llama"))
    proof = prove(network, edited(directory_of("llama"), tmp_path / "copy", lambda _: None))
    assert proof.verdict == BITWISE
    assert proof.holds
    assert proof.inputs == 0, "nothing has to be run"
    assert proof.differ == ()


def test_untied_is_bitwise(directory_of: Directory, tmp_path: Path) -> None:
    network = load(directory_of("llama_tied"))
    untied, steps = rewrite(network, ["untie"])
    saved = save(network, untied, steps, tmp_path / "untied").network
    assert not saved.tied
    assert prove(network, saved).verdict == BITWISE


class Shuffle:
    """Every order of channels that can be changed, changed: a rewrite of a user's own."""

    name, needs = "shuffle", frozenset[str]()

    def choose(self, symmetries: Any, *_: Any, generator: torch.Generator) -> tuple[Fold, ...]:
        return tuple(
            Fold(symmetry, Transform(order=torch.randperm(symmetry.size, generator=generator)))
            for symmetry in symmetries
            if symmetry.group == PERMUTATION
        )


@pytest.mark.parametrize("methods", [[Shuffle()], ["untie", Shuffle()], ["untie", "fold_norms", "hadamard"]])
def test_a_tied_tensor_that_is_stored_twice(methods: list[Any], directory_of: Directory, tmp_path: Path) -> None:
    def twice(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    network = edited(directory_of("llama_tied"), tmp_path / "twice", twice)
    rewritten, steps = rewrite(network, methods)
    saved = save(network, rewritten, steps, tmp_path / "out").network
    assert ("lm_head.weight" in saved.source.tensors) is ("untie" in methods)
    assert prove(network, saved).verdict == ALGEBRAIC


def test_the_same_tensors_in_other_code_are_no_proof(directory_of: Directory, tmp_path: Path) -> None:
    network = load(directory_of("llama"))
    other = reconfigured(directory_of("llama"), tmp_path / "other", rms_norm_eps=1e-3)
    proof = prove(network, other)
    assert proof.verdict == DIFFERENT
    assert proof.differ == ()
    assert proof.first == "model.layers.0.self_attn.o_proj:output"
    assert prove(network, reconfigured(directory_of("llama"), tmp_path / "x", transformers_version="1")).holds


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama_tied", "gpt2"])
def test_rewritten_and_stored_is_algebraic(family: str, dtype: str, directory_of: Directory, tmp_path: Path) -> None:
    network = load(directory_of(family))
    rewritten, steps = rewrite(network, ["untie", "fold_norms", "hadamard"])
    saved = save(network, rewritten, steps, tmp_path / "out", dtype=dtype)
    proof = prove(network, saved.network)
    assert proof.verdict == ALGEBRAIC, proof.statement
    assert proof.dtype == dtype
    assert proof.bound / 10 < proof.change < proof.bound / 2, "rounding once explains it with room to spare"
    assert {i.dtype for i in saved.network.source.tensors.values()} == {dtype}


def test_a_permutation_is_algebraic(directory_of: Directory, tmp_path: Path) -> None:
    network = load(directory_of("llama"))
    rewritten, steps = rewrite(network, [Shuffle()])
    assert steps[0].method == "shuffle"
    assert len(steps[0].edges) == 5
    saved = save(network, rewritten, steps, tmp_path / "out")
    proof = prove(network, saved.network)
    assert proof.verdict == ALGEBRAIC
    assert proof.change < 1e-12, "nothing was rounded"


def test_a_wider_copy_changes_nothing(directory_of: Directory, tmp_path: Path) -> None:
    def narrow(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.bfloat16()

    def widen(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.float()

    before = edited(directory_of("llama"), tmp_path / "narrow", narrow)
    after = edited(tmp_path / "narrow", tmp_path / "wide", widen)
    proof = prove(before, after)
    assert (proof.verdict, proof.change) == (ALGEBRAIC, 0)


@pytest.mark.parametrize(
    ("tensor", "first"),
    [
        ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.o_proj:output"),
        ("model.layers.1.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj:output"),
        ("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj:output"),
        ("model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj:output"),
        ("lm_head.weight", "lm_head:output"),
    ],
)
def test_one_weight_changed(tensor: str, first: str, directory_of: Directory, tmp_path: Path) -> None:
    """Far less than rounding all weights does, and yet seen: all other numbers are the same and were not rounded."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[tensor][3, 5] += 1e-5

    proof = prove(load(directory_of("llama")), edited(directory_of("llama"), tmp_path / "changed", change))
    assert proof.verdict == DIFFERENT
    assert not proof.holds
    assert proof.differ == (tensor,)
    assert proof.first == first
    assert first in proof.statement


def test_the_embedding_of_a_token_that_no_random_text_holds(directory_of: Directory, tmp_path: Path) -> None:
    network = load(directory_of("llama"))
    texts = [example(skeleton(network.source), length=24, seed=seed)["input_ids"] for seed in range(3)]
    unseen = next(token for token in range(256) if not any((text == token).any() for text in texts))

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.embed_tokens.weight"][unseen] *= 1.01

    proof = prove(network, edited(directory_of("llama"), tmp_path / "changed", change))
    assert proof.verdict == DIFFERENT
    assert proof.first == "model.embed_tokens:output"


@pytest.mark.parametrize(
    ("family", "tensor", "first"),
    [
        ("llama", "model.layers.1.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj:output"),
        ("gpt2", "transformer.h.1.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj:output"),
    ],
)
def test_a_mistake_in_another_basis(
    family: str, tensor: str, first: str, directory_of: Directory, tmp_path: Path
) -> None:
    """Nothing of the two networks can be compared number by number, and the mistake is found where it is."""
    network = load(directory_of(family))
    rewritten, steps = rewrite(network, ["untie", "fold_norms", "random_rotation"])
    save(network, rewritten, steps, tmp_path / "out")

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[tensor][3] *= 1.01

    proof = prove(network, edited(tmp_path / "out", tmp_path / "changed", change))
    assert proof.verdict == DIFFERENT
    assert proof.first == first


def test_a_rotation_of_one_side_only(directory_of: Directory, tmp_path: Path) -> None:
    """What the layer writes has the same products between its rows; the stream it is added to has not."""
    generator = torch.Generator().manual_seed(2)
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))[0]

    def change(tensors: dict[str, Tensor]) -> None:
        name = "model.layers.0.self_attn.o_proj.weight"
        tensors[name] = (rotation @ tensors[name].double()).float()

    proof = prove(load(directory_of("llama")), edited(directory_of("llama"), tmp_path / "changed", change))
    assert proof.verdict == DIFFERENT
    assert proof.first == "model.layers.0.mlp.down_proj:output"


def test_other_vocabularies_and_inputs(directory_of: Directory) -> None:
    one, two = nn.Embedding(10, 4), nn.Embedding(12, 4)
    with pytest.raises(InvalidMeasurement, match="vocabularies of 10 and 12"):
        prove(network_of(nn.Sequential(one, nn.Linear(4, 3))), network_of(nn.Sequential(two, nn.Linear(4, 3))))
    with pytest.raises(InvalidMeasurement, match="does not take what the other takes"):
        prove(network_of(nn.Sequential(nn.Linear(4, 3))), network_of(nn.Sequential(nn.Linear(5, 3))))
    with pytest.raises(InvalidMeasurement, match="numbers come out"):
        prove(network_of(nn.Sequential(nn.Linear(4, 3))), network_of(nn.Sequential(nn.Linear(4, 2))))


def perceptron(dtype: torch.dtype) -> nn.Module:
    generator = torch.Generator().manual_seed(4)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 5)).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_modules_in_memory(dtype: torch.dtype) -> None:
    network = network_of(perceptron(dtype))
    assert prove(network, network_of(perceptron(dtype))).verdict == BITWISE
    order = torch.randperm(16, generator=torch.Generator().manual_seed(5))
    (symmetry,) = [s for s in symmetries_of(network) if s.group == PERMUTATION]
    turned = replace(network, source=Rewritten(network.source, [Fold(symmetry, Transform(order=order))]))
    proof = prove(network, turned)
    assert proof.verdict == ALGEBRAIC
    assert proof.bound == 1e-10
    wrong = perceptron(dtype)
    wrong[0].weight[2, 3] += 1e-4
    proof = prove(network, network_of(wrong))
    assert proof.verdict == DIFFERENT
    assert proof.first == "0:output"
    assert proof.bound < proof.change / 100


def test_a_module_of_another_kind_with_the_same_tensors() -> None:
    proof = prove(network_of(perceptron(torch.float64)), network_of(perceptron(torch.float64)[:1]), inputs=())
    assert proof.differ
    silu = perceptron(torch.float64)
    silu[1] = nn.SiLU()
    proof = prove(network_of(perceptron(torch.float64)), network_of(silu))
    assert proof.verdict == DIFFERENT
    assert proof.differ == ()


def test_given_inputs_and_text(directory_of: Directory) -> None:
    from conftest import random_windows

    network = load(directory_of("llama"))
    rewritten, _ = rewrite(network, ["fold_norms"])
    text = prove(network, rewritten, windows=random_windows(5, 16))
    assert (text.verdict, text.inputs, text.tokens) == (ALGEBRAIC, 9, 4 * 48 + 5 * 16)
    one = prove(network, rewritten, inputs=[{"input_ids": torch.arange(10)[None]}])
    assert (one.verdict, one.inputs, one.tokens) == (ALGEBRAIC, 1, 10)
