"""Perplexity, KL, agreement of a checkpoint against its base, float32, by our loader.   score.py BASE TEXT CHECKPOINT

Our loader reads what all tools here write; that it reads their numbers is tested elsewhere.
"""

import json
import sys
import zlib
from pathlib import Path

import torch
from common import windows
from safetensors import safe_open

import pennyweight as pw
from pennyweight.network.running.run import materialised

ROWS = 64
BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}


def bits(folder: Path, weights: int) -> float:
    """A weight of the layers, everything stored for them counted."""
    stored = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if ".layers." in name and "norm" not in name:
                    part = tensors.get_slice(name)
                    stored += torch.Size(part.get_shape()).numel() * BYTES.get(part.get_dtype(), 1)
    return 8 * stored / weights


def hidden(base: pw.Network, ids: torch.Tensor, work: Path) -> torch.Tensor:
    """What the base's head reads, `[windows, length, width]`: made once and kept beside the checkpoints."""
    path = work / f"base-{base.source.fingerprint[-16:]}-{zlib.crc32(ids.numpy().tobytes()):08x}.pt"
    if not path.exists():
        with materialised(base, exact=False, dtype=torch.float32) as model:
            made = [model.base_model(input_ids=window[None], use_cache=False).last_hidden_state for window in ids]
        torch.save(torch.cat(made), path)
    return torch.load(path)


@torch.no_grad()
def main() -> None:
    base, text, checkpoint = sys.argv[1:4]
    first, second, ids = pw.load(base), pw.load(checkpoint), windows(base, text, 64)
    kept = hidden(first, ids, Path(checkpoint).parent)
    loss = base_loss = kl = same = 0.0
    n = 0
    with (
        materialised(first, exact=False, dtype=torch.float32) as before,
        materialised(second, exact=False, dtype=torch.float32) as after,
    ):
        head = before.get_output_embeddings()
        for window, read in zip(ids, kept, strict=True):
            q_all = after(input_ids=window[None], use_cache=False).logits[0]
            for start in range(0, len(window) - 1, ROWS):
                stop = min(start + ROWS, len(window) - 1)
                p, q = head(read[start:stop]).log_softmax(-1), q_all[start:stop].log_softmax(-1)
                label = window[start + 1 : stop + 1, None]
                base_loss -= float(p.gather(1, label).double().sum())
                loss -= float(q.gather(1, label).double().sum())
                kl += float((p.exp() * (p - q)).sum(-1, dtype=torch.double).sum())
                same += float((p.argmax(-1) == q.argmax(-1)).sum())
                n += stop - start
    ratio = {
        k: float(torch.tensor(v / n, dtype=torch.double).exp()) for k, v in (("perplexity", loss), ("base", base_loss))
    }
    weights = sum(site.elements for site in first.sites if site.role == "linear" and site.block is not None)
    size = sum(file.stat().st_size for file in Path(checkpoint).rglob("*") if file.is_file())
    found = {"bits": bits(Path(checkpoint), weights), "kl": kl / n, "agreement": same / n, "tokens": n}
    print(json.dumps({**ratio, **found, "disk_mb": size / 1e6}))


if __name__ == "__main__":
    main()
