"""What each engine can load, as data: versioned contracts the planner asks before anything is computed.

Sources of the rows: transformers 5.23.0 with compressed-tensors 0.20.0 was run on what we write, tensor by tensor and
logit by logit (`tests/unit/test_compressed_tensors.py`). vLLM 0.33.0 was not run: its row is read from its sources, and
where they leave doubt the row is the stricter reading. llama.cpp, as llama-cpp-python 0.3.36 carries it, was run on
what we write, logit by logit (`benchmarks/llama_cpp.py`). GPTQModel's own dequantizer gave back what we wrote for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pennyweight.errors import InvalidFormat, PennyweightError, UnknownName
from pennyweight.export.contracts import (
    LARGE,
    BlockTypes,
    Chosen,
    Contract,
    Either,
    Floats,
    Grids,
    Listed,
    k_types,
    legacy,
)
from pennyweight.export.files import Files, files_of
from pennyweight.export.memory import Memory
from pennyweight.formats import (
    NVFP4,
    Dense,
    Format,
    Grid,
    KQuant,
    Legacy,
    Microscaling,
    Minifloat,
    Sharing,
    TernaryBlocks,
    parse,
)
from pennyweight.network.network import Network, Site

OUTSIDE = ("embedding", "head")  # roles of what lies outside the blocks


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine's contract.

    Args:
        name: as the user says it.
        file_format: what we write for it; `files` has what writes it and reads it back.
        checked_with: versions the row holds for, by package.
        evidence: how we know: `loaded` (it ran on our files) or `read` (from its sources).
        reads: formats it loads, and those on the menu of a plan.
        dtypes: of scales and of tensors that stay dense.
        roles: kinds of sites that may be quantized.
        tables: formats offered for an embedding table, and for a head or both where they are one tensor; empty where
            what lies outside the blocks stays dense.
        least_outputs: smallest `out` of a quantized weight.
        least_inputs: smallest `in`.
        memory: what it holds while it runs.
        sizes_multiple: `out` and `in` of a quantized weight are multiples of it.
        fused_groups: sites that read one edge (q, k, v; gate, up) must get one format, because the engine joins them.
        notes: what a user should know before choosing it.
        snippet: how to load a model; `{path}` is where it lies.
        probe: program of `export/probes/` that runs it; empty where there is none.
        modules: that an interpreter must be able to import to run the probe.
        needs: packages beside `checked_with` that it takes.
        only: labels of the formats a user asked for, see `choosing`; empty for all on the menu.
    """

    name: str
    file_format: str
    checked_with: Mapping[str, str]
    evidence: str
    reads: Contract
    dtypes: frozenset[str]
    roles: frozenset[str]
    memory: Memory
    tables: tuple[Format, ...] = ()
    least_outputs: int = 1
    least_inputs: int = 1
    sizes_multiple: int = 1
    fused_groups: bool = False
    notes: tuple[str, ...] = ()
    snippet: str = field(repr=False)
    probe: str = ""
    modules: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """Such as `vllm 0.33.0`."""
        return ", ".join(f"{package} {version}" for package, version in self.checked_with.items())

    @property
    def files(self) -> Files:
        """What is written for it."""
        return files_of(self.file_format)

    def choosing(self, labels: Sequence[str]) -> Engine:
        """The same engine, of whose formats plans may choose these alone; tables may also become what they could.

        Args:
            labels: such as `int4 g128 sym`, `mxfp4`; none for the whole menu.

        Raises:
            UnknownName: no format is called so.
            InvalidFormat: the engine does not read it.
        """
        if not labels:
            return self
        formats = tuple(map(parse, labels))
        for label, format in zip(labels, formats, strict=True):
            dtypes = self.dtypes | {getattr(format, "scale_dtype", "")}
            if why := self.reads.refuses(self.name, format, (LARGE, LARGE), dtypes):
                raise InvalidFormat(
                    f"{label}: {why}", expected=f"formats that {self.name} reads",
                    mend="pennyweight list shows formats; or choose another engine with --for", site="--formats",
                )  # fmt: skip
        return replace(
            self, only=tuple(labels), reads=Chosen(self.reads, formats),
            tables=tuple(format for format in self.tables if format in formats) or self.tables,
        )  # fmt: skip

    def menu(self, columns: Sequence[int], dtype: str) -> tuple[Format, ...]:
        """Formats worth choosing from that fit all of the given input sizes."""
        return self.reads.menu(columns, dtype)

    def menu_of(self, sites: Sequence[Site], dtype: str) -> tuple[Format, ...]:
        """Formats worth choosing from for sites that get one decision."""
        if self.tables and any(site.role in OUTSIDE for site in sites):
            return self.tables
        return self.menu([site.shape[1] for site in sites], dtype)

    def refuses_all(self, network: Network, dtype: str) -> str | None:
        """Why nothing of a network can be written for the engine, in plain words; None when something can."""
        try:
            self.files.check(network, {}, dtype)
        except PennyweightError as error:
            return f"{error.happened} (for {self.name}: {error.expected})"
        return None

    def refuses(self, site: Site, format: Format, network: Network) -> str | None:
        """Why the engine cannot load this site in this format, in plain words; None when it can.

        Whether sites it joins agree is a question about several sites: see `fused_groups`.
        """
        if isinstance(format, Dense):
            return None if format.dtype in self.dtypes else f"{self.name} takes no tensors in {format.dtype}"
        kind = {"embedding": "a quantized embedding table", "head": "a quantized output head"}
        if site.role not in self.roles:
            return f"{self.name} cannot load {kind.get(site.role, f'a quantized {site.role}')}"
        stored = network.stored_name(site.parameter)
        if "embedding" not in self.roles and any(stored in names for names in network.tied):
            return f"it shares its tensor with the embedding table, which {self.name} needs dense"
        outputs, inputs = site.shape
        if outputs < self.least_outputs or inputs < self.least_inputs:
            return f"{self.name} needs at least {self.least_outputs} outputs and {self.least_inputs} inputs"
        if outputs % self.sizes_multiple or inputs % self.sizes_multiple:
            return f"{self.name} needs outputs and inputs that are multiples of {self.sizes_multiple}"
        return self.reads.refuses(self.name, format, site.shape, self.dtypes)


def how_to_load(engine: Engine, path: str | Path) -> str:
    """Write a few lines that a user can paste."""
    return engine.snippet.format(path=path)


def find(name: str) -> Engine:
    """Look up an engine.

    Raises:
        UnknownName: there is none.
    """
    by_name = {engine.name: engine for engine in ENGINES}
    if name.lower() in by_name:
        return by_name[name.lower()]
    near = difflib.get_close_matches(name.lower(), by_name, n=3, cutoff=0.4) or list(by_name)
    raise UnknownName(
        f"no engine is called {name!r}", expected=f"one of {', '.join(by_name)}", mend=f"did you mean {near[0]}?"
    )


TRANSFORMERS = Engine(
    name="transformers",
    file_format="compressed-tensors",
    checked_with={"transformers": "5.23.0", "compressed-tensors": "0.20.0"},
    evidence="loaded",
    # Its usual way makes room for zero points as if they were not packed, and then refuses the file. Only
    # dequantize=True reads them, and only where all sites share one grid, which no mixture does.
    reads=Either(
        (
            Grids(bits=frozenset(range(2, 9)), asymmetric_bits=frozenset(), group_sizes=None),
            Listed(
                loads=(
                    *(Minifloat(element="e4m3", sharing=Sharing(1, group)) for group in (None, 32, 64, 128)),
                    Minifloat(element="e4m3", sharing=Sharing(None, None)),
                    Minifloat(element="e4m3", sharing=Sharing(128, 128)),
                    Microscaling(element="e4m3"),
                    Microscaling(element="e2m1"),
                    NVFP4(),
                )
            ),
        )
    ),  # fmt: skip
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    # Its weight initialisation looks for `weight` in every Embedding, and a packed one has none.
    roles=frozenset({"linear", "head"}),
    # compressed-tensors unpacks one weight after the other at the first call, and between 10 and 55 bytes a number of
    # the largest were seen beside the results, from run to run (benchmarks/engine_memory.py). generate() asks for the
    # logits of the last position. On a CPU the packed file stays mapped beside all this.
    memory=Memory(weights="dense", unpacking=56.0, evidence="measured"),
    notes=(
        "needs the packages compressed-tensors (0.18 or newer) and accelerate",
        "3, 5, 6 and 7 bits are packed without gaps, as compressed-tensors does since 0.18; older ones misread them",
        "weights are dequantized in memory on the first forward pass: the file is smaller, the process is not",
        "MXFP4, MXFP8 and NVFP4 are unpacked to bfloat16, where their numbers are exact: load a model in bfloat16 "
        "with dtype='auto'",
        "leave dequantize=False: with True, this version reads every weight with the bits of the first group",
    ),
    snippet="""\
# pip install "transformers>=5.23" "compressed-tensors>=0.18" accelerate
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{path}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{path}")
""",
    probe="transformers.py",
    modules=("compressed_tensors", "accelerate", "transformers"),
    needs=("torch", "accelerate"),
)

VLLM = Engine(
    name="vllm",
    file_format="compressed-tensors",
    checked_with={"vllm": "0.33.0"},
    evidence="read",
    reads=Grids(bits=frozenset({4, 8}), asymmetric_bits=frozenset({4, 8}), group_sizes=frozenset({32, 64, 128})),
    dtypes=frozenset({"float16", "bfloat16"}),
    roles=frozenset({"linear"}),
    # It takes a share of the GPU beforehand and keeps keys and values in what is left: this is what one sequence needs.
    memory=Memory(weights="stored", unpacking=1.0),
    # Marlin works on tiles of 64 outputs by 128 inputs. We ask for one whole tile, and that groups divide the inputs;
    # whether larger sizes must be multiples of the tile differs between versions (recent ones pad with zeros).
    least_outputs=64,
    least_inputs=128,
    fused_groups=True,
    notes=(
        "read from its sources, not run here: load the result once before relying on it",
        "inputs that are no multiple of 128 (such as 576) rely on its kernel padding them; older versions refuse",
        "weights only: faster where memory bandwidth is the limit, not for large batches",
    ),
    snippet="""\
# pip install vllm
vllm serve "{path}"
""",
)

LLAMA_CPP = Engine(
    name="llama.cpp",
    file_format="gguf",
    checked_with={"llama-cpp-python": "0.3.36"},
    evidence="loaded",
    reads=BlockTypes(
        loads=(*legacy(*Legacy.types()), *k_types(*KQuant.types()), *map(TernaryBlocks.of, TernaryBlocks.types())),
        offered=(
            *legacy("q4_0", "iq4_nl", "q4_1", "q5_0", "q5_1", "q8_0"),
            *k_types("q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k"),
        ),
        narrow_too=legacy("q8_0"),
    ),
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    roles=frozenset({"linear", "embedding", "head"}),
    # Batches of 512 tokens, room for the logits of each; keys and values in float16, all else in float32.
    memory=Memory(weights="stored", cache=2, activations=4, prompt=512, logits=None),
    # Four to eight bits; each is priced by running the network, so there are few (docs/decisions/0012).
    tables=(*legacy("iq4_nl", "q5_1", "q8_0"), *k_types("q4_k", "q5_k", "q6_k")),
    notes=(
        "the certificate is about the weights in the file, computed with in float32; llama.cpp also rounds activations "
        "to 8 bits before it multiplies, which cost a KL of .002 to .006 nats a token more on a model of 135M "
        "parameters (benchmarks/results/llama_cpp.json), and keeps keys and values in float16 unless told otherwise",
        "the embedding table and the head are rounded to nearest, at a price that is measured, or stay as they are",
        "types with blocks of 256 need inputs that are a multiple of it; others get blocks of 32",
    ),
    snippet="""\
# https://github.com/ggml-org/llama.cpp
llama-cli -m "{path}/model.gguf" -p "Once upon a time"
# or in Python: pip install llama-cpp-python
# llama_cpp.Llama("{path}/model.gguf")("Once upon a time")
""",
    probe="llama_cpp.py",
    modules=("llama_cpp",),
)

# MatMulNBits: blocks of a power of two, at least 16. Other widths are in its definition; the CPU kernels refuse them.
NBITS = Grids(
    bits=frozenset({2, 4, 8}), asymmetric_bits=frozenset({2, 4, 8}), group_sizes=frozenset({16, 32, 64, 128, 256}),
    rows=False,
)  # fmt: skip

ONNXRUNTIME = Engine(
    name="onnxruntime",
    file_format="onnx",
    checked_with={"onnxruntime": "1.31.1"},
    evidence="loaded",
    # In float32 it has kernels for 4 bits alone; 2 and 8 bits it unpacks at every call, up to a hundred times slower.
    reads=replace(NBITS, offered=frozenset({4})),
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    roles=frozenset({"linear", "embedding", "head"}),
    # The program has the logits of every position, and no limit to how many go through together.
    memory=Memory(weights="stored", cache=4, activations=4, logits=None),
    # Priced by running the network, so there are few; scales have a type of their own, whatever the model's is.
    tables=tuple(Grid(bits=4, group_size=size, symmetric=False) for size in (32, 64)),
    notes=(
        "computes in float32, whatever type the file stores, so that its logits are those the certificate is about; "
        "what stays dense in 16 bits takes twice as much in memory as in the file, which --memory does not count",
        "plans are offered 4 bits or none; a plan may say 2 or 8, which load, compute the same and are slow",
        "onnxruntime-int8 has all widths and is faster, and rounds activations to 8 bits",
    ),
    snippet="""\
# pip install onnxruntime
import onnxruntime

session = onnxruntime.InferenceSession("{path}/model.onnx")
# inputs and outputs are called as optimum calls them: ORTModelForCausalLM.from_pretrained("{path}")
""",
    probe="onnxruntime.py",
    modules=("onnxruntime",),
)

ONNXRUNTIME_INT8 = replace(
    ONNXRUNTIME,
    name="onnxruntime-int8",
    file_format="onnx-int8",
    reads=NBITS,
    tables=tuple(Grid(bits=bits, group_size=size, symmetric=bits == 8) for bits in (4, 8) for size in (32, 64)),
    notes=(
        "the certificate is about the weights in the file, computed with in float32; products with codes also round "
        "activations to 8 bits in the groups of the weights (accuracy_level 4), which cost a KL of .005 to .006 nats a "
        "token more on a model of 135M parameters (benchmarks/results/onnx_programs.json)",
        "what stays dense computes in float32, whatever type the file stores",
    ),
)

GPTQMODEL = Engine(
    name="gptqmodel",
    file_format="gptq",
    checked_with={"gptqmodel": "7.7.0"},
    evidence="loaded",
    reads=Grids(bits=frozenset({2, 4, 8}), asymmetric_bits=frozenset({2, 4, 8}), group_sizes=frozenset({32, 64, 128})),
    dtypes=frozenset({"float16"}),  # of its scales, whatever the model is in
    roles=frozenset({"linear"}),
    sizes_multiple=32,
    memory=Memory(weights="stored", unpacking=8.0),
    notes=(
        "zero points are stored less one (version 1) unless some are not in the middle; those of version 2 are read by "
        "GPTQModel 0.9 and later",
        "load it in float16: its usual type on the CPU, bfloat16, rounds the scales",
        "3 bits are packed in two ways that carry one name, and are not written",
    ),
    snippet="""\
# pip install gptqmodel
import torch
from gptqmodel import GPTQModel

model = GPTQModel.load("{path}", dtype=torch.float16)
""",
    probe="gptqmodel.py",
    modules=("gptqmodel",),
)

VLLM_GPTQ = Engine(
    name="vllm-gptq",
    file_format="gptq",
    checked_with={"vllm": "0.33.0"},
    evidence="read",
    reads=Grids(bits=frozenset({4, 8}), asymmetric_bits=frozenset(), group_sizes=frozenset({32, 64, 128})),
    dtypes=frozenset({"float16"}),
    roles=frozenset({"linear"}),
    least_outputs=64,
    least_inputs=128,
    sizes_multiple=32,
    memory=Memory(weights="stored", unpacking=1.0),
    fused_groups=True,
    notes=("read from its sources, not run here: load the result once before relying on it",),
    snippet="""\
# pip install vllm
vllm serve "{path}"
""",
)

PYTORCH = Engine(
    name="pytorch",
    file_format="dense",
    checked_with={"torch": "2.13.0", "transformers": "5.23.0"},
    evidence="loaded",
    reads=Floats(),
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    roles=frozenset({"linear", "embedding", "head"}),
    memory=Memory(weights="dense"),
    notes=("floats alone: nothing becomes smaller; for tools that know of no codes",),
    snippet="""\
# pip install transformers
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{path}", dtype="auto")
""",
)

OPENVINO = Engine(
    name="openvino",
    file_format="openvino",
    checked_with={"openvino": "2026.4.1"},
    evidence="loaded",
    # It computes wrong numbers where rows of codes begin inside a byte.
    reads=Grids(
        bits=frozenset({2, 4, 8}), asymmetric_bits=frozenset({2, 4, 8}), group_sizes=None, whole_bytes=True
    ),  # fmt: skip
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    roles=frozenset({"linear", "embedding", "head"}),
    # Tables are read where they lie; the cache is measured as the probe sets it, in float32.
    memory=Memory(weights="stored", cache=4, activations=4, logits=None),
    # Priced by running the network, so there are few; scales have a type of their own, whatever the model's is.
    tables=(
        *(Grid(bits=4, group_size=size, symmetric=False) for size in (32, 64)),
        Grid(bits=8),
    ),
    notes=(
        "the certificate is about the weights in the file, computed with in float32; of its own accord OpenVINO "
        "computes in bfloat16 where the processor can, or rounds activations to 8 bits, and keeps keys and values in 8 "
        "bits: the snippet says how to have float32",
    ),
    snippet="""\
# pip install openvino-genai, or optimum-intel
from optimum.intel import OVModelForCausalLM

exact = {{"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}}
model = OVModelForCausalLM.from_pretrained("{path}", ov_config=exact)  # without it faster, and less exact
""",
    probe="openvino.py",
    modules=("openvino",),
)

ENGINES = (
    TRANSFORMERS, VLLM, LLAMA_CPP, GPTQMODEL, VLLM_GPTQ, ONNXRUNTIME, ONNXRUNTIME_INT8, OPENVINO, PYTORCH
)  # fmt: skip
