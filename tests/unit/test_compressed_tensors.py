import errno
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pennyweight.errors import DiskFull, InvalidFormat, InvalidModel, InvalidOutput, VerificationFailed
from pennyweight.export import safetensors_stream
from pennyweight.export.accounting import Accounting, Row
from pennyweight.export.compressed_tensors.layout import stored_bytes
from pennyweight.export.compressed_tensors.source import CompressedTensorsSource, is_compressed_tensors
from pennyweight.export.compressed_tensors.write import write
from pennyweight.export.engines import find
from pennyweight.export.uncompressed import dense_bytes
from pennyweight.formats import Compressed, Dense, Grid
from pennyweight.methods.quantization import RoundToNearest
from pennyweight.network.finding.trace import load_network
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.source import SafetensorsSource
from pennyweight.numerics.packing import pack_int32
from pennyweight.numerics.random import stream

INT4 = Grid(bits=4, group_size=32)
INT8 = Grid(bits=8)
INT5 = Grid(bits=5, group_size=32, symmetric=False)
INT3 = Grid(bits=3, group_size=64, symmetric=False)
BY_ENDING = {
    "q_proj": INT4, "k_proj": INT4, "v_proj": INT4, "o_proj": INT8, "gate_proj": INT5, "up_proj": INT5,
    "down_proj": INT3, "lm_head": INT5,
}  # fmt: skip
VOCABULARY = 250  # 250 codes of 5 bits do not fill whole words: zero points get padded


def make_model(directory: Path, *, tied: bool, layers: int = 2) -> Path:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    generator = stream(0, "weights")
    for parameter in model.parameters():
        parameter.data.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.05, generator=generator)
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text("{}")
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    return {tied: make_model(tmp_path_factory.mktemp("model"), tied=tied) for tied in (True, False)}


@pytest.fixture(scope="module")
def network(models: dict[bool, Path]) -> Network:
    return load_network(SafetensorsSource(models[False]))


def formats_of(network: Network) -> dict[str, Grid]:
    return {
        site.name: BY_ENDING[site.name.rpartition(".")[2]]
        for site in network.sites
        if site.role == "linear" or (site.role == "head" and not network.tied)
    }


def rounded(network: Network, formats: dict[str, Grid]) -> Callable[[Site], Compressed]:
    def compress(site: Site) -> Compressed:
        weight = network.source.read(site.parameter).float()
        return RoundToNearest().compress(weight, None, formats[site.name], generator=stream(0, site.name))

    return compress


def write_small(network: Network, out: Path, **options: Any) -> Accounting:
    formats = formats_of(network)
    return write(network, formats, rounded(network, formats), out, **{"dtype": "float16", **options})


@pytest.fixture(scope="module")
def small(network: Network, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Accounting]:
    out = tmp_path_factory.mktemp("small") / "out"
    return out, write_small(network, out)


@pytest.mark.parametrize("engine", ["vllm", "gptqmodel"])
def test_files_of_many_tensors_are_no_larger_than_was_said(engine: str, tmp_path: Path) -> None:
    """Names, shapes and places of a thousand tensors take more than any constant; a budget in bytes counts them."""
    network = load_network(SafetensorsSource(make_model(tmp_path / "model", tied=False, layers=48)))
    files, linear = find(engine).files, [site for site in network.sites if site.role == "linear"]
    mixed = formats_of(network) if engine == "vllm" else dict.fromkeys((site.name for site in linear), INT4)
    formats = {site.name: mixed[site.name] for site in linear}
    files.write(network, formats, rounded(network, formats), tmp_path / "small", dtype="float16")
    size = sum(path.stat().st_size for path in (tmp_path / "small").iterdir())
    tensors = sum(files.stored_bytes(site.shape, formats[site.name], "float16") for site in linear)
    tensors += files.fixed_bytes(network, {site.parameter for site in linear}, "float16")
    around = files.beside(network, "float16")
    assert size <= tensors + around <= size + 0.6 * around


def test_parts_come_back_bit_for_bit(network: Network, small: tuple[Path, Accounting]) -> None:
    source = CompressedTensorsSource(small[0])
    formats = formats_of(network)
    assert len(formats) == 15
    for site in network.sites:
        if site.name not in formats:
            continue
        expected = rounded(network, formats)(site).parts[0]
        found = source.read_part(site.parameter)
        assert found.format == expected.format
        assert found.tensors.keys() == expected.tensors.keys()
        for role, tensor in expected.tensors.items():
            assert found.tensors[role].dtype == tensor.dtype
            assert torch.equal(found.tensors[role], tensor), f"{role} of {site.name}"
        assert torch.equal(source.read(site.parameter), Compressed((expected,), site.shape).dequantize())
    embedding = source.read("model.embed_tokens.weight")
    assert torch.equal(embedding, network.source.read("model.embed_tokens.weight").half())


def test_the_source_looks_like_the_dense_model(network: Network, small: tuple[Path, Accounting]) -> None:
    source = CompressedTensorsSource(small[0])
    assert {n: i.shape for n, i in source.tensors.items()} == {n: i.shape for n, i in network.source.tensors.items()}
    assert source.tensors["model.layers.0.mlp.up_proj.weight"].dtype == "int5 g32 asym"
    assert sum(info.bytes for info in source.tensors.values()) == small[1].written
    assert "quantization_config" not in source.config
    assert source.config["dtype"] == "float16"
    assert {site.name for site in load_network(source).sites} == {site.name for site in network.sites}
    assert is_compressed_tensors(small[0])
    assert not is_compressed_tensors(network.source.path)
    assert not is_compressed_tensors(small[0] / "nowhere")
    with pytest.raises(InvalidModel, match="dense"):
        source.read_part("model.norm.weight")
    with pytest.raises(InvalidModel, match="nearest"):
        source.read("model.layers.0.mlp.up_proj.weights")


def test_stored_bytes_are_those_in_the_file(network: Network, small: tuple[Path, Accounting]) -> None:
    formats = formats_of(network)
    with safe_open(small[0] / "model.safetensors", "pt") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    for site in network.sites:
        stored = {name: size for name, size in sizes.items() if name.startswith(site.parameter)}
        if site.name in formats:
            assert sum(stored.values()) == stored_bytes(site.shape, formats[site.name], "float16")
        else:
            info = network.source.tensors[site.parameter]
            assert sum(stored.values()) == stored_bytes(site.shape, Dense(), "float16") == dense_bytes(info, "float16")
    assert small[1].written == sum(sizes.values())


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_computes_the_same_logits(models: dict[bool, Path], tied: bool, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("compressed_tensors")
        pytest.importorskip("accelerate")
        network = load_network(SafetensorsSource(models[tied]))
        formats = {name: replace(grid, symmetric=True) for name, grid in formats_of(network).items()}
        assert len(set(formats.values())) == 4  # a mixture, 3 and 5 bits among it
        write(network, formats, rounded(network, formats), tmp_path / "out", dtype="float16").reconcile()
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
        source = CompressedTensorsSource(tmp_path / "out")
        dense = AutoModelForCausalLM.from_pretrained(models[tied], dtype=torch.float32).eval()
        original = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
        for name, parameter in dense.named_parameters():
            parameter.data.copy_(source.read(name))
        ids = torch.randint(0, VOCABULARY, (2, 16), generator=stream(0, "ids"))
        with torch.no_grad():
            expected, found = dense(ids).logits, loaded(ids).logits
            dense.load_state_dict(original)
            before = dense(ids).logits
    scale = expected.abs().max()
    assert (found - expected).abs().max() <= 1e-4 * scale
    assert (before - expected).abs().max() > 1e-2 * scale  # the comparison could have failed


def test_the_package_unpacks_the_same_numbers(network: Network, small: tuple[Path, Accounting]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("compressed_tensors")
        from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
        from compressed_tensors.quantization import QuantizationScheme

        tensors = load_file(small[0] / "model.safetensors")
        source = CompressedTensorsSource(small[0])
        groups = json.loads((small[0] / "config.json").read_text())["quantization_config"]["config_groups"]
        for group in groups.values():
            scheme = QuantizationScheme(**group)
            for name in group["targets"]:
                module = {key.rpartition(".")[2]: t for key, t in tensors.items() if key.startswith(f"{name}.")}
                module["weight_scale"] = module["weight_scale"].float()
                found = PackedQuantizationCompressor.decompress(module, scheme)["weight"]
                assert torch.equal(found, source.read(f"{name}.weight")), name


@pytest.mark.parametrize("grid", [INT5, replace(INT8, symmetric=False)], ids=Grid.label)
def test_transformers_still_refuses_packed_zero_points(network: Network, tmp_path: Path, grid: Grid) -> None:
    formats = {"model.layers.0.mlp.up_proj": grid}
    write(network, formats, rounded(network, formats), tmp_path, dtype="float16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("compressed_tensors")
        pytest.importorskip("accelerate")
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):  # once it loads, relax `engines`
            AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)


def test_every_tensor_is_accounted_for(network: Network, small: tuple[Path, Accounting]) -> None:
    accounting = small[1]
    accounting.reconcile()
    actions = {row.name: row.action for row in accounting.rows}
    assert actions["model.layers.1.mlp.down_proj.weight"] == "transformed"
    assert actions["model.norm.weight"] == "cast"
    assert set(accounting.auxiliary) >= {"tokenizer.json", "generation_config.json"}
    assert (small[0] / "tokenizer.json").read_text() == "{}"
    assert Accounting.from_dict(json.loads(json.dumps(accounting.to_dict()))) == accounting


def test_an_account_that_does_not_add_up_is_refused(small: tuple[Path, Accounting]) -> None:
    rows, expected = small[1].rows, small[1].expected
    written = small[1].written
    with pytest.raises(VerificationFailed, match="without a row"):
        Accounting(rows=rows[1:], expected=expected, written=written).reconcile()
    with pytest.raises(VerificationFailed, match="counted twice"):
        Accounting(rows=(*rows, rows[0]), expected=expected, written=written).reconcile()
    with pytest.raises(VerificationFailed, match="not in the source"):
        Accounting(rows=rows, expected=expected[1:], written=written).reconcile()
    with pytest.raises(VerificationFailed, match="add up"):
        Accounting(rows=rows, expected=expected, written=written + 2).reconcile()
    odd = Row(name="x", action="lost", reason="", bytes_before=1, bytes_after=0)
    with pytest.raises(VerificationFailed, match="lost"):
        Accounting(rows=(odd,), expected=("x",), written=0).reconcile()


def test_config_names_every_quantized_module(network: Network, small: tuple[Path, Accounting]) -> None:
    text = (small[0] / "config.json").read_text()
    quantization = json.loads(text)["quantization_config"]
    groups = quantization["config_groups"]
    weights = [group["weights"] for group in groups.values()]
    assert {(w["num_bits"], w["strategy"], w["group_size"]) for w in weights} == {
        (4, "group", 32), (8, "channel", None), (5, "group", 32), (3, "group", 64),
    }  # fmt: skip
    assert sorted(name for group in groups.values() for name in group["targets"]) == sorted(formats_of(network))
    assert quantization["ignore"] == []
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_a_tied_head_is_stored_once_and_ignored(models: dict[bool, Path], tmp_path: Path) -> None:
    network = load_network(SafetensorsSource(models[True]))
    write_small(network, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["ignore"] == ["lm_head"]
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    with pytest.raises(InvalidFormat, match="lm_head"):
        write(network, {"lm_head": INT8}, rounded(network, {"lm_head": INT8}), tmp_path / "b", dtype="float16")


def test_a_repeated_tied_tensor_is_dropped_if_it_is_equal(models: dict[bool, Path], tmp_path: Path) -> None:
    model = shutil.copytree(models[True], tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.rotary.inv_freq"] = torch.ones(4, dtype=torch.float16)
    save_file(tensors, model / "model.safetensors")
    accounting = write_small(load_network(SafetensorsSource(model)), tmp_path / "a")
    accounting.reconcile()
    row = next(row for row in accounting.rows if row.name == "lm_head.weight")
    assert (row.action, row.bytes_after) == ("dropped", 0)
    assert "model.embed_tokens.weight" in row.reason
    assert "model.rotary.inv_freq" in load_file(tmp_path / "a" / "model.safetensors")
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InvalidModel, match="differs"):
        write_small(load_network(SafetensorsSource(model)), tmp_path / "b")


def test_nothing_compressed_is_a_plain_model(network: Network, tmp_path: Path) -> None:
    accounting = write(network, {}, rounded(network, {}), tmp_path, dtype="float32")
    accounting.reconcile()
    assert {row.action for row in accounting.rows} == {"kept"}
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    written, original = load_file(tmp_path / "model.safetensors"), load_file(network.source.path / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in original.items())


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_shards_and_resuming_give_the_same_bytes(network: Network, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    accounting = write_small(network, tmp_path, shard_bytes=20_000, on_tensor=lambda *a: seen.append(a))
    accounting.reconcile()
    assert seen == [(row.name, row.bytes_after) for row in accounting.rows]
    files = files_of(tmp_path)
    shards = sorted(name for name in files if name.endswith(".safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads(files["model.safetensors.index.json"])
    assert index["metadata"]["total_size"] == accounting.written
    assert CompressedTensorsSource(tmp_path).tensors.keys() == network.source.tensors.keys()  # the index agrees
    (tmp_path / shards[1]).unlink()
    (tmp_path / "config.json").unlink()
    called: list[str] = []
    formats = formats_of(network)

    def compress(site: Site) -> Compressed:
        called.append(site.name)
        return rounded(network, formats)(site)

    again = write(network, formats, compress, tmp_path, dtype="float16", shard_bytes=20_000)
    assert files_of(tmp_path) == files
    assert again == accounting
    made = {name.rpartition(".")[0] for name, shard in index["weight_map"].items() if shard == shards[1]}
    assert set(called) == made & formats.keys()
    assert 0 < len(called) < len(formats)


def test_one_file_or_many_hold_the_same_tensors(
    network: Network, small: tuple[Path, Accounting], tmp_path: Path
) -> None:
    write_small(network, tmp_path, shard_bytes=20_000)
    whole = load_file(small[0] / "model.safetensors")
    parts: dict[str, Tensor] = {}
    for file in tmp_path.glob("*.safetensors"):
        parts |= load_file(file)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_every_tensor_begins_at_a_multiple_of_its_element_size(small: tuple[Path, Accounting]) -> None:
    data = (small[0] / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert (8 + length) % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    width = {"I64": 8, "I32": 4, "F16": 2}
    assert all(entry["data_offsets"][0] % width[entry["dtype"]] == 0 for entry in header.values())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_whole_files_only(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    free = 50_000
    real = safetensors_stream._write

    def limited(file: Any, offset: int, data: Any) -> None:
        nonlocal free
        free -= len(data)
        if free < 0:
            raise OSError(code, "No space left on device")
        real(file, offset, data)

    monkeypatch.setattr(safetensors_stream, "_write", limited)
    with pytest.raises(DiskFull) as caught:
        write_small(network, tmp_path, shard_bytes=20_000)
    assert "bytes free" in caught.value.expected
    assert "run the same command again" in caught.value.mend
    left = [path.name for path in tmp_path.iterdir()]
    assert any(name.endswith(".safetensors") for name in left)
    assert not any(name.endswith(".part") for name in left)
    assert "config.json" not in left
    monkeypatch.undo()
    write_small(network, tmp_path, shard_bytes=20_000).reconcile()


def test_an_error_while_compressing_leaves_no_file(network: Network, tmp_path: Path) -> None:
    def fail(site: Site) -> Compressed:
        raise FileNotFoundError(site.name)

    with pytest.raises(FileNotFoundError):  # not ours to explain: it did not come from writing
        write(network, formats_of(network), fail, tmp_path, dtype="float16")
    assert not list(tmp_path.glob("*.safetensors")) + list(tmp_path.glob(".*.part"))


def test_a_directory_with_other_weights_is_refused(network: Network, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(InvalidOutput, match="other tensors"):
        write_small(network, tmp_path)
    with pytest.raises(InvalidOutput, match="not of this model"):
        write_small(network, tmp_path, shard_bytes=20_000)
    assert (tmp_path / "model.safetensors").read_bytes() == b"something else"


@pytest.mark.parametrize(
    ("name", "grid", "words"),
    [
        ("model.layers.0.mlp.up_proj", Grid(bits=4, scale_dtype="bfloat16"), "float16"),
        ("model.layers.0.mlp.up_proj", Grid(bits=4, group_size=48), "48"),
        ("model.embed_tokens", INT8, "embedding"),
        ("model.layers.7.mlp.up_proj", INT8, "no such site"),
    ],
)
def test_formats_are_checked_before_anything_is_written(
    network: Network, tmp_path: Path, name: str, grid: Grid, words: str
) -> None:
    with pytest.raises(InvalidFormat, match=words) as caught:
        write(network, {name: grid}, rounded(network, {name: grid}), tmp_path / "out", dtype="float16")
    assert caught.value.site == name
    assert not (tmp_path / "out").exists()


def test_what_was_compressed_must_be_what_was_planned(network: Network, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj"
    with pytest.raises(InvalidFormat, match="int4 g32 sym"):
        write(network, {name: INT8}, rounded(network, {name: INT4}), tmp_path, dtype="float16")


def edit(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config["quantization_config"])
    (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture
def others(small: tuple[Path, Accounting], tmp_path: Path) -> Path:
    return shutil.copytree(small[0], tmp_path / "others")


def test_targets_by_class_and_pattern_as_others_write_them(small: tuple[Path, Accounting], others: Path) -> None:
    def change(quantization: dict[str, Any]) -> None:
        targets = {
            4: [r"re:.*[qkv]_proj$"],
            8: ["Linear"],
            5: ["re:.*(gate|up)_proj", "lm_head"],
            3: [r"re:.*down_proj"],
        }
        quantization["ignore"] = ["re:.*norm"]
        for group in quantization["config_groups"].values():
            group["targets"] = targets[group["weights"]["num_bits"]]
            group["format"] = None
            group["weights"] |= {"observer": "minmax", "actorder": "weight", "zp_dtype": "torch.int8"}

    edit(others, change)
    ours, found = CompressedTensorsSource(small[0]), CompressedTensorsSource(others)
    assert ours.tensors == found.tensors
    assert all(torch.equal(ours.read(name), found.read(name)) for name in ours.tensors)


def test_int_quantized_checkpoints_of_others(network: Network, small: tuple[Path, Accounting], tmp_path: Path) -> None:
    ours = CompressedTensorsSource(small[0])
    tensors: dict[str, Tensor] = {}
    for name, info in ours.tensors.items():
        if info.dtype not in (INT8.label(), INT5.label()):
            tensors[name] = ours.read(name).half()
            continue
        part = ours.read_part(name)
        middle = part.format.levels // 2  # type: ignore[attr-defined]
        tensors[name] = (part.tensors["codes"].int() - middle).to(torch.int8)
        tensors[f"{name}_scale"] = part.tensors["scale"]
        if "zero_point" in part.tensors:
            tensors[f"{name}_zero_point"] = (part.tensors["zero_point"].int() - middle).to(torch.int8)
    tensors["model.layers.0.self_attn.k_scale"] = torch.ones(1)
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((small[0] / "config.json").read_text())
    config["quantization_config"]["format"] = "int-quantized"
    for group in config["quantization_config"]["config_groups"].values():
        group["format"] = "int-quantized"
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = CompressedTensorsSource(tmp_path)
    assert found.tensors.keys() == network.source.tensors.keys()
    for name in ("model.layers.1.self_attn.o_proj.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"):
        assert torch.equal(found.read(name), ours.read(name))
        for role, tensor in ours.read_part(name).tensors.items():
            assert torch.equal(found.read_part(name).tensors[role], tensor)


def test_what_cannot_be_read_is_named(others: Path) -> None:
    first = "group_0"
    changes: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
        ("float-quantized", lambda q: q["config_groups"][first].update(format="float-quantized")),
        ("transform_config", lambda q: q.update(transform_config={"config_groups": {"a": {}}})),
        ("scales by block", lambda q: q["config_groups"][first]["weights"].update(strategy="block")),
        ("does not say of which grid", lambda q: q["config_groups"].pop(first)),
        ("does not say of which grid", lambda q: q["ignore"].append("re:.*down_proj")),
        ("weight_packed is int32", lambda q: q["config_groups"][first]["weights"].update(num_bits=6)),
        ("scales of shape", lambda q: q["config_groups"][first]["weights"].update(group_size=16)),
        ("weight_zero_point is missing", lambda q: q["config_groups"][first]["weights"].update(symmetric=False)),
    ]
    original = (others / "config.json").read_text()
    for words, change in changes:
        (others / "config.json").write_text(original)
        edit(others, change)
        with pytest.raises(InvalidModel, match=words):
            CompressedTensorsSource(others)
    (others / "config.json").write_text(original)
    tensors = load_file(others / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight_g_idx"] = torch.zeros(63, dtype=torch.int32)
    save_file(tensors, others / "model.safetensors")
    with pytest.raises(InvalidModel, match="g_idx"):
        CompressedTensorsSource(others)
    tensors["model.layers.0.self_attn.q_proj.weight_g_idx"] = torch.full((64,), 2, dtype=torch.int32)
    save_file(tensors, others / "model.safetensors")
    source = CompressedTensorsSource(others)  # as many columns as there should be, of a third group among two
    with pytest.raises(InvalidModel, match="no scale"):
        source.read("model.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"])
def test_columns_in_the_order_of_activations(small: tuple[Path, Accounting], others: Path, name: str) -> None:
    ours = CompressedTensorsSource(small[0])
    part = ours.read_part(name)
    columns = ours.tensors[name].shape[1]
    groups = part.tensors["scale"].shape[1]
    group = torch.arange(columns) % groups  # neighbours are of different groups
    tensors = load_file(others / "model.safetensors")
    tensors[f"{name}_g_idx"] = group.to(torch.int32)
    save_file(tensors, others / "model.safetensors")
    found = CompressedTensorsSource(others)
    zero = part.tensors["zero_point"].float() if "zero_point" in part.tensors else torch.full((1, groups), 8.0)
    for column in (0, 1, 7, columns - 1):
        g = int(group[column])
        expected = (part.tensors["codes"][:, column].float() - zero[:, g]) * part.tensors["scale"][:, g].float()
        assert torch.equal(found.read(name)[:, column], expected)
    assert not torch.equal(found.read(name), ours.read(name))
    with pytest.raises(InvalidModel, match="out of order"):
        found.read_part(name)
    tensors[f"{name}_g_idx"] = torch.full((columns,), -1, dtype=torch.int32)  # written and never set
    save_file(tensors, others / "model.safetensors")
    assert torch.equal(CompressedTensorsSource(others).read(name), ours.read(name))


@pytest.mark.parametrize(
    ("strategy", "tile", "flat"),
    [("tensor", (64, 64), True), ("channel", (1, 64), True), ("channel", (1, 64), False), ("group", (1, 32), False),
     ("block", (48, 48), False)],
)  # fmt: skip
def test_eight_bit_floats(
    models: dict[bool, Path], tmp_path: Path, strategy: str, tile: tuple[int, int], flat: bool
) -> None:
    tensors = load_file(models[False] / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = tensors[name]
    tall, wide = tile
    scale = 0.001 * (1 + torch.rand(-(-64 // tall), -(-64 // wide), generator=stream(0, "scales")))
    spread = torch.stack([torch.stack([scale[r // tall, c // wide] for c in range(64)]) for r in range(64)])
    tensors[name] = (weight / spread).to(torch.float8_e4m3fn)
    tensors[f"{name}_scale"] = scale.flatten() if flat else scale
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((models[False] / "config.json").read_text())
    weights = {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy,
        "group_size": 32 if strategy == "group" else None, "block_structure": [48, 48] if strategy == "block" else None,
    }  # fmt: skip
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8, "dynamic": True}}
    quantization = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"a": group}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    source = CompressedTensorsSource(tmp_path)
    assert torch.equal(source.read(name), tensors[name].float() * spread)
    assert (source.read(name) - weight).abs().max() <= 2**-4 * weight.abs().max()
    assert source.tensors[name].dtype == "float8_e4m3fn"
    assert "1 read int8 token" in source.description
    assert len(load_network(source).sites) == 16
    assert torch.equal(Compressed((source.read_part(name),), (64, 64)).dequantize(), source.read(name))
    edit(tmp_path, lambda q: q["config_groups"]["a"]["weights"].update(type="int"))
    with pytest.raises(InvalidModel, match="float-quantized"):
        CompressedTensorsSource(tmp_path)


def test_scales_of_a_row_may_be_a_list(models: dict[bool, Path], tmp_path: Path) -> None:
    tensors = load_file(models[False] / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = torch.randint(-128, 128, (64, 64), generator=stream(0, "codes")).to(torch.int8)
    tensors[f"{name}_scale"] = torch.rand(64, generator=stream(0, "scales")) + 0.1
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((models[False] / "config.json").read_text())
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}
    quantization = {"quant_method": "compressed-tensors", "format": "naive-quantized", "config_groups": {"a": group}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    found = CompressedTensorsSource(tmp_path).read(name)
    assert torch.equal(found, tensors[name].float() * tensors[f"{name}_scale"][:, None])


def test_the_gapped_layout_of_old_versions_is_refused(others: Path) -> None:
    tensors = load_file(others / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight_packed"
    tensors[name] = pack_int32(torch.zeros(64, 104, dtype=torch.uint8), 4)  # 13 words: ten 3-bit codes in each
    save_file(tensors, others / "model.safetensors")
    with pytest.raises(InvalidModel, match="without gaps"):
        CompressedTensorsSource(others)


def test_bfloat16_models(models: dict[bool, Path], tmp_path: Path) -> None:
    network = load_network(SafetensorsSource(models[True]))
    grid = Grid(bits=4, group_size=32, scale_dtype="bfloat16")
    formats = {site.name: grid for site in network.sites if site.role == "linear"}
    write(network, formats, rounded(network, formats), tmp_path, dtype="bfloat16").reconcile()
    source = CompressedTensorsSource(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    expected = rounded(network, formats)(network.by_name["model.layers.0.mlp.up_proj"]).dequantize()
    assert torch.equal(source.read(name), expected)
    assert source.read("model.norm.weight").dtype == torch.bfloat16
