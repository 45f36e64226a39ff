"""ONNX models made by hand: a bigram with every input an exporter may ask for, and the tiny llama node by node."""

import importlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pennyweight.corpus import Windows
from pennyweight.errors import CorruptFile, InvalidMeasurement, InvalidModel, MissingExtra, MissingFile
from pennyweight.flow.certifying.noise import measure_noise
from pennyweight.flow.load import load
from pennyweight.flow.measure import Scorer, measure, runner_of
from pennyweight.network.network import Network
from pennyweight.network.running.onnx import OnnxRunner, OnnxSource, open_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

VOCABULARY = 256
Shape = Sequence[Any]


def table(scale: float = 1.0) -> np.ndarray:
    """Logits of the next token for each token `[vocabulary, vocabulary]`."""
    return (scale * np.random.default_rng(3).standard_normal((VOCABULARY, VOCABULARY))).astype(np.float32)


def bigram(
    path: Path, *, inputs: dict[str, tuple[str, Shape]] | None = None, ids: Shape = ("batch", "length"),
    last: bool = False, output: str = "logits", weights: np.ndarray | None = None, outside: bool = False,
) -> Path:  # fmt: skip
    """A model that looks only at the token before; it reads its other inputs without using them."""
    helper, kinds = onnx.helper, onnx.TensorProto
    weight = onnx.numpy_helper.from_array(table() if weights is None else weights, "table")
    given = [helper.make_tensor_value_info("input_ids", kinds.INT64, ids)]
    for name, (kind, shape) in (inputs or {}).items():
        given.append(helper.make_tensor_value_info(name, getattr(kinds, kind), shape))
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["all" if last else output])]
    stored = [weight]
    if last:
        stored.append(onnx.numpy_helper.from_array(np.array([-1]), "minus_one"))
        nodes.append(helper.make_node("Gather", ["all", "minus_one"], [output], axis=1))
    shape = [ids[0], 1 if last else ids[1], VOCABULARY]
    graph = helper.make_graph(
        nodes, "bigram", given, [helper.make_tensor_value_info(output, kinds.FLOAT, shape)], stored
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="test")
    onnx.save(model, path, save_as_external_data=outside, location=f"{path.name}.data", size_threshold=0)
    return path


def logits_of(path: Path, ids: torch.Tensor) -> torch.Tensor:
    return OnnxRunner(open_onnx(path)).forward(ids)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (5, 12), generator=torch.Generator().manual_seed(1))


def test_logits_are_those_of_the_graph(tmp_path: Path, ids: torch.Tensor) -> None:
    network = load(bigram(tmp_path / "model.onnx"))
    runner = runner_of(network)
    states = runner.forward(ids)
    with runner.end() as finish:
        assert torch.equal(finish(states[0]), torch.from_numpy(table())[ids[0]])
    assert torch.equal(states, torch.from_numpy(table())[ids])
    assert network.sites == ()
    assert network.source.description == "ONNX made by test, 1 file, run by onnxruntime"
    with pytest.raises(InvalidModel, match="program"):
        network.source.read("table")


@pytest.mark.parametrize(
    "inputs",
    [
        {"attention_mask": ("INT64", ("batch", "length"))},
        {"attention_mask": ("FLOAT", ("batch", "total")), "position_ids": ("INT32", ("batch", "length"))},
        {"cache_position": ("INT64", ("length",)), "num_logits_to_keep": ("INT64", ())},
        {"past_key_values.0.key": ("FLOAT", ("batch", 2, "past", 16)), "use_cache_branch": ("BOOL", (1,))},
        {"past_key_values.0.value": ("FLOAT16", ("batch", 2, 0, 16))},
    ],
)
def test_inputs_that_exporters_ask_for(tmp_path: Path, ids: torch.Tensor, inputs: dict[str, Any]) -> None:
    path = bigram(tmp_path / "model.onnx", inputs=inputs)
    assert torch.equal(logits_of(path, ids), torch.from_numpy(table())[ids])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": {"past_key_values.0.key": ("FLOAT", ("batch", 2, 128, 16))}}, "cannot be left empty"),
        ({"inputs": {"past_key_values.0.key": ("FLOAT", ("batch", "heads", "past", 16))}}, "cannot be left empty"),
        ({"inputs": {"pixel_values": ("FLOAT", ("batch", 3, 8, 8))}}, "pixel_values"),
        ({"inputs": {"attention_mask": ("STRING", ("batch", "length"))}}, "tensor\\(string\\)"),
        ({"last": True}, "for 5 windows of 12 tokens"),
        ({"ids": ("batch", 8)}, "takes 8 tokens and the windows have 12"),
    ],
)
def test_what_cannot_be_fed_is_named(tmp_path: Path, ids: torch.Tensor, change: dict[str, Any], words: str) -> None:
    path = bigram(tmp_path / "model.onnx", **change)
    with pytest.raises(InvalidModel, match=words):
        logits_of(path, ids)


def test_a_fixed_batch_is_filled_up(tmp_path: Path, ids: torch.Tensor) -> None:
    path = bigram(tmp_path / "model.onnx", ids=(2, 12), output="scores")
    assert torch.equal(logits_of(path, ids), torch.from_numpy(table())[ids])


def test_the_fingerprint_covers_files_beside_it(tmp_path: Path, ids: torch.Tensor) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    first = OnnxSource(bigram(tmp_path / "a" / "model.onnx", outside=True))
    again = OnnxSource(bigram(tmp_path / "b" / "model.onnx", outside=True))
    assert [file.name for file in first.files] == ["model.onnx", "model.onnx.data"]
    assert first.stored_bytes > 4 * VOCABULARY**2
    assert first.fingerprint == again.fingerprint
    assert torch.equal(logits_of(first.path, ids), torch.from_numpy(table())[ids])
    other = OnnxSource(bigram(tmp_path / "c" / "model.onnx", outside=True, weights=table(2.0)))
    assert (tmp_path / "c" / "model.onnx").read_bytes() == first.path.read_bytes()  # they differ beside it alone
    assert other.fingerprint != first.fingerprint
    (tmp_path / "b" / "model.onnx.data").unlink()
    with pytest.raises(MissingFile, match=r"model\.onnx\.data"):
        OnnxSource(again.path)


def test_damage_and_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\xff" * 64)
    with pytest.raises(CorruptFile, match="ONNX"):
        open_onnx(broken)
    with pytest.raises(MissingFile):
        open_onnx(tmp_path / "nowhere.onnx")
    path = bigram(tmp_path / "model.onnx")
    found = importlib.import_module

    def missing(name: str) -> Any:
        if name == gone:
            raise ImportError(name)
        return found(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    gone = "onnxruntime"
    with pytest.raises(MissingExtra, match="onnxruntime"):
        runner_of(open_onnx(path))
    gone = "onnx"
    with pytest.raises(MissingExtra, match="onnx"):
        open_onnx(path)


def layer_by_layer(network: Network, path: Path, length: int) -> Path:
    """The llama of the fixture as an ONNX graph, written with the helper: rotary attention, gated MLP, RMSNorm."""
    helper, kinds, source = onnx.helper, onnx.TensorProto, network.source
    config = source.config
    heads, groups, size = config["num_attention_heads"], config["num_key_value_heads"], config["hidden_size"]
    dim = size // heads
    nodes: list[Any] = []
    stored: dict[str, Any] = {}

    def constant(value: Any) -> str:
        name = f"c{len(stored)}"
        stored[name] = onnx.numpy_helper.from_array(np.asarray(value), name)
        return name

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"n{len(nodes)}"], **attributes))
        return f"n{len(nodes) - 1}"

    def linear(x: str, name: str) -> str:
        return op("MatMul", x, constant(source.read(f"{name}.weight").float().T.contiguous().numpy()))

    def norm(x: str, name: str) -> str:
        mean = op("ReduceMean", op("Mul", x, x), axes=[-1])
        root = op("Sqrt", op("Add", mean, constant(np.float32(config["rms_norm_eps"]))))
        return op("Mul", op("Div", x, root), constant(source.read(f"{name}.weight").float().numpy()))

    rope = config.get("rope_parameters") or {"rope_theta": 10000.0}
    angle = np.outer(np.arange(length), rope["rope_theta"] ** (-np.arange(0, dim, 2) / dim))
    cos, sin = (np.concatenate([f(angle), f(angle)], -1).astype(np.float32)[None, None] for f in (np.cos, np.sin))

    def split(x: str, count: int) -> str:
        return op("Transpose", op("Reshape", x, constant(np.array([0, 0, count, dim]))), perm=[0, 2, 1, 3])

    def rotate(x: str) -> str:
        first, second = (
            op("Slice", x, constant(np.array([a])), constant(np.array([b])), constant(np.array([3])))
            for a, b in ((0, dim // 2), (dim // 2, dim))
        )
        turned = op("Concat", op("Neg", second), first, axis=3)
        return op("Add", op("Mul", x, constant(cos)), op("Mul", turned, constant(sin)))

    x = op("Gather", constant(source.read("model.embed_tokens.weight").float().numpy()), "input_ids")
    mask = constant(np.triu(np.full((length, length), -1e9, dtype=np.float32), 1))
    spread = constant(np.repeat(np.arange(groups), heads // groups))
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        h = norm(x, f"{layer}.input_layernorm")
        q = rotate(split(linear(h, f"{layer}.self_attn.q_proj"), heads))
        k, v = (split(linear(h, f"{layer}.self_attn.{n}_proj"), groups) for n in "kv")
        k, v = op("Gather", rotate(k), spread, axis=1), op("Gather", v, spread, axis=1)
        scores = op("Mul", op("MatMul", q, op("Transpose", k, perm=[0, 1, 3, 2])), constant(np.float32(dim**-0.5)))
        mixed = op("MatMul", op("Softmax", op("Add", scores, mask), axis=-1), v)
        joined = op("Reshape", op("Transpose", mixed, perm=[0, 2, 1, 3]), constant(np.array([0, 0, size])))
        x = op("Add", x, linear(joined, f"{layer}.self_attn.o_proj"))
        h = norm(x, f"{layer}.post_attention_layernorm")
        gate = linear(h, f"{layer}.mlp.gate_proj")
        inner = op("Mul", op("Mul", gate, op("Sigmoid", gate)), linear(h, f"{layer}.mlp.up_proj"))
        x = op("Add", x, linear(inner, f"{layer}.mlp.down_proj"))
    x = linear(norm(x, "model.norm"), "lm_head")
    nodes.append(helper.make_node("Identity", [x], ["logits"]))
    graph = helper.make_graph(
        nodes, "llama", [helper.make_tensor_value_info("input_ids", kinds.INT64, ("batch", length))],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, ("batch", length, VOCABULARY))], list(stored.values()),
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_the_same_weights_get_the_same_scores(
    network_of: Callable[[str], Network], windows_of: Callable[..., Windows], tmp_path: Path
) -> None:
    network, windows = network_of("llama"), windows_of(7, 20)
    compressed = load(layer_by_layer(network, tmp_path / "llama.onnx", 20))
    scores = measure(network, compressed, windows)
    assert scores["kl"].degradation.max() < 1e-5
    assert np.allclose(scores["perplexity"].reference, scores["perplexity"].compressed, atol=1e-4)
    assert scores["perplexity"].reference.std() > 0
    assert len(scores["kl"].drawn) == 7
    # Scored a few windows at a time or many, the numbers are the same.
    order = np.array([4, 1, 6])
    few = Scorer(network, compressed, windows).score(order)
    assert np.allclose(few["perplexity"].compressed, scores["perplexity"].compressed[order], atol=1e-5)
    other = load(bigram(tmp_path / "other.onnx"))
    assert measure(network, other, windows)["kl"].degradation.min() > 0.01


def test_small_parts_of_a_batch_add_up(
    network_of: Callable[[str], Network], windows_of: Callable[..., Windows], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from pennyweight.flow import measure as flow

    network, windows, compressed = network_of("llama"), windows_of(7, 20), load(bigram(tmp_path / "model.onnx"))
    whole = measure(network, compressed, windows)
    seen: list[int] = []
    forward = OnnxRunner.forward

    def watched(self: OnnxRunner, ids: torch.Tensor) -> torch.Tensor:
        seen.append(len(ids))
        return forward(self, ids)

    monkeypatch.setattr(OnnxRunner, "forward", watched)
    monkeypatch.setattr(flow, "LOGIT_TOKENS", 60)
    parts = measure(network, compressed, windows)
    assert seen == [3, 3, 1]
    assert np.array_equal(whole["kl"].compressed, parts["kl"].compressed)


def test_other_vocabularies_are_refused(
    network_of: Callable[[str], Network], windows_of: Callable[..., Windows], tmp_path: Path
) -> None:
    smaller = load(bigram(tmp_path / "model.onnx", weights=np.ascontiguousarray(table()[:, :200])))
    with pytest.raises(InvalidMeasurement, match="256 tokens and the compressed model 200"):
        measure(network_of("llama"), smaller, windows_of(2, 8, vocabulary=200))


def test_noise_of_a_model_that_only_an_engine_runs(windows_of: Callable[..., Windows], tmp_path: Path) -> None:
    found = measure_noise(load(bigram(tmp_path / "model.onnx")), windows_of(3, 8))
    assert set(found.by_variant) == {"batch"}
    assert found.floor["kl"] == 0.0


def test_files_beside_it_that_belong_to_a_model(llama_directory: Path, tmp_path: Path) -> None:
    shutil.copy(llama_directory / "tokenizer.json", tmp_path)
    shutil.copy(llama_directory / "config.json", tmp_path)
    source = OnnxSource(bigram(tmp_path / "model.onnx"))
    assert set(source.auxiliary()) == {"tokenizer.json"}
    assert source.config["model_type"] == "llama"
