"""OpenVINO, run on what we write, logit by logit (`tests/unit/test_openvino_export.py`)."""

from __future__ import annotations

from pennyweight.export.contracts import (
    Grids,
)
from pennyweight.export.engines.engine import Engine
from pennyweight.export.memory import Memory
from pennyweight.formats import (
    Grid,
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
        "bits, which cost a KL of .001 to .002 nats a token more at 4 and 8 bits on a model of 135M parameters, in "
        "bfloat16 (benchmarks/results/openvino_models.json); the snippet says how to have float32",
        "in bfloat16, openvino 2026.4.1 ended with SIGFPE on that model when all layers were dense, and in float32 it "
        "did not",
    ),
    snippet="""\
# pip install openvino-genai, or optimum-intel
from optimum.intel import OVModelForCausalLM

exact = {{"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}}
model = OVModelForCausalLM.from_pretrained("{path}", ov_config=exact)  # without it faster, and less exact
""",
    own=("int4 g128", "int4 g64", "int4 g32", "int8"),  # by NNCF, where the interpreter has it
    probe="openvino.py",
    modules=("openvino",),
)
