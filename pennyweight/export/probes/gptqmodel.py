"""What GPTQModel makes of tokens, with the kernel that dequantizes in torch."""

import sys
import time
from pathlib import Path
from typing import Any

# Not this folder, where a file has the name of the engine's package.
if str(Path(__file__).resolve().parent) == sys.path[0]:
    sys.path.pop(0)

import gptqmodel
import numpy as np
import torch

VERSION = f"gptqmodel {gptqmodel.__version__}"


def load(path: str, **options: Any) -> Any:
    """The model in float16, the type its scales are in."""
    loaded = gptqmodel.GPTQModel.load(path, device="cpu", dtype=torch.float16, **options)
    return loaded.model.eval()


@torch.no_grad()
def main(path: str, tokens: str, out: str) -> None:
    """Load, read every window, then write a few tokens after the first."""
    windows, start = np.load(tokens), time.perf_counter()
    model, ids = load(path, backend=gptqmodel.BACKEND.TORCH), torch.from_numpy(windows).long()
    ready = time.perf_counter()
    found = [model(input_ids=window[None], use_cache=False).logits[0].float().numpy() for window in ids]
    read, decoded = time.perf_counter(), min(32, ids.shape[1])
    cache = model(input_ids=ids[:1], use_cache=True).past_key_values
    first = time.perf_counter()
    for token in ids[0][:decoded]:
        cache = model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True).past_key_values
    np.savez(
        out, logits=np.stack(found), version=VERSION, loading=ready - start,
        prefill=read - ready, decode=time.perf_counter() - first, decoded=decoded,
    )  # fmt: skip


class Timed:
    """The model with the kernel that GPTQModel chooses by itself."""

    version = VERSION

    def __init__(self, path: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = load(path)
        self.cache: Any = None

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
