"""Every reader of files from outside, a small honest file for each, and seeded ways to damage it.

A reader may accept a damaged file or refuse it with a PennyweightError; anything else is a finding.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from pennyweight.budget import Budget
from pennyweight.corpus import read_documents
from pennyweight.errors import PennyweightError
from pennyweight.export.engines import find
from pennyweight.export.files import FILES, StoresParts
from pennyweight.export.gptq.awq import AWQSource
from pennyweight.export.gptq.source import GPTQSource
from pennyweight.flow import artifact
from pennyweight.flow.certifying.openings import _read as read_ledger
from pennyweight.flow.load import load
from pennyweight.flow.modules import store
from pennyweight.flow.packing.pack import pack
from pennyweight.flow.packing.unpack import unpack
from pennyweight.flow.profiling.profile import is_task
from pennyweight.flow.sampling.generate import stop_ids
from pennyweight.flow.search.study import open_study
from pennyweight.flow.verify import verify
from pennyweight.formats import Compressed, Format, Grid
from pennyweight.latency import Latency
from pennyweight.network.network import Site
from pennyweight.network.running.onnx import open_onnx
from pennyweight.network.sources.gguf import GGUFSource
from pennyweight.network.sources.opening import open_source
from pennyweight.network.sources.source import Source, check_finite
from pennyweight.network.sources.tokenizer import as_chat, load_tokenizer, separator_id
from pennyweight.numerics.packing import pack_int32
from pennyweight.plan import Plan
from pennyweight.task import read_task

CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 8, "architectures": ["LlamaForCausalLM"], "eos_token_id": [0, 3],
}  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """One way into the package.

    Args:
        name: of it.
        seed: writes honest files into a directory.
        read: reads all there is to read there.
    """

    name: str
    seed: Callable[[Path], None]
    read: Callable[[Path], object]


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)) * 0.1


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _beside(directory: Path) -> None:
    from conftest import byte_tokenizer

    _json(directory / "tokenizer_config.json", {"eos_token": {"content": "!"}, "bos_token": "a"})
    tokenizer = json.loads(byte_tokenizer().to_str())
    tokenizer["model"]["vocab"] = {"a": 0, "b": 1, "!": 2}
    _json(directory / "tokenizer.json", tokenizer)


def seed_safetensors(directory: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": _numbers(8, 32), "a.weight": _numbers(5, 7).bfloat16(),
        "b": torch.arange(9, dtype=torch.int8), "c": _numbers(3).to(torch.float8_e4m3fn), "d": torch.empty(0, 4),
    }  # fmt: skip
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    _json(directory / "config.json", CONFIG)
    _beside(directory)


def seed_shards(directory: Path) -> None:
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, file in names.items():
        save_file({name: _numbers(3, 4)}, directory / file)
    _json(directory / "model.safetensors.index.json", {"metadata": {"total_size": 96}, "weight_map": names})
    _json(directory / "config.json", CONFIG)
    _beside(directory)


def read_directory(directory: Path) -> None:
    source = open_source(directory)
    read_all(source)
    separator_id(source, load_tokenizer(source))


def read_all(source: Source) -> None:
    assert source.description
    assert source.stored_bytes >= 0
    each(partial(_checked, source.read, name) for name in source.tensors)
    if isinstance(source, StoresParts):
        packed = [name for name, info in source.tensors.items() if " " in info.dtype and ".k." not in name]
        each(partial(source.read_part, name) for name in packed)
    source.auxiliary()


def _checked(read: Callable[[str], torch.Tensor], name: str) -> None:
    check_finite(name, read(name))


def each(calls: Iterable[Callable[[], object]]) -> None:
    """All of them, though some may refuse; then the first refusal."""
    refused: list[PennyweightError] = []
    for call in calls:
        try:
            call()
        except PennyweightError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def seed_compressed_tensors(directory: Path) -> None:
    rows, columns, groups = 8, 64, 2
    codes = torch.randint(0, 16, (rows, columns), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    zeros = torch.randint(0, 16, (rows, groups), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    tensors: dict[str, torch.Tensor] = {}
    for name in ("x.q", "x.k"):
        tensors |= {
            f"{name}.weight_packed": pack_int32(codes, 4), f"{name}.weight_scale": _numbers(rows, groups).half(),
            f"{name}.weight_shape": torch.tensor([rows, columns]),
            f"{name}.weight_zero_point": pack_int32(zeros.T.contiguous(), 4).T.contiguous(),
        }  # fmt: skip
    tensors |= {
        "x.k.weight_g_idx": (torch.arange(columns) // 32).to(torch.int32),
        "y.weight": torch.arange(64, dtype=torch.int8).reshape(4, 16), "y.weight_scale": _numbers(4, 1).bfloat16(),
        "z.weight": _numbers(4, 16).to(torch.float8_e4m3fn), "z.weight_scale": _numbers(4, 1).bfloat16(),
        "norm.weight": _numbers(8), "y.input_scale": torch.tensor([0.5]),
        "y.input_zero_point": torch.tensor([3], dtype=torch.int8), "attn.k_scale": torch.tensor([0.25]),
        "attn.v_scale": torch.tensor([0.125]),
    }  # fmt: skip
    save_file(tensors, directory / "model.safetensors")
    packed = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}
    naive = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    floats = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    groups_of = {
        "group_0": {"targets": ["re:x[.]"], "weights": packed, "format": "pack-quantized"},
        "group_1": {
            "targets": ["y"],
            "weights": naive,
            "format": "int-quantized",
            "input_activations": {**naive, "strategy": "tensor", "symmetric": False, "dynamic": False},
        },
        "group_2": {
            "targets": ["z"],
            "weights": floats,
            "format": "float-quantized",
            "input_activations": {**floats, "strategy": "token", "dynamic": True},
        },
    }
    quantization = {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups_of,
        "ignore": ["lm_head"], "quantization_status": "compressed",
        "kv_cache_scheme": {**floats, "strategy": "tensor", "dynamic": False},
    }  # fmt: skip
    _json(directory / "config.json", {**CONFIG, "quantization_config": quantization})


def seed_gptq(directory: Path) -> None:
    codes = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    zeros = torch.randint(0, 14, (2, 8), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    tensors = {
        "x.qweight": pack_int32(codes, 4).T.contiguous(), "x.qzeros": pack_int32(zeros, 4),
        "x.scales": _numbers(2, 8).half(), "x.g_idx": (torch.arange(64) // 32).to(torch.int32),
        "norm.weight": _numbers(8),
    }  # fmt: skip
    save_file(tensors, directory / "model.safetensors")
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq", "sym": False}
    _json(directory / "config.json", {**CONFIG, "quantization_config": quantization})


def seed_gptq_without_order(directory: Path) -> None:
    seed_gptq(directory)
    from safetensors.torch import load_file

    tensors = load_file(directory / "model.safetensors")
    del tensors["x.g_idx"]
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, directory / "model.safetensors")


def seed_awq(directory: Path) -> None:
    chance = torch.Generator().manual_seed(1)
    tensors = {
        "x.qweight": torch.randint(-(2**31), 2**31, (64, 2), generator=chance).to(torch.int32),
        "x.qzeros": torch.randint(-(2**31), 2**31, (2, 2), generator=chance).to(torch.int32),
        "x.scales": _numbers(2, 16).half(), "norm.weight": _numbers(8),
    }  # fmt: skip
    save_file(tensors, directory / "model.safetensors")
    quantization = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    _json(directory / "config.json", {**CONFIG, "quantization_config": quantization})


def _seed_program(engine: str, directory: Path) -> None:
    """What an engine that reads programs is handed: a tiny network with some weights as codes."""
    model = directory.parent / f"{directory.name}.model"
    seed_network(model)
    network = load(model)
    formats: dict[str, Format] = {
        site.name: Grid(bits=4, group_size=16, symmetric=site.name.endswith("q_proj"), scale_dtype="float16")
        for site in network.sites
        if site.role == "linear"
    }

    def rounded(site: Site) -> Compressed:
        return Compressed((formats[site.name].store(network.source.read(site.parameter).float()),), site.shape)

    find(engine).files.write(network, formats, rounded, directory, dtype="float16")
    shutil.rmtree(model)


def read_files(file_format: str, directory: Path) -> None:
    source = FILES[file_format].opens(directory)
    if source is not None:
        read_all(source)


def seed_gguf(directory: Path, norms: str = "F32") -> None:
    import gguf

    hidden, heads, tokens = 32, 2, ["<|endoftext|>", "a", "b", "c", "ab"]
    writer = gguf.GGUFWriter(directory / "model.gguf", "llama")
    for key, value in (
        ("context_length", 16), ("embedding_length", hidden), ("block_count", 1), ("feed_forward_length", hidden),
        ("attention.head_count", heads), ("attention.head_count_kv", heads), ("vocab_size", len(tokens)),
        ("rope.dimension_count", hidden // heads),
    ):  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    kinds = {"attn_q": "Q8_0", "attn_k": "Q4_0", "attn_v": "F16", "attn_output": "Q5_1", "ffn_gate": "Q4_1"}
    for part in (*kinds, "ffn_up", "ffn_down"):
        kind = gguf.GGMLQuantizationType[kinds.get(part, "F32")]
        weight = _numbers(hidden, hidden).numpy()
        writer.add_tensor(f"blk.0.{part}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)
    for norm in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        kind = gguf.GGMLQuantizationType[norms]
        writer.add_tensor(f"{norm}.weight", gguf.quants.quantize(np.ones(hidden, np.float32), kind), raw_dtype=kind)
    writer.add_tensor("token_embd.weight", _numbers(len(tokens), hidden).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(directory: Path) -> None:
    source = open_source(directory / "model.gguf")
    assert isinstance(source, GGUFSource)
    source.key_values()
    types = {name for name, info in source.tensors.items() if info.dtype.startswith("q")}
    each(partial(source.read, name) for name in source.tensors)
    each(partial(source.read_part, name) for name in types)


def read_gguf_tokenizer(directory: Path) -> None:
    source = open_source(directory / "model.gguf")
    separator_id(source, load_tokenizer(source))


def seed_network(directory: Path) -> None:
    from conftest import SHAPE, build, save

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 16}
    save(build({"model_type": "llama", **SHAPE, **small, "tie_word_embeddings": True}), directory)
    (directory / "tokenizer.json").unlink()


def read_network(directory: Path) -> None:
    network = load(directory)
    assert network.sites


def seed_chat(directory: Path) -> None:
    seed_safetensors(directory)
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] + eos_token }}{% endfor %}"
    (directory / "chat_template.jinja").write_text(template)
    _json(directory / "generation_config.json", {"eos_token_id": [0, 3], "temperature": 0.5})


def read_chat(directory: Path) -> None:
    source = open_source(directory)
    stop_ids(source)
    as_chat(source, "Hello")


def seed_modules(directory: Path) -> None:
    module = _module()
    grid = Grid(bits=4, group_size=32, symmetric=False)
    part = grid.store(module.weight.detach())
    site = store.Site(name="weight", block=None, shape=(8, 64), reads="", writes="", role="", layout="linear")
    compressed = Compressed((part,), (8, 64))
    store.write(store.pack(module, {"weight": (site, compressed)}, "float16"), directory)


def _module() -> torch.nn.Linear:
    module = torch.nn.Linear(64, 8)
    with torch.no_grad():
        module.weight.copy_(_numbers(8, 64))
        module.bias.zero_()
    return module


def read_modules(directory: Path) -> None:
    store.unpack(_module(), store.read(directory), site=str(directory))


def seed_onnx(directory: Path) -> None:
    import onnx

    helper, kinds = onnx.helper, onnx.TensorProto
    table = onnx.numpy_helper.from_array(_numbers(4, 4).numpy(), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["logits"])], "bigram",
        [helper.make_tensor_value_info("input_ids", kinds.INT64, ("batch", "length"))],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, ("batch", "length", 4))], [table],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, directory / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)


def read_onnx(directory: Path) -> None:
    network = open_onnx(directory / "model.onnx")
    assert network.source.fingerprint
    assert network.source.stored_bytes >= 0


BUDGETS = ["2%", "perplexity 2%", "kl 0.02", "agreement 3%", "accuracy:quiz.jsonl 1pt", "top-5 4%", "flips:a 2%"]
PLAN = """
[plan]
engine = "transformers"
dtype = "bfloat16"
seed = 0
bytes = 1000
damage = 0.25
model = "abc"
rewrites = ["untie", "hadamard(seed=1)"]
recovery = ["block_wise"]

[steps]
"model.layers.0.q" = { step = "gptq(damping=0.02) int4 g64 asym", why = "cheap" }
"model.layers.0.k" = { step = "round_to_nearest int8 row sym" }

[kept]
"lm_head" = "a table"
"""


def seed_budgets(directory: Path) -> None:
    (directory / "budgets").write_text("\n".join([*BUDGETS, "fit 120MB", "fit 1.5GiB", "memory 200MB"]))


def read_budgets(directory: Path) -> None:
    text = (directory / "budgets").read_bytes().decode("utf-8", errors="surrogateescape")
    each(partial(_budget, line) for line in text.split("\n"))


def _budget(line: str) -> Budget:
    verb, _, rest = line.partition(" ")
    kinds = {"fit": Budget.fit, "memory": Budget.memory}
    return kinds[verb](rest) if verb in kinds else Budget.lose(line)


def seed_plan(directory: Path) -> None:
    (directory / "plan.toml").write_text(PLAN)


def read_plan(directory: Path) -> None:
    text = (directory / "plan.toml").read_bytes().decode("utf-8", errors="replace")
    plan = Plan.from_toml(text)
    assert Plan.from_toml(plan.to_toml()) == plan


def seed_latency(directory: Path) -> None:
    row = {"shape": [576, 576], "format": "int4 g64 sym", "milliseconds": 0.009}
    _json(
        directory / "times.json", {"engine": "vllm 0.33.0", "machine": "m", "rows": [row, {**row, "format": "dense"}]}
    )


def read_latency(directory: Path) -> None:
    table = Latency.read(directory / "times.json", machine="m")
    table.of([(576, 576)], "dense")


def seed_questions(directory: Path) -> None:
    lines = [
        {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1, "language": "en", "cluster": "sums"},
        {"question": "The capital of France is", "choices": ["Paris", "Rome"], "answer": "Paris", "delimiter": " "},
        {"question": "ß?", "choices": ["a", "b", "c"], "answer": "C", "level": 2.5},
    ]
    (directory / "quiz.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")


def read_questions(directory: Path) -> None:
    is_task(directory / "quiz.jsonl")
    assert len(read_task(directory / "quiz.jsonl").documents) > 0


def seed_texts(directory: Path) -> None:
    (directory / "a.txt").write_text(
        " = Heading = \n\nSome words.\n\f\nOther words, ünïcode.\n = Next = \n\nThe end.\n"
    )
    (directory / "b.jsonl").write_text('{"text": "one", "language": "de"}\n{"text": "two", "n": 3}\n')


def read_texts(directory: Path) -> None:
    each(partial(read_documents, directory / name) for name in ("a.txt", "b.jsonl"))


def seed_certificate(directory: Path) -> None:
    from conftest import FAMILIES, build, save

    from pennyweight.flow.certifying.pair import Judging, certify_pair

    work = directory.parent / f"{directory.name}.models"
    before, after = save(build(FAMILIES["llama"]), work / "before"), build(FAMILIES["llama"])
    for parameter in after.parameters():
        parameter.mul_(1.001)
    save(after, work / "after")
    words = random.Random(1).choices(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"], k=4000)
    (work / "text.txt").write_text("\f".join(" ".join(words[i : i + 200]) for i in range(0, 4000, 200)))
    judging = Judging(length=16, most=12, threads=1)
    certify_pair(
        before, work / "after", directory / "certificate", budgets=[Budget.lose("kl 0.5")], on=work / "text.txt",
        judging=judging,
    )  # fmt: skip
    shutil.rmtree(work)


def read_certificate(directory: Path) -> None:
    verify(directory / "certificate")


def read_resealed(directory: Path) -> None:
    """The seal agrees with whatever was changed, so that what lies behind it is read."""
    place = directory / "certificate"
    for name in ("certificate.json", "evidence.json", "run.json", "summary.json"):
        path = place / artifact.FOLDER / name
        try:
            value = json.loads(path.read_bytes())
            artifact.write_record(place, name, value)
        except (ValueError, RecursionError, OSError, TypeError):
            pass  # left as it is: what is not JSON is refused in its own way
    artifact.seal(place)
    verify(place)


def seed_ledger(directory: Path) -> None:
    from pennyweight.flow.certifying.openings import Record
    from pennyweight.numerics.hashing import canonical

    records = [
        Record(key="ab", candidate="cd", claims=("kl 0.1",), alpha=0.04, date="2026-01-01", verdict=verdict)
        for verdict in (None, "certified")
    ]
    (directory / "ledger").write_bytes(b"".join(canonical(record) + b"\n" for record in records))


def read_openings(directory: Path) -> None:
    with (directory / "ledger").open("rb", buffering=0) as file:
        read_ledger(file, directory / "ledger")


def seed_study(directory: Path) -> None:
    from pennyweight.flow.search.study import Answer

    with open_study(directory / "study.sqlite", "world") as study:
        study.put(["int4 g64", "int3 g64"], 256, 0, Answer(0.1, 0.01))


def read_study(directory: Path) -> None:
    with open_study(directory / "study.sqlite", "world") as study:
        study.rows()


def seed_container(directory: Path) -> None:
    model = directory.parent / f"{directory.name}.model"
    model.mkdir()
    seed_safetensors(model)
    (model / "big.bin").write_bytes(bytes(300_000))
    pack(model, directory / "m.pwpack", threads=1)
    shutil.rmtree(model)


def read_container(directory: Path) -> None:
    out = directory / "out"
    try:
        unpack(directory / "m.pwpack", out, threads=1)
    finally:
        shutil.rmtree(out, ignore_errors=True)
        left = sorted(path.name for path in directory.iterdir())
        assert left == ["m.pwpack"], f"left behind: {left}"


# The quickest first.
READERS: Mapping[str, Reader] = {
    name: Reader(name, seed, read)
    for name, seed, read in (
        ("openings", seed_ledger, read_openings),
        ("texts", seed_texts, read_texts),
        ("questions", seed_questions, read_questions),
        ("study", seed_study, read_study),
        ("latency", seed_latency, read_latency),
        ("chat", seed_chat, read_chat),
        ("budgets", seed_budgets, read_budgets),
        ("onnx", seed_onnx, read_onnx),
        ("plan", seed_plan, read_plan),
        ("container", seed_container, read_container),
        ("certificate", seed_certificate, read_certificate),
        ("safetensors", seed_safetensors, read_directory),
        ("shards", seed_shards, read_directory),
        ("compressed-tensors", seed_compressed_tensors, partial(read_files, "compressed-tensors")),
        ("gptq", seed_gptq, lambda directory: read_all(GPTQSource(directory))),
        ("gptq, no g_idx", seed_gptq_without_order, lambda directory: read_all(GPTQSource(directory))),
        ("awq", seed_awq, lambda directory: read_all(AWQSource(directory))),
        ("onnx weights", partial(_seed_program, "onnxruntime"), partial(read_files, "onnx")),
        ("openvino", partial(_seed_program, "openvino"), partial(read_files, "openvino")),
        ("gguf", seed_gguf, read_gguf),
        ("gguf tokenizer", seed_gguf, read_gguf_tokenizer),
        ("network", seed_network, read_network),
        ("modules", seed_modules, read_modules),
        ("certificate, sealed again", seed_certificate, read_resealed),
    )
}

EXTREMES = [0, 1, 2, 7, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(2**63), 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "a", "\0", "../../etc/passwd", "/etc/passwd", "\ud800", "x" * 300, [], {}, [[]], [None], [0, 0], [-1],
    {"a": {}}, [1, 2, 3], "re:(", "int4 g0", "int4 g64 sym", "1e999", "٣",
]  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A file with something wrong with it."""
    kind = chance.randrange(9)
    if kind < 3 and (edited := _edited_json(data, chance)) is not None:
        return edited
    out = bytearray(data)
    if not out:
        return chance.randbytes(chance.randrange(1, 20))
    at = chance.randrange(len(out))
    if kind in (0, 3):
        for _ in range(chance.choice((1, 1, 2, 8, 64))):
            out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    elif kind == 4:
        del out[at:]
    elif kind in (1, 5):
        width = chance.choice("BHIQ")
        size = struct.calcsize(width)
        out[at : at + size] = (chance.choice(EXTREMES) % 256**size).to_bytes(size, "little")
    elif kind == 6:
        start, length = chance.randrange(len(out)), chance.choice((1, 4, 16, 100, 1000))
        out[at : at + chance.choice((0, length))] = out[start : start + length]
    elif kind == 7:
        del out[at : at + chance.choice((1, 2, 8, 50))]
    elif kind == 8:
        out[at:at] = chance.choice((chance.randbytes(8), b"[" * 20_000, b'{"a":' * 5_000, b"\0" * 9, b'"', b"\xff\xfe"))
    else:
        out[at] = chance.randrange(256)
    return bytes(out)


def _edited_json(data: bytes, chance: random.Random) -> bytes | None:
    """JSON, or the header of a safetensors file, with a value replaced, removed or doubled; None if it is neither."""
    head, text, tail = b"", data, b""
    if len(data) > 9 and data[8:9] == b"{":
        length = int.from_bytes(data[:8], "little")
        head, text, tail = data[:8], data[8 : 8 + length], data[8 + length :]
    lines = text.split(b"\n") if text.count(b"\n{") else [text]
    chosen = chance.randrange(len(lines))
    try:
        value = json.loads(lines[chosen])
    except (ValueError, RecursionError):
        return None
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        value = _edited(value, chance)
    lines[chosen] = json.dumps(value).encode()
    text = b"\n".join(lines)
    return (len(text).to_bytes(8, "little") if head else b"") + text + tail


def _edited(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        action = chance.randrange(8)
        if action == 0:
            return {k: v for k, v in value.items() if k != key}
        if action == 1:
            return {(str(chance.choice(VALUES)) if k == key else k): v for k, v in value.items()}
        return {**value, key: _edited(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        action = chance.randrange(6)
        if action == 0:
            return value[:at] + value[at + 1 :]
        if action == 1:
            return [*value, value[at]]
        return [*value[:at], _edited(value[at], chance), *value[at + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.5:
        return chance.choice((value + 1, value - 1, -value, value * 2, value // 2, chance.choice(EXTREMES)))
    return chance.choice(VALUES)


def files_of(directory: Path) -> dict[str, bytes]:
    """Honest files, to be put back."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def put(directory: Path, files: Mapping[str, bytes]) -> None:
    """Make a directory hold exactly these files."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(directory).as_posix() not in files:
            path.unlink()
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
