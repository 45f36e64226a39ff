"""Pennyweight: GPTQ int4 in groups of 64 for every linear layer.   run_pennyweight.py MODEL TEXT OUT"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from common import windows

import pennyweight as pw
from pennyweight.plan import Step

model, text, out = sys.argv[1:4]
shutil.rmtree(out, ignore_errors=True)
network = pw.load(model)
ids = windows(model, text, 128)
calibration = pw.Windows(
    ids=ids, documents=torch.zeros(len(ids), dtype=torch.long), names=(text,), source=Path(text).name,
    split="calibration", fingerprint=f"{text} {len(ids)}", dropped_tokens=0, text_bytes=0,
)  # fmt: skip
step = Step.parse("gptq int4 g64 sym")
plan = pw.Plan(
    steps={site.name: step for site in network.sites if site.role == "linear"}, kept={}, engine="transformers",
    dtype="float16", seed=0, bytes=0, damage=0.0, model=network.source.fingerprint,
)  # fmt: skip
with tempfile.TemporaryDirectory() as work:
    statistics = pw.collect(network, calibration, needs=frozenset({"gram"}), work=work)
    pw.apply(plan, network, statistics, out=out)
