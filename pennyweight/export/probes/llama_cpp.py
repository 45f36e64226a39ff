"""What llama.cpp makes of tokens, by llama-cpp-python. `python llama_cpp.py quantize IN OUT TYPE`: its quantizer."""

import sys
import time
from pathlib import Path
from typing import Any

# Not this folder, where a file has the name of the engine's package.
if str(Path(__file__).resolve().parent) == sys.path[0]:
    sys.path.pop(0)

import llama_cpp
import numpy as np

FLOAT32 = 0  # keys and values are kept in float16 otherwise


def main(path: str, tokens: str, out: str) -> None:
    """Load, read every window, then write a few tokens after the last."""
    windows, start = np.load(tokens), time.perf_counter()
    model = llama_cpp.Llama(
        path, n_ctx=2 * windows.shape[1], n_batch=windows.shape[1], logits_all=True, verbose=False, type_k=FLOAT32,
        type_v=FLOAT32,
    )  # fmt: skip
    loaded, found = time.perf_counter(), []
    for window in windows:
        model.reset()
        model.eval([int(token) for token in window])
        found.append(np.array(model.scores[: len(window)], dtype=np.float32))
    read, decoded = time.perf_counter(), min(32, windows.shape[1])
    for token in windows[0][:decoded]:
        model.eval([int(token)])
    np.savez(
        out, logits=np.stack(found), version=f"llama-cpp-python {llama_cpp.__version__}", loading=loaded - start,
        prefill=read - loaded, decode=time.perf_counter() - read, decoded=decoded,
    )  # fmt: skip


class Timed:
    """Several texts at once, by the library's own functions: the class of the package runs one."""

    version = f"llama-cpp-python {llama_cpp.__version__}"

    def __init__(self, path: str, batch: int, length: int, threads: int) -> None:
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise ValueError(f"{path} cannot be loaded")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.n_batch = batch * length, batch, batch * length
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise ValueError(f"no room for {batch} texts of {length} tokens")
        self.batch = llama_cpp.llama_batch_init(batch * length, 0, 1)
        self.position = 0

    def prefill(self, ids: Any) -> None:
        """Read a batch of prompts."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.position = 0
        self._read(ids)

    def step(self, ids: Any) -> None:
        """Read one more token of each."""
        self._read(ids[:, None])

    def _read(self, ids: Any) -> None:
        count, length = ids.shape
        batch, self.batch.n_tokens = self.batch, count * length
        for place, token in enumerate(ids.flatten().tolist()):
            text, position = divmod(place, length)
            batch.token[place], batch.pos[place] = token, self.position + position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, text
            batch.logits[place] = position + 1 == length
        code = llama_cpp.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        llama_cpp.llama_synchronize(self.context)
        self.position += length


def timed(path: str, options: dict[str, int]) -> Timed:
    """See `loop.py`."""
    return Timed(path, options["batch"], options["length"], options["threads"])


def quantize(before: str, after: str, kind: str) -> None:
    """Let the engine round a file to one of its own types, such as Q4_K_M."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), True
    code = llama_cpp.llama_model_quantize(before.encode(), after.encode(), settings)
    if code:
        raise RuntimeError(f"llama_model_quantize returned {code}")


if __name__ == "__main__":
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
