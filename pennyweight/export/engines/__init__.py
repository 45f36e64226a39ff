"""What each engine can load, as data: versioned contracts the planner asks before anything is computed.

A file holds the rows of engines that read one kind of files; a new engine is a row there, and its name in `ENGINES`.
"""

from __future__ import annotations

import difflib

from pennyweight.errors import UnknownName
from pennyweight.export.engines.engine import OUTSIDE, Engine, how_to_load
from pennyweight.export.engines.gptq import GPTQMODEL, VLLM_GPTQ
from pennyweight.export.engines.llama_cpp import LLAMA_CPP
from pennyweight.export.engines.onnxruntime import ONNXRUNTIME, ONNXRUNTIME_INT8
from pennyweight.export.engines.openvino import OPENVINO
from pennyweight.export.engines.pytorch import PYTORCH
from pennyweight.export.engines.safetensors import TRANSFORMERS, VLLM

__all__ = ["ENGINES", "OUTSIDE", "Engine", "find", "how_to_load"]

ENGINES = (
    TRANSFORMERS, VLLM, LLAMA_CPP, GPTQMODEL, VLLM_GPTQ, ONNXRUNTIME, ONNXRUNTIME_INT8, OPENVINO, PYTORCH
)  # fmt: skip


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
