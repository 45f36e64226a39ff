"""Engines that read compressed-tensors: transformers, which was run on what we write, and vLLM.

transformers 5.23.0 with compressed-tensors 0.20.0 was run tensor by tensor and logit by logit
(`tests/unit/test_compressed_tensors.py`). vLLM 0.32.0 was run in its build for CPUs (`benchmarks/results/vllm.json`);
what only GPUs have kernels for is read from its sources, and where they leave doubt the row is the stricter reading.
"""

from __future__ import annotations

from pennyweight.export.contracts import (
    Either,
    Grids,
    Listed,
    Pairs,
)
from pennyweight.export.engines.engine import Engine
from pennyweight.export.memory import Memory
from pennyweight.formats import (
    NVFP4,
    Grid,
    Microscaling,
    Minifloat,
    Sharing,
)
from pennyweight.formats.passing import parse

FP8_ROW = Minifloat(element="e4m3", sharing=Sharing(1, None))
FP8_TENSOR = Minifloat(element="e4m3", sharing=Sharing(None, None))
INT8_ROW = Grid(bits=8)
INT8 = tuple(parse(label) for label in ("int8 token", "int8 token asym", "int8 tensor", "int8 tensor asym"))
FP8 = tuple(parse(label) for label in ("fp8 e4m3 token", "fp8 e4m3 tensor"))
FP8_CACHE = (parse("fp8 e4m3 tensor"),)

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
    # It decodes weights and rounds what layers read to floats of the same values: nothing becomes faster by it here.
    rounds=(
        Pairs(weights=(INT8_ROW, *(Grid(bits=4, group_size=size) for size in (None, 32, 64, 128))), inputs=INT8),
        Pairs(weights=(FP8_ROW, FP8_TENSOR), inputs=FP8),
        Pairs(weights=(Minifloat(element="e4m3", sharing=Sharing(128, 128)),), inputs=(parse("fp8 e4m3 g128"),)),
    ),
    caches=FP8_CACHE,
    notes=(
        "needs the packages compressed-tensors (0.18 or newer) and accelerate",
        "3, 5, 6 and 7 bits are packed without gaps, as compressed-tensors does since 0.18; older ones misread them",
        "weights are dequantized in memory on the first forward pass: the file is smaller, the process is not",
        "MXFP4, MXFP8 and NVFP4 are unpacked to bfloat16, where their numbers are exact: load a model in bfloat16 "
        "with dtype='auto'",
        "of symmetric codes a token it divides by 127.5 where kernels divide by 127, so its logits differ a little "
        "from those the certificate is about; keys and values are rounded with a cache alone, as generate() uses",
        "leave dequantize=False: with True, this version reads every weight with the bits of the first group",
    ),
    snippet="""\
# pip install "transformers>=5.23" "compressed-tensors>=0.18" accelerate
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{path}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{path}")
""",
    also=("dense",),
    probe="transformers.py",
    modules=("compressed_tensors", "accelerate", "transformers"),
    needs=("torch", "accelerate"),
)

VLLM = Engine(
    name="vllm",
    file_format="compressed-tensors",
    checked_with={"vllm": "0.32.0"},
    evidence="loaded",
    reads=Either(
        (
            Grids(bits=frozenset({4, 8}), asymmetric_bits=frozenset({4, 8}), group_sizes=frozenset({32, 64, 128})),
            Listed(loads=(FP8_ROW, FP8_TENSOR)),
        )
    ),
    rounds=(
        Pairs(weights=(INT8_ROW,), inputs=INT8),
        Pairs(weights=(FP8_ROW, FP8_TENSOR), inputs=FP8),
    ),
    caches=FP8_CACHE,
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
        "run in its build for CPUs, with integers of 4 bits, with and without zero points, and of 8 bits where inputs "
        "are int8 too; 8 bits of weights alone and FP8 need a GPU, and are read from its sources",
        "inputs that are no multiple of 128 (such as 576) rely on its kernel padding them; older versions refuse",
        "weights alone: faster where memory bandwidth is the limit, not for large batches; --activations 'int8 token' "
        "or 'fp8 e4m3 token' is for those, and --kv-cache 'fp8 e4m3 tensor' for long texts",
    ),
    snippet="""\
# pip install vllm
vllm serve "{path}"
""",
    probe="vllm.py",
    modules=("vllm",),
)
