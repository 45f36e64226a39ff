"""What a GPTQ checkpoint stands for, one number at a time, from the layout as it is published; no code of ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file


def dequantize(directory: Path, module: str) -> NDArray[np.float32]:
    """`[out, in]`: scales · (code − zero), with the width the config gives this module."""
    settings = json.loads((directory / "config.json").read_text())["quantization_config"]
    bits = settings["bits"]
    for pattern, override in settings.get("dynamic", {}).items():
        if re.match(pattern.removeprefix("+:"), module):
            bits = override["bits"]
            break
    tensors = load_file(directory / "model.safetensors")
    words, zeros = (tensors[f"{module}.{name}"].view(np.uint32) for name in ("qweight", "qzeros"))
    scales, groups = tensors[f"{module}.scales"], tensors[f"{module}.g_idx"]
    added = 1 if settings["checkpoint_format"] == "gptq" else 0
    weight = np.empty((words.shape[1], len(groups)), dtype=np.float32)
    for i, group in enumerate(groups):
        for o in range(words.shape[1]):
            code = _number(words[:, o], i, bits)
            zero = _number(zeros[group], o, bits) + added
            weight[o, i] = np.float32(scales[group, o]) * np.float32(code - zero)
    return weight


def _number(words: NDArray[np.uint32], index: int, bits: int) -> int:
    """One number of a stream of bits that runs through the words, low bits first."""
    where = range(index * bits, (index + 1) * bits)
    return sum((int(words[place // 32]) >> place % 32 & 1) << bit for bit, place in enumerate(where))
