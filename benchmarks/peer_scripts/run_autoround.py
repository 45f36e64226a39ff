"""AutoRound: groups of 64, 50 steps a block (200 by default), all else default. run_autoround.py MODEL TEXT OUT BITS"""

import sys
from pathlib import Path

import torch
from auto_round import AutoRound
from common import windows
from transformers import AutoModelForCausalLM, AutoTokenizer

model, text, out, bits = sys.argv[1:5]
data = [
    {"input_ids": w[None], "attention_mask": torch.ones(1, len(w), dtype=torch.long)} for w in windows(model, text, 128)
]
loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
made = AutoRound(
    loaded, AutoTokenizer.from_pretrained(model), bits=int(bits), group_size=64, sym=True, iters=50, nsamples=128,
    seqlen=512, dataset=data, device_map="cpu",
)  # fmt: skip
made.quantize_and_save(out, format="auto_gptq")
if not (Path(out) / "config.json").exists():  # it makes a folder of its own inside
    (inner,) = (path.parent for path in Path(out).glob("*/config.json"))
    for path in list(inner.iterdir()):
        path.rename(Path(out) / path.name)
