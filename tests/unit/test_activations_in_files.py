"""Roundings of activations and caches in compressed-tensors files: read back, and as transformers runs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pennyweight import formats
from pennyweight.errors import InvalidFormat, InvalidModel
from pennyweight.export.compressed_tensors.files import CompressedTensorsFiles
from pennyweight.export.compressed_tensors.layout import stored_bytes
from pennyweight.export.compressed_tensors.source import CompressedTensorsSource
from pennyweight.flow.load import load
from pennyweight.flow.observe import observe, observe_caches
from pennyweight.formats import Compressed
from pennyweight.formats.passing import Activations, Dynamic, KeysAndValues, Quantizer, Static, parse
from pennyweight.methods.activations import StaticRange
from pennyweight.network.network import Network, Site
from pennyweight.network.running.runnable import runnable
from pennyweight.network.running.stream import Stream
from pennyweight.statistics import Statistics

FP8 = parse("fp8 e4m3 tensor")
PAIRS = [
    ("int8 row sym", "int8 token"), ("int8 row sym", "int8 token asym"), ("int8 row sym", "int8 tensor"),
    ("int8 row sym", "int8 tensor asym"), ("int4 g32 sym", "int8 token"), ("fp8 e4m3 row", "fp8 e4m3 token"),
    ("fp8 e4m3 tensor", "fp8 e4m3 tensor"), ("fp8 e4m3 row", "fp8 e4m3 g32"),
]  # fmt: skip


@pytest.fixture(scope="module")
def network(directory_of: Callable[[str], Path]) -> Network:
    return load(directory_of("llama"))


@pytest.fixture(scope="module")
def seen(network: Network, windows_of: Callable[..., Any]) -> Mapping[str, Statistics]:
    return observe(network, windows_of(6, 24))


@pytest.fixture(scope="module")
def caches(network: Network, windows_of: Callable[..., Any]) -> Mapping[str, KeysAndValues]:
    found = observe_caches(network, windows_of(6, 24))
    return {name: KeysAndValues(*(StaticRange().fit(one, FP8) for one in both)) for name, both in found.items()}


def write(network: Network, label: str, activations: Activations, out: Path, dtype: str = "float32") -> Network:
    format = formats.parse(f"{label} {dtype}")
    chosen = {site.name: format for site in network.sites if site.role == "linear"}

    def compressed(site: Site) -> Compressed:
        weight = network.source.read(site.parameter).float()
        return Compressed((format.store(weight, search=False),), site.shape)

    CompressedTensorsFiles().rounding(activations).write(network, chosen, compressed, out, dtype=dtype).reconcile()
    return load(out)


def inputs(network: Network, label: str, seen: Mapping[str, Statistics]) -> dict[str, Quantizer]:
    format = parse(label)
    return {
        site.name: Dynamic(format) if format.over.dynamic else StaticRange().fit(seen[f"{site.name}:input"], format)
        for site in network.sites
        if site.role == "linear"
    }


def logits(network: Network, ids: Tensor) -> Tensor:
    runner = Stream(network)
    states = runner.forward(ids)
    with runner.end() as finish:
        return torch.stack([finish(window) for window in states])


@torch.no_grad()
def engine_logits(path: Path, ids: Tensor) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return torch.cat([model(input_ids=window[None], use_cache=True).logits for window in ids])


def kl(one: Tensor, other: Tensor) -> float:
    p, q = (x.double().log_softmax(-1) for x in (one, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(("weights", "reads"), PAIRS)
def test_files_round_as_was_meant_and_as_transformers_does(
    weights: str, reads: str, network: Network, seen: Mapping[str, Statistics], tmp_path: Path,
    windows_of: Callable[..., Any],
) -> None:  # fmt: skip
    meant, ids = Activations(inputs(network, reads, seen)), windows_of(3, 24, seed=8).ids
    small = write(network, weights, meant, tmp_path / "small")
    assert isinstance(small.source, CompressedTensorsSource)
    assert small.source.activations.same(meant)
    assert not small.source.left_out
    assert f"14 read {reads}" in small.source.description
    plain = write(network, weights, Activations(), tmp_path / "plain")
    ours, unrounded = logits(small, ids), logits(plain, ids)
    rounding = kl(unrounded, ours)
    assert rounding > 1e-6, "roundings are made"
    pytest.importorskip("compressed_tensors")
    # For symmetric codes of tokens it divides by 127.5 where kernels divide by 127: as far away as a rounding.
    engine = kl(engine_logits(tmp_path / "small", ids), ours)
    assert engine < (2 * rounding if reads in ("int8 token", "fp8 e4m3 g32") else 0.02 * rounding), (engine, rounding)


@pytest.mark.parametrize(("weights", "reads"), PAIRS)
def test_bytes_are_those_that_plans_count_on(
    weights: str, reads: str, network: Network, seen: Mapping[str, Statistics], tmp_path: Path
) -> None:
    small = write(network, weights, Activations(inputs(network, reads, seen)), tmp_path / "small")
    stored = load_file(tmp_path / "small" / "model.safetensors")
    for site in (site for site in network.sites if site.role == "linear"):
        format = small.source.read_part(site.parameter).format  # type: ignore[attr-defined]
        found = sum(t.numel() * t.element_size() for name, t in stored.items() if name.startswith(f"{site.name}."))
        assert abs(stored_bytes(site.shape, format, "float32", parse(reads)) - found) < 16, "but for alignment"


def test_keys_and_values_are_rounded_where_transformers_keeps_them(
    network: Network, caches: Mapping[str, KeysAndValues], tmp_path: Path, windows_of: Callable[..., Any]
) -> None:
    meant, ids = Activations(caches=caches), windows_of(3, 24, seed=8).ids
    small = write(network, "int8 row sym", meant, tmp_path / "small")
    assert small.source.activations.same(meant)  # type: ignore[attr-defined]
    assert [*caches] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert "2 keep keys and values in fp8 e4m3 tensor" in small.source.description
    ours = logits(small, ids)
    rounding = kl(logits(write(network, "int8 row sym", Activations(), tmp_path / "plain"), ids), ours)
    assert rounding > 1e-6
    pytest.importorskip("compressed_tensors")
    assert kl(engine_logits(tmp_path / "small", ids), ours) < 0.02 * rounding


def test_our_run_time_rounds_as_well(
    network: Network, caches: Mapping[str, KeysAndValues], tmp_path: Path, windows_of: Callable[..., Any]
) -> None:
    activations = Activations(
        {s.name: Dynamic(parse("int4 token")) for s in network.sites if s.role == "linear"}, caches
    )
    small, ids = write(network, "int8 row sym", activations, tmp_path / "small"), windows_of(2, 24, seed=8).ids
    with torch.no_grad():
        found = runnable(small, torch.float32).model(input_ids=ids).logits
    torch.testing.assert_close(found, logits(small, ids), atol=2e-3, rtol=2e-3)


def test_scales_are_those_that_the_file_can_hold(
    network: Network, seen: Mapping[str, Statistics], tmp_path: Path
) -> None:
    found = inputs(network, "int8 tensor", seen)
    small = write(network, "int8 row sym", Activations(found), tmp_path / "small", dtype="bfloat16")
    stored = small.source.activations.inputs  # type: ignore[attr-defined]
    for site, rounds in found.items():
        assert isinstance(rounds, Static)
        assert stored[site].scale == rounds.scale.bfloat16().float()


def edited(directory: Path, change: Callable[[dict[str, Any]], None]) -> CompressedTensorsSource:
    config = json.loads((directory / "config.json").read_text())
    change(config["quantization_config"])
    (directory / "config.json").write_text(json.dumps(config))
    return CompressedTensorsSource(directory)


def test_roundings_of_others_that_we_have_not_are_told(
    network: Network, seen: Mapping[str, Statistics], caches: Mapping[str, KeysAndValues], tmp_path: Path
) -> None:
    write(network, "int8 row sym", Activations(inputs(network, "int8 tensor", seen), caches), tmp_path)

    def unknown(config: dict[str, Any]) -> None:
        config["config_groups"]["group_0"]["input_activations"] |= {"strategy": "tensor_group", "dynamic": "local"}
        config["kv_cache_scheme"]["symmetric"] = False

    source = edited(tmp_path, unknown)
    assert not source.activations
    assert "the key-value cache" in source.left_out
    assert len(source.left_out) == 15


@pytest.mark.parametrize("scale", [torch.tensor([-1.0]), torch.tensor([torch.inf]), torch.ones(2)])
def test_scales_that_are_none(network: Network, seen: Mapping[str, Statistics], tmp_path: Path, scale: Tensor) -> None:
    write(network, "int8 row sym", Activations(inputs(network, "int8 tensor", seen)), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.input_scale"] = scale
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InvalidModel, match="scale of activations"):
        CompressedTensorsSource(tmp_path)


def test_what_these_files_cannot_say_is_refused(network: Network, tmp_path: Path) -> None:
    site = next(site for site in network.sites if site.role == "linear")
    for label, format in ((site.name, "fp8 e5m2 token"), ("lm_head", "int8 token")):
        with pytest.raises(InvalidFormat, match="cannot be written"):
            write(network, "int8 row sym", Activations({label: Dynamic(parse(format))}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
