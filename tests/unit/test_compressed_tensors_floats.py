"""Small floats in compressed-tensors files: what we write, what the package makes of it, and what others may write."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pennyweight import formats
from pennyweight.errors import InvalidFormat, InvalidModel
from pennyweight.export.compressed_tensors.layout import stored_bytes
from pennyweight.export.compressed_tensors.source import CompressedTensorsSource
from pennyweight.export.compressed_tensors.write import write
from pennyweight.formats import Compressed
from pennyweight.methods.quantization import RoundToNearest
from pennyweight.network.finding.trace import load_network
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.source import SafetensorsSource
from pennyweight.numerics.random import stream

VOCABULARY = 250
LAYOUTS = {
    "fp8 e4m3 row bfloat16": "float-quantized", "fp8 e4m3 tensor bfloat16": "float-quantized",
    "fp8 e4m3 g32 bfloat16": "float-quantized", "fp8 e4m3 b16 bfloat16": "float-quantized",
    "mxfp8 e4m3": "mxfp8-quantized", "mxfp4": "mxfp4-pack-quantized", "nvfp4": "nvfp4-pack-quantized",
}  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    directory = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model, generator = LlamaForCausalLM(config), stream(0, "weights")
    for parameter in model.parameters():
        parameter.data.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.05, generator=generator)
    model.save_pretrained(directory)
    return load_network(SafetensorsSource(directory))


def rounded(network: Network, chosen: Mapping[str, formats.Format]) -> Callable[[Site], Compressed]:
    def compress(site: Site) -> Compressed:
        weight = network.source.read(site.parameter).float()
        return RoundToNearest().compress(weight, None, chosen[site.name], generator=stream(0, site.name))

    return compress


def written(network: Network, out: Path, labels: list[str]) -> dict[str, formats.Format]:
    sites = [site for site in network.sites if site.role == "linear"]
    chosen = {site.name: formats.parse(labels[i % len(labels)]) for i, site in enumerate(sites)}
    write(network, chosen, rounded(network, chosen), out, dtype="bfloat16").reconcile()
    return chosen


@pytest.mark.parametrize("label", LAYOUTS)
def test_what_is_stored_comes_back(network: Network, tmp_path: Path, label: str) -> None:
    chosen = written(network, tmp_path, [label])
    source = CompressedTensorsSource(tmp_path)
    sizes = {name: tensor.nbytes for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    for site in network.sites:
        if site.name not in chosen:
            continue
        expected = rounded(network, chosen)(site).parts[0]
        found = source.read_part(site.parameter)
        assert found.format == expected.format
        for role, tensor in expected.tensors.items():
            assert torch.equal(found.tensors[role].float(), tensor.float()), f"{role} of {site.name}"
        assert torch.equal(source.read(site.parameter), Compressed((expected,), site.shape).dequantize())
        stored = sum(size for name, size in sizes.items() if name.startswith(site.parameter))
        assert stored == stored_bytes(site.shape, chosen[site.name], "bfloat16")
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["format"] == LAYOUTS[label]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("label", LAYOUTS)
def test_the_package_unpacks_the_same_numbers(network: Network, tmp_path: Path, label: str) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    written(network, tmp_path, [label])
    tensors, source = load_file(tmp_path / "model.safetensors"), CompressedTensorsSource(tmp_path)
    for group in json.loads((tmp_path / "config.json").read_text())["quantization_config"]["config_groups"].values():
        scheme = QuantizationScheme(**group)
        compressor = BaseCompressor.get_value_from_registry(group["format"])
        for name in group["targets"]:
            module = {key.rpartition(".")[2]: t for key, t in tensors.items() if key.startswith(f"{name}.")}
            if LAYOUTS[label] == "float-quantized":
                module["weight_scale"] = module["weight_scale"].float()  # it computes in the type of the scales
            found = compressor.decompress(module, scheme)["weight"]
            assert torch.equal(found.float(), source.read(f"{name}.weight")), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("labels", "dtype"),
    [([*[*LAYOUTS][:4], "int4 g32 sym bfloat16"], torch.float32), ([*LAYOUTS][4:], torch.bfloat16)],
    ids=["with scales of the model", "with scales of their own"],
)  # the package unpacks the second kind to bfloat16, where their numbers are exact, and to nothing else
def test_transformers_computes_the_same_logits(
    network: Network, tmp_path: Path, labels: list[str], dtype: torch.dtype
) -> None:
    pytest.importorskip("compressed_tensors")
    pytest.importorskip("accelerate")
    written(network, tmp_path, labels)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["format"] == "mixed-precision"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
        dense = AutoModelForCausalLM.from_pretrained(network.source.path, dtype=torch.float32).eval()
    source, ids = CompressedTensorsSource(tmp_path), torch.randint(0, VOCABULARY, (2, 16), generator=stream(0, "ids"))
    with torch.no_grad():
        before = dense(ids).logits
        for name, parameter in dense.named_parameters():
            parameter.data.copy_(source.read(name))
        loaded(ids)  # unpacks
        expected, found = dense(ids).logits, torch.nn.Module.float(loaded)(ids).logits
    scale = expected.abs().max()
    assert (found - expected).abs().max() <= 1e-4 * scale
    assert (before - expected).abs().max() > 1e-2 * scale  # the comparison could have failed


@pytest.mark.parametrize(
    ("label", "message"),
    [("mxfp4", "do not"), ("fp8 e4m3 row float16", "scales in float16"), ("fp6 e3m2 row bfloat16", "cannot be written"),
     ("nf4 g32", "cannot be written"), ("mxint8", "cannot be written")],
)  # fmt: skip
def test_formats_are_checked_before_anything_is_written(
    network: Network, tmp_path: Path, label: str, message: str
) -> None:
    site = network.sites[1]
    shape = (site.shape[0], 48) if label == "mxfp4" else site.shape
    with pytest.raises(InvalidFormat, match=message):
        stored_bytes(shape, formats.parse(label), "bfloat16")
    if shape == site.shape:
        chosen = {site.name: formats.parse(label)}
        with pytest.raises(InvalidFormat, match=message):
            write(network, chosen, rounded(network, chosen), tmp_path / "out", dtype="bfloat16")
        assert not (tmp_path / "out").exists()


def test_a_global_scale_of_others_is_read_and_is_no_part_of_ours(network: Network, tmp_path: Path) -> None:
    written(network, tmp_path, ["nvfp4"])
    tensors, name = load_file(tmp_path / "model.safetensors"), "model.layers.0.self_attn.q_proj.weight"
    before = CompressedTensorsSource(tmp_path).read(name)
    tensors[f"{name}_global_scale"] *= 3
    save_file(tensors, tmp_path / "model.safetensors")
    source = CompressedTensorsSource(tmp_path)
    torch.testing.assert_close(source.read(name), before / 3)
    with pytest.raises(InvalidFormat, match="power of two"):
        source.read_part(name)


@pytest.mark.parametrize(
    ("leaf", "change", "message"),
    [("packed", lambda t: t[:, :-1], "in groups of 16"), ("packed", lambda t: t[:-1], "scales of shape"),
     ("packed", lambda t: t.int(), "int32"), ("scale", lambda t: t.float(), "scales in float32"),
     ("scale", lambda t: t[:-1], "scales of shape"), ("global_scale", lambda t: t.expand(2), "more than one"),
     ("global_scale", None, "is missing"), ("scale", None, "is missing")],
)  # fmt: skip
def test_damaged_parts_are_named(
    network: Network, tmp_path: Path, leaf: str, change: Callable[[Tensor], Tensor] | None, message: str
) -> None:
    written(network, tmp_path, ["nvfp4"])
    tensors, name = load_file(tmp_path / "model.safetensors"), "model.layers.0.self_attn.q_proj.weight"
    part = tensors.pop(f"{name}_{leaf}")
    if change is not None:
        tensors[f"{name}_{leaf}"] = change(part).contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InvalidModel, match=message):
        CompressedTensorsSource(tmp_path)
