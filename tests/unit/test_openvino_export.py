"""Files for OpenVINO: what it computes from them, what our reader finds in them, and files that lie."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

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
from pennyweight.export.openvino import trace
from pennyweight.export.openvino.layout import HEADER
from pennyweight.export.openvino.source import OpenVINOWeights, is_openvino
from pennyweight.export.openvino.write import BIN, XML
from pennyweight.export.probes import FOLDER
from pennyweight.flow.check import check
from pennyweight.flow.load import load
from pennyweight.flow.options import outline
from pennyweight.formats import Compressed, Dense, Format, Grid, parse
from pennyweight.network.finding import trace as finding
from pennyweight.network.network import Network, Site

openvino = pytest.importorskip("openvino", reason="the openvino extra is not installed")

pytestmark = pytest.mark.xdist_group("openvino")  # one process follows each network once

ENGINE = find("openvino")
GRIDS = {
    "q_proj": "int4 g64 sym", "k_proj": "int4 g16 asym", "v_proj": "int8 g32 asym", "o_proj": "int2 g32 asym",
    "gate_proj": "int2 g64 sym", "up_proj": "int8 row sym", "down_proj": "int4 row asym",
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
    return written(network, grids_of(network), tmp_path_factory.mktemp("openvino") / "tied")


def test_what_is_read_back_is_what_was_computed(network_of: Callable[[str], Network], tied: Path) -> None:
    network = network_of("llama_tied")
    formats = grids_of(network)
    found = read_back(ENGINE, network, formats, tied)
    assert isinstance(found.source, OpenVINOWeights)
    with pytest.raises(InvalidModel, match="not stored as codes"):
        found.source.read_part("model.norm.weight")


def test_the_engine_computes_what_we_do(tied: Path, network_of: Callable[[str], Network]) -> None:
    """All at once, then token by token, in two texts that change places, and one that begins later."""
    probe = runpy.run_path(str(FOLDER / "openvino.py"))
    decoder = probe["Decoder"](str(tied / XML), probe["EXACT"])
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(3))
    mine = outputs(load(tied), ids)
    assert not torch.allclose(mine, outputs(network_of("llama_tied"), ids), atol=0.05)  # the codes matter
    parts = [ids[:, :16], *ids[:, 16:].split(1, dim=1)]
    found = np.concatenate([decoder.logits(part.numpy()).copy() for part in parts], axis=1)
    assert np.allclose(found, mine.numpy(), atol=2e-5)
    decoder.forget()
    decoder.logits(ids[:, :16].numpy())
    request, ones = decoder.request, np.ones((2, 24), dtype=np.int64)
    order, positions = np.array([1, 0], dtype=np.int32), np.tile(np.arange(16, 24), (2, 1))
    given = {"attention_mask": ones, "position_ids": positions, "beam_idx": order}
    request.infer({"input_ids": ids.flip(0)[:, 16:].numpy(), **given}, share_inputs=True)
    assert np.allclose(request.get_tensor("logits").data, mine.flip(0)[:, 16:].numpy(), atol=2e-5)
    decoder.forget()
    skipped, positions = 3, np.maximum(np.arange(24) - 3, 0)[None]
    shifted = torch.cat([torch.zeros(1, skipped, dtype=torch.long), ids[:1, : 24 - skipped]], 1)
    ones[0, :skipped] = 0
    given = {"attention_mask": ones[:1], "position_ids": positions, "beam_idx": order[1:]}
    request.infer({"input_ids": shifted.numpy(), **given}, share_inputs=True)
    late = request.get_tensor("logits").data[0, skipped:]
    assert np.allclose(late, mine[0, : 24 - skipped].numpy(), atol=2e-5)


def test_no_weight_is_unpacked_when_it_is_loaded(tied: Path) -> None:
    probe = runpy.run_path(str(FOLDER / "openvino.py"))
    compiled = openvino.Core().compile_model(str(tied / XML), "CPU", probe["EXACT"])
    read = [
        node.get_input_element_type(1).get_type_name()
        for node in compiled.get_runtime_model().get_ops()
        if node.rt_info["layerType"].astype(str) == "FullyConnected"
    ]
    assert sorted(read) == ["i4", "i4", "i8", "i8", *["u2"] * 4, *["u4"] * 5, "u8", "u8"]


def test_check(tied: Path) -> None:
    done = check(tied, windows=2, length=16)
    assert done.engine == "openvino"
    assert done.said == ""
    assert done.holds(1e-9)
    assert done.decode > 0


def test_sizes_are_known_beforehand(network_of: Callable[[str], Network], tied: Path) -> None:
    network, files = network_of("llama_tied"), ENGINE.files
    formats = grids_of(network)
    own = {network.stored_name(network.by_name[n].parameter): (network.by_name[n], f) for n, f in formats.items()}
    data = sum(files.stored_bytes(site.shape, format, "float16") for site, format in own.values())
    data += files.fixed_bytes(network, set(own), "float16")
    total = sum(file.stat().st_size for file in tied.iterdir())
    assert (tied / BIN).stat().st_size - data < 2048
    assert total <= data + files.beside(network, "float16") <= 1.3 * total
    site = next(site for site in network.sites if site.role == "linear")
    assert files.stored_bytes(site.shape, Dense(dtype="float16"), "float16") == files.kept_bytes(
        network, site, "float16"
    )
    assert files.kept_as(network, site, "bfloat16") == "dense bfloat16"


def test_the_menu_is_what_it_loads(network_of: Callable[[str], Network]) -> None:
    network = network_of("llama_tied")
    menu = ENGINE.menu([64, 128], "bfloat16")
    assert {(format.bits, format.group_size) for format in menu if isinstance(format, Grid)} == {
        (2, 32), (2, 64), (4, 32), (4, 64), (8, None),
    }  # fmt: skip
    site = network.sites[1]
    for format in menu:
        assert ENGINE.refuses(site, format, network) is None
        assert ENGINE.files.stored_bytes(site.shape, format, "float16")
    odd = replace(site, shape=(64, 70))
    for label, words in (("int3 g32 sym", "2, 4 or 8"), ("int2 row sym", "70 codes of 2 bits"), ("int4 g7 sym", "7")):
        assert words in str(ENGINE.refuses(odd, parse(label), network))
        with pytest.raises(InvalidFormat):
            ENGINE.files.stored_bytes(odd.shape, parse(label), "float16")
    assert all(format.bits != 2 for format in ENGINE.menu([70], "float16") if isinstance(format, Grid))
    table = outline(network, ENGINE, dtype="float16")
    outside = [row for row in table.groups if "model.embed_tokens" in row[0].sites]
    assert [len(row[0].sites) for row in outside] == [2]
    assert len(outside[0]) > 2


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2"])
def test_families(family: str, network_of: Callable[[str], Network], tmp_path: Path) -> None:
    """Norms on keys; soft caps and windows; and layers whose weights lie inputs first, which stay dense."""
    network = network_of(family)
    names = {"q_proj": "int4 g32 asym", "down_proj": "int8 row sym", "wte": "int8 row sym", "lm_head": "int8 row sym"}
    formats = grids_of(network, names if family != "qwen3" else {}, "bfloat16")
    out = written(network, formats, tmp_path, "bfloat16")
    assert load(out).source.tensors[network.stored_name(next(iter(network.untouched)))].dtype == "bfloat16"
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert check(out, windows=1, length=24).holds(1e-9)


def test_sites_that_know_no_codes(network_of: Callable[[str], Network]) -> None:
    network = network_of("gpt2")
    site = next(site for site in network.sites if site.role == "transposed")
    assert "transposed" in str(ENGINE.refuses(site, parse("int4 g32 sym"), network))
    with pytest.raises(InvalidModel, match="knows no codes"):
        ENGINE.files.check(network, {site.name: parse("int4 g32 sym")}, "float16")
    with pytest.raises(InvalidFormat, match="no such site"):
        ENGINE.files.check(network, {"elsewhere": parse("int4 g32 sym")}, "float16")


def test_networks_that_cannot_be_followed(tmp_path: Path) -> None:
    config = {
        "model_type": "mamba", "vocab_size": 256, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2,
        "intermediate_size": 64, "time_step_rank": 4,
    }  # fmt: skip
    network = load(save(build(config), tmp_path / "mamba"))
    with pytest.raises(InvalidModel, match="cannot follow the code of mamba"):
        ENGINE.files.check(network, {}, "float16")
    with pytest.raises(InvalidModel, match="module in memory"):
        ENGINE.files.check(finding.network_of(build(config)), {}, "float16")


def test_openvino_is_missing(network_of: Callable[[str], Network], monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    with pytest.raises(MissingExtra, match="openvino is not installed"):
        trace.traced.__wrapped__(describe(network_of("llama_tied")))


def test_files_are_read_without_openvino(tied: Path) -> None:
    """In a process that may not import it."""
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from pathlib import Path\nfrom pennyweight.export.openvino.source import OpenVINOWeights\n"
        "print(float(OpenVINOWeights(Path(sys.argv[1])).read('model.norm.weight').float().sum()))"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tied)], capture_output=True, text=True, check=True)
    assert float(ran.stdout) == float(load(tied).source.read("model.norm.weight").float().sum())


def test_the_same_bytes_again_and_nothing_done_twice(
    network_of: Callable[[str], Network], tied: Path, tmp_path: Path
) -> None:
    network = network_of("llama_tied")
    formats = grids_of(network)
    fewer = first_layers(describe(network))[0]
    again, first = trace.traced.__wrapped__(fewer), trace.traced(fewer)
    assert (again.xml, again.constants) == (first.xml, first.constants)
    shutil.copytree(tied, tmp_path / "again")
    (tmp_path / "again" / XML).unlink()

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
    (tmp_path / "out" / "other.xml").write_bytes(b"")
    with pytest.raises(InvalidOutput, match=r"other\.xml"):
        written(network, formats, tmp_path / "out")
    wrong = {**formats, "model.layers.0.self_attn.q_proj": parse("int8 g32 sym")}
    with pytest.raises(InvalidFormat, match="was compressed as int8"):
        ENGINE.files.write(network, formats, rounded(network, wrong), tmp_path / "new", dtype="float16")


# Models of others


def product(path: Path, element: str, shape: tuple[int, int, int], scale: str, zero: str, seed: int) -> torch.Tensor:
    """A model of one product, by openvino's own classes; returns the weight that it multiplies by."""
    from openvino import opset13 as ops

    draw, kind = np.random.default_rng(seed), getattr(openvino.Type, element)
    rows, groups, size = shape
    kept: list[Any] = []  # constants read the memory they were given

    def constant(values: Any, kind: Any, shape: tuple[int, ...], name: str) -> Any:
        kept.append(np.ascontiguousarray(values))
        kept.append(openvino.Tensor(kept[-1], openvino.Shape(list(shape)), kind))
        made = ops.constant(kept[-1], shared_memory=True)
        made.set_friendly_name(name)
        return made

    def codes(shape: tuple[int, ...], name: str) -> Any:
        count = -(-int(np.prod(shape)) * kind.bitwidth // 8)
        return constant(draw.integers(0, 256, count, dtype=np.uint8), kind, shape, name)

    name, shared = "self.model.up_proj.weight", (rows, groups, 1)
    numbers = draw.standard_normal(shared).astype(np.float32)
    computed, stored = (openvino.Type.f16, np.float16) if scale == "f16" else (openvino.Type.f32, np.float32)
    value = ops.convert(codes(shape, name), computed)
    if zero:
        value = ops.subtract(
            value, ops.convert(codes(shared if zero == "all" else (1, 1, 1), f"{name}/zero"), computed)
        )
    value = ops.multiply(value, constant(numbers.astype(stored), computed, shared, f"{name}/scale"))
    value = ops.reshape(value, ops.constant(np.array([rows, groups * size])), False)
    given = ops.parameter([-1, groups * size], openvino.Type.f32)
    result = ops.matmul(given, ops.convert(value, openvino.Type.f32), False, True)
    path.mkdir(parents=True, exist_ok=True)
    openvino.save_model(openvino.Model([result], [given]), path / XML, compress_to_fp16=False)
    (path / "config.json").write_text("{}")
    exact = runpy.run_path(str(FOLDER / "openvino.py"))["EXACT"]
    compiled = openvino.Core().compile_model(str(path / XML), "CPU", exact)
    return torch.from_numpy(compiled([np.eye(groups * size, dtype=np.float32)])[0].T.copy())


@settings(max_examples=25, deadline=None)
@given(
    element=st.sampled_from(["u2", "u4", "i4", "u8", "i8"]), rows=st.integers(1, 9), groups=st.integers(1, 5),
    size=st.sampled_from([4, 8, 12, 32]), scale=st.sampled_from(["f16", "f32"]), zero=st.sampled_from(["all", "one"]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_what_openvino_multiplies_by(
    tmp_path_factory: pytest.TempPathFactory, element: str, rows: int, groups: int, size: int, scale: str, zero: str,
    seed: int,
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("product")
    theirs = product(path, element, (rows, groups, size), scale, "" if element.startswith("i") else zero, seed)
    source = OpenVINOWeights(path)
    assert list(source.tensors) == ["model.up_proj.weight"]
    mine = source.read("model.up_proj.weight")
    assert torch.equal(mine, theirs)
    part = source.read_part("model.up_proj.weight")
    assert torch.equal(part.format.unpack(part.format.pack(part.tensors, mine.shape), mine.shape)["codes"],
                       part.tensors["codes"])  # fmt: skip


# Files that lie


def lying(tied: Path, out: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a model with one thing changed."""
    shutil.copytree(tied, out)
    tree = ElementTree.parse(tied / XML)
    change(tree.getroot())
    tree.write(out / XML)
    return out


def layer_of(net: Any, end: str) -> Any:
    return next(layer for layer in net.iterfind("layers/layer") if layer.get("name").endswith(end))


def data(end: str, key: str, value: str) -> Callable[[Any], None]:
    def change(net: Any) -> None:
        layer_of(net, end).find("data").set(key, value)

    return change


def computed_zero_points(net: Any) -> None:
    constant, other = layer_of(net, "k_proj.weight/zero_point"), layer_of(net, "input_ids")
    edge = next(edge for edge in net.iterfind("edges/edge") if edge.get("from-layer") == constant.get("id"))
    edge.set("from-layer", other.get("id"))


def no_scales(net: Any) -> None:
    constant = layer_of(net, "k_proj.weight/scale")
    edge = next(edge for edge in net.iterfind("edges/edge") if edge.get("from-layer") == constant.get("id"))
    net.find("edges").remove(edge)


def lost_edge(net: Any) -> None:
    net.find("edges")[0].set("from-layer", "99999999")


def twice(net: Any) -> None:
    layer_of(net, "norm.weight").set("id", layer_of(net, "input_ids").get("id"))


def deep(net: Any) -> None:
    for _ in range(100):
        net = ElementTree.SubElement(net, "net")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (data("norm.weight", "offset", "99999999999999999"), CorruptFile, "inside the file"),
        (data("norm.weight", "offset", "9" * 99), CorruptFile, "a whole number"),
        (data("norm.weight", "offset", "-64"), CorruptFile, "a whole number"),
        (data("norm.weight", "offset", "first"), CorruptFile, "a whole number"),
        (data("norm.weight", "size", "8"), CorruptFile, "said to have 8 bytes"),
        (data("norm.weight", "shape", "-64"), CorruptFile, "not negative"),
        (data("norm.weight", "shape", ", ".join(["4000000000"] * 4)), CorruptFile, "said to have 128 bytes"),
        (data("norm.weight", "element_type", "f64"), CorruptFile, "said to have 128 bytes"),
        (data("norm.weight", "element_type", "u16"), InvalidModel, "stored as u16"),
        (data("norm.weight", "element_type", "string"), InvalidModel, "stored as string"),
        (data("k_proj.weight", "element_type", "i4"), InvalidModel, "no codes with scales"),
        (data("k_proj.weight", "shape", "32, 64"), InvalidModel, "no codes with scales"),
        (data("k_proj.weight/scale", "shape", "1, 32, 4"), InvalidModel, "no codes with scales"),
        (computed_zero_points, InvalidModel, "are computed"),
        (no_scales, InvalidModel, "no scales multiply"),
        (lost_edge, CorruptFile, "an edge"),
        (twice, CorruptFile, "two layers"),
        (deep, CorruptFile, "deep"),
    ],
)
def test_models_that_lie(
    tied: Path, tmp_path: Path, change: Callable[[Any], None], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        load(lying(tied, tmp_path / "lying", change))
    assert isinstance(caught.value, PennyweightError)


def test_entities_are_not_expanded(tied: Path, tmp_path: Path) -> None:
    shutil.copytree(tied, tmp_path / "bomb")
    levels = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    bomb = f'<!DOCTYPE net [<!ENTITY a0 "aaaaaaaaaa">{levels}]><net name="&a9;"/>'
    for text in (bomb, '<!DOCTYPE net SYSTEM "file:///etc/passwd"><net/>'):
        (tmp_path / "bomb" / XML).write_text(text)
        with pytest.raises(CorruptFile, match="document type"):
            load(tmp_path / "bomb")
    for text, words in (("<html/>", "begins with"), ("<net>", "is no XML"), ("", "is no XML")):
        (tmp_path / "bomb" / XML).write_text(text)
        with pytest.raises(CorruptFile, match=words):
            load(tmp_path / "bomb")


def test_numbers_that_are_cut_off(tied: Path, tmp_path: Path) -> None:
    shutil.copytree(tied, tmp_path / "short")
    data = (tied / BIN).read_bytes()
    (tmp_path / "short" / BIN).write_bytes(data[:-64])
    with pytest.raises(CorruptFile, match="inside the file"):
        load(tmp_path / "short")
    (tmp_path / "short" / BIN).write_bytes(data)
    source = OpenVINOWeights(tmp_path / "short")
    (tmp_path / "short" / BIN).write_bytes(data[:HEADER])
    with pytest.raises(CorruptFile, match="short of the end"):
        source.read("model.norm.weight")
    (tmp_path / "short" / BIN).unlink()
    with pytest.raises(MissingFile, match=r"openvino_model\.bin"):
        load(tmp_path / "short")


def test_which_directories_are_models(tied: Path, tmp_path: Path) -> None:
    assert is_openvino(tied)
    shutil.copytree(tied, tmp_path / "both")
    (tmp_path / "both" / "model.safetensors").write_bytes(b"")
    assert not is_openvino(tmp_path / "both")
    assert not is_openvino(tied / XML)
    with pytest.raises(MissingFile, match=r"no openvino_model\.xml"):
        ENGINE.files.handed(tmp_path)
    assert ENGINE.files.handed(tied) == ENGINE.files.handed(tied / XML) == tied / XML


def test_nobody_is_told_that_it_was_imported(tmp_path: Path) -> None:
    code = "import pennyweight.export.openvino.trace, openvino, sys; print(sys.modules['openvino_telemetry'])"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert ended.stdout.strip() == "None"
    assert not [path for path in tmp_path.rglob("*") if "openvino" in path.name]
