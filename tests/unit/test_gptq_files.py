"""GPTQ and float files: bit for bit by our reader, by a twin that shares nothing with it, and by transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference.gptq import dequantize

from pennyweight import formats
from pennyweight.errors import InvalidFormat
from pennyweight.export import files_of
from pennyweight.export.engines import find
from pennyweight.flow.load import load
from pennyweight.formats import Compressed, Dense, Format
from pennyweight.network.network import Network, Site

LABELS = {
    "self_attn.q_proj": "int4 g32 sym", "self_attn.k_proj": "int4 g32 sym", "self_attn.v_proj": "int4 g32 sym",
    "self_attn.o_proj": "int8 row sym", "mlp.gate_proj": "int2 g64 sym", "mlp.up_proj": "int2 g64 sym",
}  # fmt: skip


def chosen(network: Network, **changes: str) -> dict[str, Format]:
    labels = {name: changes.get(name.rpartition(".")[2], label) for name, label in LABELS.items()}
    return {
        site.name: formats.parse(label) for site in network.sites for name, label in labels.items()
        if site.name.endswith(name)
    }  # fmt: skip


def export(network: Network, kind: str, formats: dict[str, Format], out: Path, dtype: str) -> dict[str, Compressed]:
    made: dict[str, Compressed] = {}

    def compress(site: Site) -> Compressed:
        part = formats[site.name].store(network.source.read(site.parameter).float(), search=False)
        made[site.name] = Compressed((part,), site.shape)
        return made[site.name]

    files = files_of(kind)
    accounting = files.write(network, formats, compress, out, dtype=dtype)
    accounting.reconcile()
    written = sum(files.stored_bytes(network.by_name[name].shape, format, dtype) for name, format in formats.items())
    assert accounting.written == written + files.fixed_bytes(network, [f"{name}.weight" for name in formats], dtype)
    return made


@pytest.mark.parametrize("zero_points", [False, True])
def test_gptq_is_read_back_by_two_readers(
    zero_points: bool, network_of: Callable[[str], Network], tmp_path: Path
) -> None:
    network = network_of("llama")
    changes = {"v_proj": "int3 g32 sym"}
    if zero_points:
        asymmetric = {"up_proj": "int2 g64", "gate_proj": "int2 g64", "o_proj": "int8 row", "v_proj": "int3 g32"}
        changes = {name: f"{label} asym" for name, label in asymmetric.items()}
    made = export(network, "gptq", chosen(network, **changes), tmp_path, "float16")
    back, part_of = load(tmp_path), files_of("gptq").parts(tmp_path)
    assert len(made) == 12
    for name, compressed in made.items():
        part = part_of(f"{name}.weight")
        assert part.format == compressed.parts[0].format
        for field, tensor in compressed.parts[0].tensors.items():
            assert torch.equal(part.tensors[field], tensor), (name, field)
        assert torch.equal(back.source.read(f"{name}.weight"), compressed.dequantize())
    for name in list(made)[:6]:
        assert torch.equal(torch.from_numpy(dequantize(tmp_path, name)), made[name].dequantize())


def test_the_settings_of_a_mixture(network_of: Callable[[str], Network], tmp_path: Path) -> None:
    network = network_of("llama")
    export(network, "gptq", chosen(network), tmp_path, "float16")
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert settings == json.loads((tmp_path / "quantize_config.json").read_text())
    assert (settings["bits"], settings["group_size"], settings["sym"]) == (4, 32, True)
    assert settings["checkpoint_format"] == "gptq"
    patterns = dict(settings["dynamic"])

    def first(module: str) -> object:
        for pattern, value in patterns.items():
            if re.match(pattern.removeprefix("+:").removeprefix("-:"), module):
                return False if pattern.startswith("-:") else value
        return None

    assert first("model.layers.1.self_attn.q_proj") is None
    assert first("model.layers.0.self_attn.o_proj") == {"bits": 8, "group_size": -1, "sym": True}
    assert first("model.layers.0.mlp.gate_up_proj") == {"bits": 2, "group_size": 64, "sym": True}
    assert first("model.layers.0.mlp.down_proj") is False
    assert first("model.layers.10.mlp.down_proj") is None
    asymmetric = chosen(network, o_proj="int8 row asym")
    export(network, "gptq", asymmetric, tmp_path / "two", "float16")
    second = json.loads((tmp_path / "two" / "config.json").read_text())["quantization_config"]
    assert second["checkpoint_format"] == "gptq_v2"


@pytest.mark.parametrize("label", ["int5 g32 sym", "int4 g96 sym", "int4 g32 sym bfloat16", "q4_0", "int4 b32 sym"])
def test_what_gptq_files_do_not_hold(label: str, network_of: Callable[[str], Network]) -> None:
    network = network_of("llama")
    name = "model.layers.0.mlp.down_proj"
    format = formats.parse(label)
    with pytest.raises(InvalidFormat, match="cannot be written to GPTQ"):
        files_of("gptq").check(network, {name: format}, "float16")
    assert find("gptqmodel").refuses(network.by_name[name], format, network)
    with pytest.raises(InvalidFormat, match="embedding table"):
        files_of("gptq").check(network, {"model.embed_tokens": formats.parse("int8 row sym")}, "float16")
    with pytest.raises(InvalidFormat, match="multiples of 32"):
        files_of("gptq").stored_bytes((48, 64), formats.parse("int4 g32 sym"), "float16")


def test_floats_are_what_codes_stand_for(network_of: Callable[[str], Network], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    network = network_of("llama")
    names = [site.name for site in network.sites if site.role == "linear"]
    grid, widths = formats.parse("int4 g32 sym"), {0: "float32", 1: "bfloat16"}
    made = {}

    def compress(site: Site) -> Compressed:
        numbers = grid.decode(grid.store(network.source.read(site.parameter)).tensors, site.shape)
        made[site.name] = Dense(dtype=widths[int(site.block == 1)]).store(numbers).tensors["values"]
        return Compressed((Dense(dtype=widths[int(site.block == 1)]).store(numbers),), site.shape)

    chosen = {name: Dense(dtype=widths[int(network.by_name[name].block == 1)]) for name in names}
    files = files_of("dense")
    files.write(network, chosen, compress, tmp_path, dtype="float32").reconcile()
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    stored, back = dict(model.named_parameters()), load(tmp_path)
    for name in names:
        assert stored[f"{name}.weight"].dtype == torch.float32
        assert torch.equal(stored[f"{name}.weight"], made[name].float())
        assert torch.equal(back.source.read(f"{name}.weight"), made[name])
        assert torch.equal(files.parts(tmp_path)(f"{name}.weight").tensors["values"], made[name])
    with pytest.raises(InvalidFormat, match="model in bfloat16"):
        files.check(network, {names[0]: Dense(dtype="float16")}, "bfloat16")
    with pytest.raises(InvalidFormat, match="float files"):
        files.check(network, {names[0]: grid}, "float32")
