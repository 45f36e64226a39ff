"""Pennyweight, every linear layer in one format that an engine loads.

    run_pennyweight.py MODEL TEXT OUT BITS [corrected|trained]

GPTQ, symmetric, in groups of 64, on all 128 windows. `corrected`: at 4 and 2 bits with zero points, at 3 bits, where no
engine takes them, in groups of 48 (others store zero points there that say nothing, in more bytes); codes are chosen
again on half of the windows for what layers really read, and the first ones rest on a few windows, as little is left of
them. `trained`: then scales and zero points are trained end to end.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from common import windows

import pennyweight as pw
from pennyweight.plan import Step

model, text, out, bits, *mode = sys.argv[1:]
shutil.rmtree(out, ignore_errors=True)
network = pw.load(model)
ids = windows(model, text, 128)


def part(ids: torch.Tensor) -> pw.Windows:
    """Some windows as calibration text."""
    return pw.Windows(
        ids=ids, documents=torch.zeros(len(ids), dtype=torch.long), names=(text,), source=Path(text).name,
        split="calibration", fingerprint=f"{text} {ids.shape} {int(ids.sum())}", dropped_tokens=0, text_bytes=0,
    )  # fmt: skip


ENGINES = {4: "vllm", 2: "gptqmodel"}  # that load zero points of this width
RECOVERY = {
    (): (), ("corrected",): ("corrected_target",), ("trained",): ("corrected_target", "end_to_end(steps=45)"),
}  # fmt: skip
recovery = RECOVERY[tuple(mode)]
engine = ENGINES.get(int(bits), "transformers") if recovery else "transformers"
format = f"int{bits} g64 asym" if engine != "transformers" else f"int{bits} g{48 if recovery else 64} sym"
step = Step.parse(f"gptq {format}")
plan = pw.Plan(
    steps={site.name: step for site in network.sites if site.role == "linear"}, kept={}, engine=engine, dtype="float16",
    seed=0, bytes=0, damage=0.0, model=network.source.fingerprint, recovery=recovery,
)  # fmt: skip
with tempfile.TemporaryDirectory() as work:
    first = ids[:16] if recovery else ids  # recovery holds out the last four of 64: codes must not have seen them
    statistics = pw.collect(network, part(first), needs=frozenset({"gram"}), work=work)
    pw.apply(plan, network, statistics, out=out, calibration=part(ids[:64]))
