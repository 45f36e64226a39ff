"""Files for onnxruntime: what it computes from them, what our reader finds in them, and files that lie."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
import torch
from conftest import build, save
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import outputs, read_back, rounded

from pennyweight.errors import (
    CorruptFile,
    InvalidFormat,
    InvalidModel,
    InvalidOutput,
    MissingExtra,
    MissingFile,
    PennyweightError,
)
from pennyweight.export.engines import find
from pennyweight.export.following import describe, first_layers
from pennyweight.export.onnx import trace
from pennyweight.export.onnx.graph import DATA
from pennyweight.export.onnx.layout import HEADER
from pennyweight.export.onnx.source import OnnxWeights, is_onnx
from pennyweight.export.onnx.write import NAME
from pennyweight.export.safetensors_stream import WholeFile
from pennyweight.flow.check import check
from pennyweight.flow.load import load
from pennyweight.flow.measure import runner_of
from pennyweight.flow.options import outline
from pennyweight.formats import Compressed, Dense, Format, Grid, parse
from pennyweight.network.finding import trace as finding
from pennyweight.network.network import Network, Site

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.xdist_group("onnx")  # one process follows each network once
ENGINE = find("onnxruntime")
GRIDS = {
    "q_proj": "int4 g32 sym", "k_proj": "int4 g16 asym", "v_proj": "int8 g32 asym", "o_proj": "int2 g32 asym",
    "gate_proj": "int2 g16 sym", "up_proj": "int8 g64 sym", "down_proj": "int4 g128 asym",
    "embed_tokens": "int4 g32 asym", "lm_head": "int4 g32 asym",
}  # fmt: skip


def grids_of(network: Network, names: Mapping[str, str] = GRIDS, dtype: str = "float16") -> dict[str, Format]:
    return programs.grids_of(network, names, dtype)


def written(network: Network, formats: Mapping[str, Format], out: Path, dtype: str = "float16") -> Path:
    ENGINE.files.write(network, formats, rounded(network, formats), out, dtype=dtype).reconcile()
    return out


@pytest.fixture(scope="module")
def tied(network_of: Callable[[str], Network], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose head is its embedding, in every width, with and without zero points. Do not write to it."""
    network = network_of("llama_tied")
    return written(network, grids_of(network), tmp_path_factory.mktemp("onnx") / "tied")


def test_what_is_read_back_is_what_was_computed(network_of: Callable[[str], Network], tied: Path) -> None:
    network = network_of("llama_tied")
    formats = grids_of(network)
    found = read_back(ENGINE, network, formats, tied)
    assert isinstance(found.source, OnnxWeights)
    with pytest.raises(InvalidModel, match="not stored as codes"):
        found.source.read_part("model.norm.weight")


def test_embedding_and_head_share_their_bytes(tied: Path) -> None:
    model = onnx.load(str(tied / NAME), load_external_data=False)
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer
    }
    name = load(tied).stored_name("lm_head.weight")
    assert places[f"{name}_Q4"] == places[f"{name}_Q4_rows"]
    ends = [int(place["offset"]) + int(place["length"]) for place in places.values() if place]
    assert max(ends) <= (tied / DATA).stat().st_size
    assert all(int(place["offset"]) % 64 == 0 for place in places.values() if place)


def test_the_engine_computes_what_we_do(tied: Path, network_of: Callable[[str], Network]) -> None:
    """All at once, then token by token, a batch whose first text is shorter: those of our loader."""
    session = onnxruntime.InferenceSession(str(tied / NAME), providers=["CPUExecutionProvider"])
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(3))
    mine = outputs(load(tied), ids)
    assert not torch.allclose(mine, outputs(network_of("llama_tied"), ids), atol=0.05)  # the codes matter
    caches = [entry for entry in session.get_inputs() if entry.name.startswith("past_key_values.")]
    past = [np.zeros((2, entry.shape[1], 0, entry.shape[3]), dtype=np.float32) for entry in caches]
    found, skipped = [], 3
    mask, positions = np.ones((2, 24), dtype=np.int64), np.tile(np.arange(24), (2, 1))
    for start, stop in ((0, 16), *((i, i + 1) for i in range(16, 24))):
        given = {"input_ids": ids[:, start:stop].numpy(), "attention_mask": mask[:, :stop],
                 "position_ids": positions[:, start:stop]}  # fmt: skip
        logits, *past = session.run(None, {**given, **dict(zip([c.name for c in caches], past, strict=True))})
        found.append(torch.from_numpy(logits))
    assert torch.allclose(torch.cat(found, 1), mine, atol=2e-5)
    shifted = torch.cat([torch.zeros(1, skipped, dtype=torch.long), ids[:1, : 24 - skipped]], 1)
    mask[0, :skipped], positions[0] = 0, np.maximum(np.arange(24) - skipped, 0)
    past = [np.zeros((1, entry.shape[1], 0, entry.shape[3]), dtype=np.float32) for entry in caches]
    given = {"input_ids": shifted.numpy(), "attention_mask": mask[:1], "position_ids": positions[:1]}
    logits = session.run(["logits"], {**given, **dict(zip([c.name for c in caches], past, strict=True))})[0]
    assert torch.allclose(torch.from_numpy(logits)[0, skipped:], mine[0, : 24 - skipped], atol=2e-5)


def test_check_and_the_program_itself(tied: Path, windows_of: Callable[..., Any]) -> None:
    done = check(tied, windows=2, length=16)
    assert done.engine == "onnxruntime"
    assert done.holds(1e-9)
    assert done.decode > 0
    runner = runner_of(load(tied / NAME))  # the file itself is a program without sites
    ids = windows_of(2, 12).ids
    assert torch.allclose(runner.forward(ids), outputs(load(tied), ids), atol=2e-5)


def test_sizes_are_known_beforehand(network_of: Callable[[str], Network], tied: Path) -> None:
    network, files = network_of("llama_tied"), ENGINE.files
    formats = grids_of(network)
    own = {network.stored_name(network.by_name[n].parameter): (network.by_name[n], f) for n, f in formats.items()}
    data = sum(files.stored_bytes(site.shape, format, "float16") for site, format in own.values())
    data += files.fixed_bytes(network, set(own), "float16")
    assert (tied / DATA).stat().st_size == HEADER + data
    total = sum(file.stat().st_size for file in tied.iterdir())
    assert total <= data + files.beside(network, "float16") <= 2 * total
    site = next(site for site in network.sites if site.role == "linear")
    assert files.stored_bytes(site.shape, Dense(dtype="float16"), "float16") == files.kept_bytes(
        network, site, "float16"
    )
    assert files.kept_as(network, site, "bfloat16") == "dense bfloat16"


def test_the_menu_is_what_it_loads(network_of: Callable[[str], Network]) -> None:
    network = network_of("llama_tied")
    menu = ENGINE.menu([64, 128], "bfloat16")
    assert {(format.bits, format.group_size) for format in menu if isinstance(format, Grid)} == {
        (4, 32), (4, 64),
    }  # fmt: skip
    fast = find("onnxruntime-int8").menu([64, 128], "bfloat16")
    assert {(format.bits, format.group_size) for format in fast if isinstance(format, Grid)} == {
        (2, 32), (2, 64), (4, 32), (4, 64), (8, 64),
    }  # fmt: skip
    assert ENGINE.menu([72], "bfloat16") == ()
    site = network.sites[1]
    for format in (*menu, *fast):
        assert ENGINE.refuses(site, format, network) is None
    for label, words in (("int3 g32 sym", "2, 4 or 8 bits"), ("int4 row sym", "no whole rows"), ("int4 g24 sym", "")):
        assert words in str(ENGINE.refuses(site, parse(label), network))
    table = outline(network, ENGINE, dtype="float16")
    outside = [row for row in table.groups if "model.embed_tokens" in row[0].sites]
    assert [len(row[0].sites) for row in outside] == [2]
    assert len(outside[0]) > 2


@pytest.mark.parametrize(
    ("label", "words"),
    [("int3 g32 sym", "2, 4 or 8 bits"), ("int4 row sym", "power of two"), ("int4 g8 sym", "power of two"),
     ("int4 g128 sym", "64 inputs"), ("fp8 e4m3 row", "int4 g64 sym"), ("int4 b32 sym", "2, 4 or 8 bits"),
     ("int4 g32 sym e8m0", "bfloat16")],
)  # fmt: skip
def test_formats_it_does_not_know(network_of: Callable[[str], Network], label: str, words: str) -> None:
    site = "model.layers.0.self_attn.q_proj"
    with pytest.raises(InvalidFormat, match=words) as caught:
        ENGINE.files.check(network_of("llama_tied"), {site: parse(label)}, "float16")
    assert caught.value.site == site


def test_sites_it_cannot_place(network_of: Callable[[str], Network]) -> None:
    with pytest.raises(InvalidFormat, match="no such site"):
        ENGINE.files.check(network_of("llama_tied"), {"nowhere": parse("int4 g32 sym")}, "float16")
    two = {"model.embed_tokens": parse("int4 g32 sym"), "lm_head": parse("int8 g32 sym")}
    with pytest.raises(InvalidFormat, match="same tensor"):
        ENGINE.files.check(network_of("llama_tied"), two, "float16")
    gpt = network_of("gpt2")
    site = next(site for site in gpt.sites if site.role == "transposed")
    assert "transposed" in str(ENGINE.refuses(site, parse("int4 g32 sym"), gpt))
    with pytest.raises(InvalidModel, match="knows no codes"):
        ENGINE.files.check(gpt, {site.name: parse("int4 g32 sym")}, "float16")


def test_networks_that_cannot_be_followed(tmp_path: Path) -> None:
    config = {
        "model_type": "mamba", "vocab_size": 256, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2,
        "intermediate_size": 64, "time_step_rank": 4,
    }  # fmt: skip
    network = load(save(build(config), tmp_path / "mamba"))
    with pytest.raises(InvalidModel, match="cannot follow the code of mamba"):
        ENGINE.files.check(network, {}, "float16")
    assert "cannot follow" in str(ENGINE.refuses_all(network, "float16"))
    with pytest.raises(InvalidModel, match="module in memory"):
        ENGINE.files.check(finding.network_of(build(config)), {}, "float16")


def test_packages_that_are_missing(network_of: Callable[[str], Network], monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(MissingExtra, match="onnxscript"):
        trace.traced.__wrapped__(describe(network_of("llama_tied")))


def test_the_same_bytes_again_and_nothing_done_twice(
    network_of: Callable[[str], Network], tied: Path, tmp_path: Path
) -> None:
    network = network_of("llama_tied")
    formats = grids_of(network)
    again = trace.traced.__wrapped__(first_layers(describe(network))[0])
    assert again.SerializeToString() == trace.outline_of(network)[0].SerializeToString()
    shutil.copytree(tied, tmp_path / "again")
    (tmp_path / "again" / NAME).unlink()

    def never(site: Site) -> Compressed:
        raise AssertionError(site.name)

    told: list[str] = []
    ENGINE.files.write(
        network, formats, never, tmp_path / "again", dtype="float16", on_tensor=lambda name, _: told.append(name)
    ).reconcile()
    assert set(told) == set(network.source.tensors)
    for file in tied.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    other = {**formats, "model.layers.0.self_attn.q_proj": parse("int4 g32 asym")}
    with pytest.raises(InvalidOutput, match="other tensors"):
        written(network, other, tmp_path / "again")


def test_what_breaks_off_leaves_nothing(network_of: Callable[[str], Network], tmp_path: Path) -> None:
    network = network_of("llama_tied")
    formats = grids_of(network)
    compressed, done = rounded(network, formats), list[str]()

    def breaks(site: Site) -> Compressed:
        done.append(site.name)
        if len(done) == 4:
            raise KeyboardInterrupt
        return compressed(site)

    with pytest.raises(KeyboardInterrupt):
        ENGINE.files.write(network, formats, breaks, tmp_path / "out", dtype="float16")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out" / "other.onnx").write_bytes(b"")
    with pytest.raises(InvalidOutput, match=r"other\.onnx"):
        written(network, formats, tmp_path / "out")
    wrong = {**formats, "model.layers.0.self_attn.q_proj": parse("int8 g32 sym")}
    with pytest.raises(InvalidFormat, match="was compressed as int8"):
        ENGINE.files.write(network, formats, rounded(network, wrong), tmp_path / "new", dtype="float16")


def test_dense_tensors_in_every_type(network_of: Callable[[str], Network], tmp_path: Path) -> None:
    network = network_of("llama_tied")
    formats = grids_of(network, {"up_proj": "int4 g32 sym"}, "bfloat16")
    out = written(network, formats, tmp_path / "bf16", "bfloat16")
    assert load(out).source.tensors["model.norm.weight"].dtype == "bfloat16"
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert check(out, windows=1, length=16).holds(1e-9)
    plain = written(network, {}, tmp_path / "plain", "float32")
    ids = torch.arange(12)[None]
    assert torch.equal(outputs(load(plain), ids), outputs(network, ids))


def test_activations_in_eight_bits_are_asked_for_and_cost(
    network_of: Callable[[str], Network], tied: Path, tmp_path: Path
) -> None:
    network = network_of("llama_tied")
    formats = grids_of(network)
    fast = find("onnxruntime-int8").files
    fast.write(network, formats, rounded(network, formats), tmp_path, dtype="float16").reconcile()
    assert (tmp_path / DATA).read_bytes() == (tied / DATA).read_bytes()
    assert 1e-7 < check(tmp_path, windows=1, length=16).kl < 0.02


def test_a_file_that_was_changed_is_not_what_was_computed(
    network_of: Callable[[str], Network], tied: Path, tmp_path: Path
) -> None:
    shutil.copytree(tied, tmp_path / "changed")
    data = bytearray((tied / DATA).read_bytes())
    data[HEADER] ^= 1
    (tmp_path / "changed" / DATA).write_bytes(data)
    first, second = load(tied).source, load(tmp_path / "changed").source
    assert first.fingerprint != second.fingerprint
    differing = [name for name in first.tensors if not torch.equal(first.read(name), second.read(name))]
    assert len(differing) == 1


# Programs of others


def product(
    path: Path, *, bits: int, block: int, columns: int, asymmetric: bool, rows: int = 24, seed: int = 0
) -> torch.Tensor:
    """A program of one product, by onnx's helper; returns the weight that onnxruntime multiplies by."""
    draw, groups = np.random.default_rng(seed), -(-columns // block)
    stored = {
        "B": draw.integers(0, 256, (rows, groups, block * bits // 8), dtype=np.uint8),
        "S": draw.standard_normal((rows, groups)).astype(np.float32),
    }
    if asymmetric:
        stored["Z"] = draw.integers(0, 256, (rows, -(-groups * bits // 8)), dtype=np.uint8)
    names = {"B": "onnx::MatMul_7_Q4", "S": "onnx::MatMul_7_scales", "Z": "onnx::MatMul_7_zero_points"}
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", *(names[key] for key in stored)], ["y"], name="/model/up_proj/MatMul_Q4",
        domain="com.microsoft", K=columns, N=rows, bits=bits, block_size=block, accuracy_level=1,
    )  # fmt: skip
    return one_node(path, node, {names[key]: value for key, value in stored.items()}, columns, rows)


def test_a_table_that_is_reshaped_from_the_head(tmp_path: Path) -> None:
    """As onnxruntime-genai ties them: one initializer, a Reshape before the rows are gathered."""
    weight = product(tmp_path, bits=4, block=32, columns=64, asymmetric=False)
    model, helper = onnx.load(tmp_path / NAME), onnx.helper
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([24, -1]), "two"))
    model.graph.input.append(helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n"]))
    model.graph.output.append(helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, ["n", 64]))
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "lm_head.weight_Q4"
    model.graph.node.append(helper.make_node("Reshape", ["lm_head.weight_Q4", "two"], ["flat"]))
    model.graph.node.append(
        helper.make_node(
            "GatherBlockQuantized",
            ["flat", "ids", "onnx::MatMul_7_scales"],
            ["rows"],
            domain="com.microsoft",
            bits=4,
            block_size=32,
            gather_axis=0,
            quantize_axis=1,
        )  # fmt: skip
    )
    onnx.save(model, tmp_path / NAME)
    source = OnnxWeights(tmp_path)
    assert list(source.tensors) == ["lm_head.weight"]
    assert torch.equal(source.read("lm_head.weight"), weight)
    session = onnxruntime.InferenceSession(str(tmp_path / NAME), providers=["CPUExecutionProvider"])
    rows = session.run(["rows"], {"x": np.zeros((1, 64), np.float32), "ids": np.arange(24)})[0]
    assert np.array_equal(source.read("lm_head.weight").numpy(), rows)


def test_data_beyond_two_gigabytes(tmp_path: Path) -> None:
    """A file with a hole: its numbers begin where 32 bits with a sign do not reach."""
    start, weight = 2**31 + 64, np.random.default_rng(2).standard_normal((40, 8)).astype(np.float32)
    node = onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_9"], ["y"], name="/lm_head/MatMul")
    one_node(tmp_path, node, {"onnx::MatMul_9": weight}, 40, 8)
    model = onnx.load(tmp_path / NAME)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": DATA, "offset": start, "length": weight.nbytes}.items():
        tensor.external_data.add(key=key, value=str(value))
    onnx.save(model, tmp_path / NAME)
    with WholeFile(tmp_path / DATA, b"", {"weight": start}, start + weight.nbytes) as file:
        file.put_bytes("weight", weight.tobytes())
    session = onnxruntime.InferenceSession(str(tmp_path / NAME), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"x": np.eye(40, dtype=np.float32)})[0].T
    assert np.array_equal(OnnxWeights(tmp_path).read("lm_head.weight").numpy(), theirs)


def one_node(path: Path, node: Any, stored: Mapping[str, Any], columns: int, rows: int) -> torch.Tensor:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", kind, ["n", columns])],
        [helper.make_tensor_value_info("y", kind, ["n", rows])],
        [onnx.numpy_helper.from_array(value, name) for name, value in stored.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path / NAME)
    (path / "config.json").write_text("{}")
    session = onnxruntime.InferenceSession(str(path / NAME), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": np.eye(columns, dtype=np.float32)})[0].T)


@settings(max_examples=40)
@given(
    bits=st.sampled_from([2, 4, 8]), block=st.sampled_from([16, 32, 64]), columns=st.integers(2, 20),
    asymmetric=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_what_onnxruntime_multiplies_by(
    tmp_path_factory: pytest.TempPathFactory, bits: int, block: int, columns: int, asymmetric: bool, seed: int
) -> None:
    path = tmp_path_factory.mktemp("product")
    theirs = product(path, bits=bits, block=block, columns=8 * columns, asymmetric=asymmetric, seed=seed)
    source = OnnxWeights(path)
    assert list(source.tensors) == ["model.up_proj.weight"]
    assert torch.equal(source.read("model.up_proj.weight"), theirs)
    if 8 * columns % block:
        with pytest.raises(InvalidModel, match="whole groups"):
            source.read_part("model.up_proj.weight")


def test_what_its_own_quantizer_writes(tmp_path: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    weight = np.random.default_rng(1).standard_normal((96, 40)).astype(np.float32)
    node = onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_9"], ["y"], name="/layers.0/mlp/up_proj/MatMul")
    dense = one_node(tmp_path / "dense", node, {"onnx::MatMul_9": weight}, 96, 40)
    assert torch.equal(OnnxWeights(tmp_path / "dense").read("layers.0.mlp.up_proj.weight"), dense)
    model = onnx.load(tmp_path / "dense" / NAME)
    quantizer = MatMulNBitsQuantizer(model, bits=4, block_size=32, is_symmetric=False, accuracy_level=1)
    quantizer.process()
    shutil.copytree(tmp_path / "dense", tmp_path / "small")
    quantizer.model.save_model_to_file(str(tmp_path / "small" / NAME))
    session = onnxruntime.InferenceSession(str(tmp_path / "small" / NAME), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"x": np.eye(96, dtype=np.float32)})[0].T
    source = OnnxWeights(tmp_path / "small")
    assert source.tensors["layers.0.mlp.up_proj.weight"].dtype == "int4 g32 asym float32"
    assert np.array_equal(source.read("layers.0.mlp.up_proj.weight").numpy(), theirs)


# Files that lie


def lying(tied: Path, out: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a program with one thing changed."""
    shutil.copytree(tied, out)
    model = onnx.load(str(tied / NAME), load_external_data=False)
    change(model.graph)
    (out / NAME).write_bytes(model.SerializeToString())
    return out


def tensor_of(graph: Any, end: str) -> Any:
    return next(tensor for tensor in graph.initializer if tensor.name.endswith(end))


def place(end: str, key: str, value: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        next(entry for entry in tensor_of(graph, end).external_data if entry.key == key).value = value

    return change


def shape(end: str, *sizes: int) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        tensor_of(graph, end).dims[:] = sizes

    return change


def attribute(name: str, value: int) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        node = next(node for node in graph.node if node.op_type == "MatMulNBits")
        next(one for one in node.attribute if one.name == name).i = value

    return change


def order_of_inputs(graph: Any) -> None:
    node = next(node for node in graph.node if node.op_type == "MatMulNBits" and len(node.input) == 4)
    node.input.append("order")


def no_inputs(graph: Any) -> None:
    del next(node for node in graph.node if node.op_type == "MatMulNBits").input[1:]


def computed_scales(graph: Any) -> None:
    node = next(node for node in graph.node if node.op_type == "MatMulNBits")
    node.input[2] = "logits"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (place("norm.weight", "location", "../../secret"), CorruptFile, "beside the .onnx file"),
        (place("norm.weight", "location", "/etc/passwd"), CorruptFile, "beside the .onnx file"),
        (place("norm.weight", "location", ""), CorruptFile, "beside the .onnx file"),
        (place("norm.weight", "location", "elsewhere"), MissingFile, "elsewhere"),
        (place("norm.weight", "offset", "99999999999999999999"), CorruptFile, "inside the file"),
        (place("norm.weight", "offset", "-64"), CorruptFile, "inside the file"),
        (place("norm.weight", "offset", "first"), CorruptFile, "whole numbers"),
        (place("norm.weight", "length", "8"), CorruptFile, "said to have 8 bytes"),
        (shape("norm.weight", -64), CorruptFile, "not negative"),
        (shape("norm.weight", 2**62, 2**62), CorruptFile, "said to have 128 bytes"),
        (attribute("K", 2**62), InvalidModel, "do not fit together"),
        (attribute("N", 0), InvalidModel, "do not fit together"),
        (attribute("bits", 3), InvalidModel, "do not fit together"),
        (attribute("block_size", 0), InvalidModel, "do not fit together"),
        (attribute("block_size", 64), InvalidModel, "do not fit together"),
        (order_of_inputs, InvalidModel, "another order"),
        (computed_scales, InvalidModel, "are computed"),
        (no_inputs, InvalidModel, "are computed"),
    ],
)
def test_programs_that_lie(
    tied: Path, tmp_path: Path, change: Callable[[Any], None], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        load(lying(tied, tmp_path / "lying", change))
    assert isinstance(caught.value, PennyweightError)


def test_data_that_are_cut_off(tied: Path, tmp_path: Path) -> None:
    shutil.copytree(tied, tmp_path / "short")
    data = (tied / DATA).read_bytes()
    (tmp_path / "short" / DATA).write_bytes(data[:-64])
    with pytest.raises(CorruptFile, match="inside the file"):
        load(tmp_path / "short")
    (tmp_path / "short" / DATA).write_bytes(data)
    source = OnnxWeights(tmp_path / "short")
    (tmp_path / "short" / DATA).write_bytes(data[:1024])
    with pytest.raises(CorruptFile, match="short of the end"):
        source.read("model.norm.weight")
    (tmp_path / "short" / NAME).write_bytes(b"\xff" * 99)
    with pytest.raises(CorruptFile, match="cannot be read as ONNX"):
        load(tmp_path / "short")


def test_which_directories_are_programs(tied: Path, tmp_path: Path) -> None:
    assert is_onnx(tied)
    shutil.copytree(tied, tmp_path / "two")
    shutil.copy(tied / NAME, tmp_path / "two" / "other.onnx")
    assert not is_onnx(tmp_path / "two")
    with pytest.raises(MissingFile, match="2 \\.onnx files"):
        ENGINE.files.handed(tmp_path / "two")
    assert ENGINE.files.handed(tied) == ENGINE.files.handed(tied / NAME) == tied / NAME
