"""Perplexity, KL and agreement of a checkpoint against its base, float32.   score.py BASE TEXT CHECKPOINT"""

import json
import sys
from pathlib import Path

import torch
from common import windows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

ROWS = 64


def gptq_dense(base: str, checkpoint: str) -> torch.nn.Module:
    """A GPTQ checkpoint (v1 zero points, 4 bits) on its base, dequantised to float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    stored = {}
    for file in sorted(Path(checkpoint).glob("*.safetensors")):
        stored |= load_file(file)
    shifts = torch.arange(0, 32, 4)
    parameters = dict(model.named_parameters())
    for key in [k.removesuffix(".qweight") for k in stored if k.endswith(".qweight")]:
        words = stored[f"{key}.qweight"]
        codes = ((words[:, None, :] >> shifts[None, :, None]) & 15).reshape(-1, words.shape[1])
        zeros = ((stored[f"{key}.qzeros"][:, :, None] >> shifts) & 15).reshape(len(stored[f"{key}.qzeros"]), -1) + 1
        scales = stored[f"{key}.scales"].float()
        group = stored[f"{key}.g_idx"].long() if f"{key}.g_idx" in stored else torch.arange(len(codes)) // 64
        weight = ((codes - zeros[group]).float() * scales[group]).T
        parameters[f"{key}.weight"].data.copy_(weight)
    return model


def load(base: str, checkpoint: str) -> torch.nn.Module:
    config = json.loads((Path(checkpoint) / "config.json").read_text())
    if config.get("quantization_config", {}).get("quant_method") == "gptq":
        return gptq_dense(base, checkpoint)
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def size(folder: str) -> int:
    return sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())


@torch.no_grad()
def main() -> None:
    base, text, checkpoint = sys.argv[1:4]
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    after = load(base, checkpoint).eval()
    loss = base_loss = kl = same = 0.0
    n = 0
    for window in windows(base, text, 64):
        p_all, q_all = before(window[None]).logits[0], after(window[None]).logits[0].float()
        for start in range(0, len(window) - 1, ROWS):
            stop = min(start + ROWS, len(window) - 1)
            p, q = p_all[start:stop].log_softmax(-1), q_all[start:stop].log_softmax(-1)
            label = window[start + 1 : stop + 1, None]
            base_loss -= float(p.gather(1, label).double().sum())
            loss -= float(q.gather(1, label).double().sum())
            kl += float((p.exp() * (p - q)).double().sum())
            same += float((p.argmax(-1) == q.argmax(-1)).sum())
            n += stop - start
    ratio = {
        k: float(torch.tensor(v / n, dtype=torch.double).exp()) for k, v in (("perplexity", loss), ("base", base_loss))
    }
    print(json.dumps({**ratio, "kl": kl / n, "agreement": same / n, "tokens": n, "disk_mb": size(checkpoint) / 1e6}))


if __name__ == "__main__":
    main()
