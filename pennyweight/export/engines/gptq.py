"""Engines that read GPTQ: GPTQModel, whose own dequantizer gave back what we wrote for it, and vLLM, which was read."""

from __future__ import annotations

from pennyweight.export.contracts import (
    Grids,
)
from pennyweight.export.engines.engine import Engine
from pennyweight.export.memory import Memory

WIDTHS = frozenset({2, 3, 4, 8})

GPTQMODEL = Engine(
    name="gptqmodel",
    file_format="gptq",
    checked_with={"gptqmodel": "7.7.0"},
    evidence="loaded",
    reads=Grids(bits=WIDTHS, asymmetric_bits=WIDTHS, group_sizes=frozenset({32, 64, 128})),
    dtypes=frozenset({"float16"}),  # of its scales, whatever the model is in
    roles=frozenset({"linear"}),
    sizes_multiple=32,
    memory=Memory(weights="stored", unpacking=8.0),
    notes=(
        "zero points are stored less one (version 1) unless some are not in the middle; those of version 2 are read by "
        "GPTQModel 0.9 and later",
        "load it in float16: its usual type on the CPU, bfloat16, rounds the scales",
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
    checked_with={"vllm": "0.32.0"},
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
    probe="vllm.py",
    modules=("vllm",),
)
