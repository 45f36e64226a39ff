"""What a reference is known by: the values it computes with, not the bytes of its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pennyweight.network.finding.trace import load_network
from pennyweight.network.identity import identity_of
from pennyweight.network.sources.opening import open_source
from pennyweight.network.sources.source import INDEX

TINY: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32, "tie_word_embeddings": True,
}  # fmt: skip
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def model(save_model: Callable[[dict[str, Any], Path], nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("identity") / "model"
    save_model(TINY, directory)
    tensors = load_file(directory / WEIGHTS)
    save_file({name: weight.bfloat16() for name, weight in tensors.items()}, directory / WEIGHTS, {"format": "pt"})
    return directory


def known(directory: Path) -> tuple[str, str]:
    network = load_network(open_source(directory))
    return identity_of(network), network.source.fingerprint


def stored(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def save(directory: Path) -> None:
        save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS, {"format": "pt"})

    return save


def with_a_blank_line(directory: Path) -> None:
    with (directory / "config.json").open("a") as config:
        config.write("\n")


def with_a_setting_that_nothing_reads(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"note": "ours"}))


def in_shards(directory: Path) -> None:
    tensors, index = load_file(directory / WEIGHTS), {}
    for number, name in enumerate(sorted(tensors)):
        index[name] = f"part{number % 2}.safetensors"
    for shard in set(index.values()):
        save_file({name: tensors[name] for name in index if index[name] == shard}, directory / shard, {"format": "pt"})
    (directory / INDEX).write_text(json.dumps({"weight_map": index}))
    (directory / WEIGHTS).unlink()


SAME: dict[str, Callable[[Path], None]] = {
    "config": with_a_blank_line,
    "setting": with_a_setting_that_nothing_reads,
    "shards": in_shards,
    "wider": stored(lambda t: {name: weight.float() for name, weight in t.items()}),
    "tied twice": stored(lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
    "metadata": lambda directory: save_file(
        load_file(directory / WEIGHTS), directory / WEIGHTS, {"format": "pt", "a": "b"}
    ),
}


@pytest.mark.parametrize("change", SAME)
def test_saving_again_makes_no_other_model(change: str, model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    SAME[change](copy)
    before, after = known(model), known(copy)
    assert after[1] != before[1], "the files do differ"
    assert after[0] == before[0]


def nudged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "model.layers.1.mlp.down_proj.weight"
    weight = tensors[name].clone()
    weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0, dtype=weight.dtype))
    return tensors | {name: weight}


def transposed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "model.layers.0.self_attn.q_proj.weight"
    return tensors | {name: tensors[name].T.contiguous()}


@pytest.mark.parametrize("change", [nudged, transposed])
def test_another_value_is_another_model(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], model: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    stored(change)(copy)
    assert known(copy)[0] != known(model)[0]
