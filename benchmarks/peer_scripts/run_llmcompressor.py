"""llm-compressor: GPTQ in groups of 64, symmetric, its min-max observer.   run_llmcompressor.py MODEL TEXT OUT BITS"""

import shutil
import sys

import torch
from common import windows
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM

model, text, out, bits = sys.argv[1:5]
loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
ids = windows(model, text, 128).tolist()
data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
weights = QuantizationArgs(
    num_bits=int(bits), type="int", symmetric=True, strategy="group", group_size=64, observer="minmax"
)
scheme = QuantizationScheme(targets=["Linear"], weights=weights)
recipe = GPTQModifier(ignore=["lm_head"], config_groups={"all": scheme})
oneshot(model=loaded, dataset=data, recipe=recipe, max_seq_length=512, num_calibration_samples=len(ids))
loaded.save_pretrained(out, save_compressed=True)
shutil.copy(f"{model}/tokenizer.json", out)
