"""What llama.cpp makes of tokens, through llama-cpp-python."""

import sys
import time

sys.path.pop(0)  # this folder, where a file has the name of the engine's package

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


if __name__ == "__main__":
    main(*sys.argv[1:])
