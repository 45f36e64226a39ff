from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pennyweight.errors import InvalidFormat, UnknownName
from pennyweight.export.engines import ENGINES, Engine, find, how_to_load
from pennyweight.formats import Dense, Grid, parse
from pennyweight.network.network import Network, Site

UNTIED = cast(Network, SimpleNamespace(tied=(), stored_name=lambda name: name))
TIED = cast(
    Network,
    SimpleNamespace(
        tied=(("embed.weight", "head.weight"),),
        stored_name=lambda name: "embed.weight" if name == "head.weight" else name,
    ),
)


def site(shape: tuple[int, int] = (256, 576), role: str = "linear", name: str = "layer") -> Site:
    return Site(name=name, block=0, shape=shape, reads="a", writes="b", role=role)


@pytest.mark.parametrize("bits", range(2, 9))
def test_transformers_takes_every_grid_without_zero_points(bits: int) -> None:
    engine = find("transformers")
    for group_size in (None, 32, 48, 576):
        assert engine.refuses(site(), Grid(bits=bits, group_size=group_size), UNTIED) is None
    assert "zero points" in str(engine.refuses(site(), Grid(bits=bits, symmetric=False), UNTIED))
    assert "128" in str(engine.refuses(site(), Grid(bits=bits, group_size=128), UNTIED))


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("fp8 e4m3 row bfloat16", None), ("fp8 e4m3 tensor", None), ("fp8 e4m3 b128", None), ("mxfp4", None),
        ("nvfp4", None), ("mxfp8 e4m3", None), ("fp8 e4m3 g128", "128"), ("fp8 e5m2 row", "does not read"),
        ("mxfp6 e3m2", "does not read"), ("nf4 g64", "does not read"), ("int4 b16 sym", "a row or a group"),
    ],
)  # fmt: skip
def test_transformers_takes_floats_and_offers_none(label: str, reason: str | None) -> None:
    refusal = find("transformers").refuses(site(), parse(label), UNTIED)
    assert refusal is None if reason is None else reason in str(refusal)
    assert parse(label) not in find("transformers").menu([576], "bfloat16")
    assert "does not read" in str(find("transformers").refuses(site((256, 560)), parse("nf4 g16"), UNTIED))
    assert find("transformers").refuses(site((256, 560)), parse("mxfp4"), UNTIED) is not None
    read_by_vllm = label.startswith(("fp8 e4m3 row", "fp8 e4m3 tensor"))
    assert (find("vllm").refuses(site(), parse(label), UNTIED) is None) == read_by_vllm


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (Grid(bits=4, group_size=64), None),
        (Grid(bits=8), None),
        (Grid(bits=8, group_size=32, symmetric=False), None),
        (Grid(bits=3, group_size=64), "codes of 4 or 8 bits, not 3"),
        (Grid(bits=5, group_size=64, symmetric=False), "codes of 4 or 8 bits with zero points, not 5"),
        (Grid(bits=4, group_size=96), "groups of 32, 64 or 128 or whole rows, not 96"),
        (Grid(bits=4, group_size=128), "576 inputs do not split into groups of 128"),
        (Grid(bits=4, group_size=64, scale_dtype="float32"), "no scales in float32"),
    ],
)
def test_vllm_takes_what_its_kernels_take(grid: Grid, reason: str | None) -> None:
    refusal = find("vllm").refuses(site(), grid, UNTIED)
    assert refusal is None if reason is None else reason in str(refusal)


def test_vllm_needs_one_whole_tile() -> None:
    grid = Grid(bits=4, group_size=32)
    assert find("vllm").refuses(site((64, 128)), grid, UNTIED) is None
    assert "64 outputs and 128 inputs" in str(find("vllm").refuses(site((32, 128)), grid, UNTIED))
    assert "64 outputs and 128 inputs" in str(find("vllm").refuses(site((64, 96)), grid, UNTIED))


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: cast(Engine, engine).name)
def test_embeddings_stay_dense_and_so_does_what_is_tied_to_them(engine: Engine) -> None:
    grid = engine.menu([576], "float16")[-1]
    if isinstance(grid, Dense):
        assert engine.refuses(site(role="embedding", name="embed"), grid, TIED) is None
        assert "floats" in str(engine.refuses(site(role="embedding", name="embed"), Grid(bits=8), UNTIED))
        return
    if engine.tables:
        assert engine.refuses(site(role="embedding", name="embed"), grid, TIED) is None
        return
    assert "embedding" in str(engine.refuses(site(role="embedding", name="embed"), grid, UNTIED))
    assert engine.refuses(site(role="head", name="head"), grid, TIED)
    assert engine.refuses(site(role="embedding", name="embed"), Dense(), TIED) is None
    assert engine.refuses(site(role="linear", name="other"), grid, TIED) is None


def test_only_transformers_takes_a_quantized_head() -> None:
    head = site(role="head", name="head")
    assert find("transformers").refuses(head, Grid(bits=8), UNTIED) is None
    assert "output head" in str(find("vllm").refuses(head, Grid(bits=8), UNTIED))


def test_only_vllm_joins_sites_and_takes_no_wide_dense_tensors() -> None:
    assert {engine.name: engine.fused_groups for engine in ENGINES} == {
        "transformers": False, "vllm": True, "llama.cpp": False, "onnxruntime": False, "onnxruntime-int8": False,
        "gptqmodel": False, "vllm-gptq": True, "openvino": False, "pytorch": False,
    }  # fmt: skip
    assert find("transformers").refuses(site(), Dense(dtype="float32"), UNTIED) is None
    assert "float32" in str(find("vllm").refuses(site(), Dense(dtype="float32"), UNTIED))


def test_names() -> None:
    assert find("vLLM") is find("vllm")
    with pytest.raises(UnknownName) as caught:
        find("transformer")
    assert "transformers" in caught.value.mend
    with pytest.raises(UnknownName, match="one of transformers, vllm, llama"):
        find("zzz")


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: cast(Engine, engine).name)
def test_every_row_says_how_to_load_and_what_it_was_checked_with(engine: Engine) -> None:
    assert '"some/small' in how_to_load(engine, Path("some/small"))
    package = {"llama.cpp": "llama-cpp-python", "vllm-gptq": "vllm", "pytorch": "torch"}.get(engine.name, engine.name)
    assert engine.version.startswith(f"{package.removesuffix('-int8')} ")
    assert all(version[0].isdigit() for version in engine.checked_with.values())


def test_the_snippet_for_transformers_is_python() -> None:
    compiled: Any = compile(how_to_load(find("transformers"), "small"), "snippet", "exec")
    assert "AutoModelForCausalLM" in compiled.co_names


def test_formats_that_were_asked_for_are_the_menu() -> None:
    engine = find("transformers").choosing(["int4 g64 sym", "mxfp4", "nvfp4", "int8 row sym"])
    assert [f.label() for f in engine.menu([576], "bfloat16")] == [
        "int4 g64 sym bfloat16", "mxfp4", "nvfp4", "int8 row sym bfloat16",
    ]  # fmt: skip
    assert [f.label() for f in engine.menu([560], "float16")] == ["nvfp4", "int8 row sym"]
    assert engine.refuses(site(), Grid(bits=3, group_size=64), UNTIED) is None  # a plan by hand may still say it
    assert find("transformers").choosing([]) is find("transformers")
    llama = find("llama.cpp")
    assert llama.choosing(["q4_0"]).tables == llama.tables
    assert [f.label() for f in llama.choosing(["q4_0", "q8_0"]).tables] == ["q8_0"]


@pytest.mark.parametrize(
    ("engine", "label", "message"),
    [("llama.cpp", "int4 g32 sym", "GGUF"), ("vllm", "mxfp4", "not read mxfp4"), ("vllm", "int3 g64 sym", "not 3"),
     ("transformers", "nf4 g64", "does not read")],
)  # fmt: skip
def test_formats_an_engine_does_not_read_are_refused_by_name(engine: str, label: str, message: str) -> None:
    with pytest.raises(InvalidFormat, match=message) as error:
        find(engine).choosing([label])
    assert error.value.site == "--formats"
    with pytest.raises(UnknownName):
        find(engine).choosing(["int99 g7"])
