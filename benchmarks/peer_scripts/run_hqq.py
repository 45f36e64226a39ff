"""HQQ: groups of 64 along the inputs, its defaults otherwise; no data.   run_hqq.py MODEL TEXT OUT BITS

Written dequantised, for every tool to read; `bits` counts codes as it packs them, scales and zeros in 16 bits.
"""

import json
import sys

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from transformers import AutoModelForCausalLM, AutoTokenizer

model, _, out, bits = sys.argv[1:5]
loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
codes = weights = 0
for name, module in loaded.named_modules():
    if isinstance(module, torch.nn.Linear) and ".layers." in name:
        setting = BaseQuantizeConfig(nbits=int(bits), group_size=64, axis=1)
        rounded = HQQLinear(module, setting, compute_dtype=torch.float32, device="cpu", del_orig=False)
        codes += rounded.W_q.numel() * rounded.W_q.element_size()
        codes += 2 * sum(rounded.meta[part].numel() for part in ("scale", "zero"))
        weights += module.weight.numel()
        module.weight.data = rounded.dequantize()
loaded.save_pretrained(out)
AutoTokenizer.from_pretrained(model).save_pretrained(out)
print(json.dumps({"bits": 8 * codes / weights}))
