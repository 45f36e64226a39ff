"""What transformers makes of tokens, with compressed-tensors."""

import sys
import time

sys.path.pop(0)  # this folder, where a file has the name of the engine's package

import compressed_tensors
import numpy as np
import torch
import transformers


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
    found = [model(input_ids=window[None], use_cache=False).logits[0].float().numpy() for window in ids]
    read, decoded = time.perf_counter(), min(32, ids.shape[1])
    cache = model(input_ids=ids[:1], use_cache=True).past_key_values
    first = time.perf_counter()
    for token in ids[0][:decoded]:
        cache = model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True).past_key_values
    versions = f"transformers {transformers.__version__}, compressed-tensors {compressed_tensors.__version__}"
    np.savez(
        out, logits=np.stack(found), version=versions, loading=loaded - start, prefill=read - loaded,
        decode=time.perf_counter() - first, decoded=decoded,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
