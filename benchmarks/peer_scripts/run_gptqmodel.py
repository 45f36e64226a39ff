"""GPTQModel: groups of 64, its defaults otherwise, on the CPU.   run_gptqmodel.py MODEL TEXT OUT BITS"""

import os
import sys

import torch
from common import windows

if (os.cpu_count() or 1) < 3:  # 7.7.0 refuses to start on fewer than three cores
    os.cpu_count = lambda: 4  # type: ignore[assignment]
from gptqmodel import GPTQModel, QuantizeConfig

model, text, out, bits = sys.argv[1:5]
data = [{"input_ids": w, "attention_mask": torch.ones_like(w)} for w in windows(model, text, 128)]
loaded = GPTQModel.load(model, QuantizeConfig(bits=int(bits), group_size=64), device="cpu")
loaded.quantize(data, batch_size=1)
loaded.save(out)
