"""llama.cpp, as llama-cpp-python 0.3.36 has it: run on what we write, logit by logit (`benchmarks/llama_cpp.py`)."""

from __future__ import annotations

from pennyweight.export.contracts import (
    BlockTypes,
    k_types,
    legacy,
)
from pennyweight.export.engines.engine import Engine
from pennyweight.export.memory import Memory
from pennyweight.formats import (
    KQuant,
    Legacy,
    TernaryBlocks,
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
    own=("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_K_M", "Q6_K", "Q8_0"),
    probe="llama_cpp.py",
    modules=("llama_cpp",),
)
