"""Whatever reads plain floats."""

from __future__ import annotations

from pennyweight.export.contracts import (
    Floats,
)
from pennyweight.export.engines.engine import Engine
from pennyweight.export.memory import Memory

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
