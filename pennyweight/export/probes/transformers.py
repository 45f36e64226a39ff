"""What transformers makes of tokens, with compressed-tensors."""

import sys
import time
from pathlib import Path
from typing import Any

# Not this folder, where a file has the name of the engine's package.
if str(Path(__file__).resolve().parent) == sys.path[0]:
    sys.path.pop(0)

import compressed_tensors
import numpy as np
import torch
import transformers

VERSION = f"transformers {transformers.__version__}, compressed-tensors {compressed_tensors.__version__}"


@torch.no_grad()
def main(path: str, tokens: str, out: str) -> None:
    """Load in float32, read every window, then write a few tokens after the first."""
    windows, start = np.load(tokens), time.perf_counter()
    config = transformers.AutoConfig.from_pretrained(path).to_dict().get("quantization_config") or {}
    formats = {group.get("format") for group in (config.get("config_groups") or {}).values() if isinstance(group, dict)}
    # Floats with scales of eight bits are unpacked to bfloat16 whatever the model is; their numbers are exact in it.
    dtype = torch.bfloat16 if any(str(name).startswith(("mxfp", "nvfp")) for name in formats) else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    ids = torch.from_numpy(windows).long()
    model(input_ids=ids[:1, :2])  # weights are unpacked at the first call
    torch.nn.Module.float(model)  # transformers refuses its own of a quantized model
    loaded = time.perf_counter()
    keeps = bool(config.get("kv_cache_scheme"))  # keys and values are rounded in a cache alone
    found = [model(input_ids=window[None], use_cache=keeps).logits[0].float().numpy() for window in ids]
    read, decoded = time.perf_counter(), min(32, ids.shape[1])
    cache = model(input_ids=ids[:1], use_cache=True).past_key_values
    first = time.perf_counter()
    for token in ids[0][:decoded]:
        cache = model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True).past_key_values
    np.savez(
        out, logits=np.stack(found), version=VERSION, loading=loaded - start, prefill=read - loaded,
        decode=time.perf_counter() - first, decoded=decoded,
    )  # fmt: skip


class Timed:
    """The model in the type of its files, which is how it would be served."""

    version = VERSION

    def __init__(self, path: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
        self.cache: Any = None
        self.prefill(np.zeros((1, 2), dtype=np.int64))  # weights are unpacked at the first call

    @torch.no_grad()
    def prefill(self, ids: Any) -> None:
        """Read a batch of prompts."""
        self._read(ids, None)

    @torch.no_grad()
    def step(self, ids: Any) -> None:
        """Read one more token of each."""
        self._read(ids[:, None], self.cache)

    def _read(self, ids: Any, cache: Any) -> None:
        given = torch.from_numpy(ids).long()
        output = self.model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        output.logits.argmax(-1)
        self.cache = output.past_key_values


def timed(path: str, options: dict[str, int]) -> Timed:
    """See `loop.py`."""
    return Timed(path, options["threads"])


if __name__ == "__main__":
    main(*sys.argv[1:])
