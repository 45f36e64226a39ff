"""Pennyweight, every linear layer in groups of 64: GPTQ, symmetric; `trained`, for more seconds: then again for what
layers really read, and scales trained, on the last 40 windows.   run_pennyweight.py MODEL TEXT OUT BITS [trained]"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from common import windows

import pennyweight as pw
from pennyweight.plan import Step

model, text, out, bits, *trained = sys.argv[1:]
shutil.rmtree(out, ignore_errors=True)
network = pw.load(model)
ids = windows(model, text, 128)


def part(ids: torch.Tensor) -> pw.Windows:
    """Some windows as calibration text."""
    return pw.Windows(
        ids=ids, documents=torch.zeros(len(ids), dtype=torch.long), names=(text,), source=Path(text).name,
        split="calibration", fingerprint=f"{text} {ids.shape} {int(ids.sum())}", dropped_tokens=0, text_bytes=0,
    )  # fmt: skip


step = Step.parse(f"gptq int{bits} g64 sym")
plan = pw.Plan(
    steps={site.name: step for site in network.sites if site.role == "linear"}, kept={}, engine="transformers",
    dtype="float16", seed=0, bytes=0, damage=0.0, model=network.source.fingerprint,
    recovery=("corrected_target(batches=16)", "end_to_end(steps=30)") if trained else (),
)  # fmt: skip
with tempfile.TemporaryDirectory() as work:
    seen = part(ids[:-2] if trained else ids)  # recovery holds out its last two, and codes must not have seen them
    statistics = pw.collect(network, seen, needs=frozenset({"gram"}), work=work)
    pw.apply(plan, network, statistics, out=out, calibration=part(ids[-40:]))
