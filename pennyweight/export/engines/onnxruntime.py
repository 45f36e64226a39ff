"""ONNX Runtime, run on what we write, logit by logit (`tests/unit/test_onnx_export.py`)."""

from __future__ import annotations

from dataclasses import replace

from pennyweight.export.contracts import (
    Grids,
)
from pennyweight.export.engines.engine import Engine
from pennyweight.export.memory import Memory
from pennyweight.formats import (
    Grid,
)

# MatMulNBits: blocks of a power of two, at least 16. Other widths are in its definition; the CPU kernels refuse them.
NBITS = Grids(
    bits=frozenset({2, 4, 8}), asymmetric_bits=frozenset({2, 4, 8}), group_sizes=frozenset({16, 32, 64, 128, 256}),
    rows=False,
)  # fmt: skip
OWN = ((4, 128), (4, 64), (4, 32), (8, 128), (8, 32))  # bits and groups for its own quantizer

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
    own=tuple(f"int{bits} g{size}" for bits, size in OWN),
    own_dtype="float32",
    probe="onnxruntime.py",
    modules=("onnxruntime",),
)

ONNXRUNTIME_INT8 = replace(
    ONNXRUNTIME,
    name="onnxruntime-int8",
    file_format="onnx-int8",
    reads=NBITS,
    own=tuple(f"int{bits} g{size} level 4" for bits, size in OWN),
    tables=tuple(Grid(bits=bits, group_size=size, symmetric=bits == 8) for bits in (4, 8) for size in (32, 64)),
    notes=(
        "the certificate is about the weights in the file, computed with in float32; products with codes also round "
        "activations to 8 bits in the groups of the weights (accuracy_level 4), which cost a KL of .005 to .006 nats a "
        "token more on a model of 135M parameters (benchmarks/results/onnx_programs.json)",
        "what stays dense computes in float32, whatever type the file stores",
    ),
)
