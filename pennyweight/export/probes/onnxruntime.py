"""What onnxruntime makes of tokens, on the CPU."""

import sys
import time
from typing import Any

sys.path.pop(0)  # this folder, where a file has the name of the engine's package

import numpy as np
import onnxruntime

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def main(path: str, tokens: str, out: str, threads: str = "0") -> None:
    """Load, read every window, then write a few tokens after the first; 0 threads are one a core."""
    windows, start = np.load(tokens).astype(np.int64), time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = int(threads)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    loaded, names = time.perf_counter(), [entry.name for entry in session.get_inputs()]
    caches = [entry for entry in session.get_inputs() if entry.name.startswith("past_key_values.")]
    nothing = [np.zeros([1, entry.shape[1], 0, entry.shape[3]], dtype=TYPES[entry.type]) for entry in caches]

    def step(ids: Any, past: list[Any]) -> tuple[Any, list[Any]]:
        """Logits and caches of some more tokens."""
        before, count = past[0].shape[2], len(ids)
        given = {
            "input_ids": ids[None], "attention_mask": np.ones([1, before + count], dtype=np.int64),
            "position_ids": np.arange(before, before + count)[None],
            **{entry.name: value for entry, value in zip(caches, past, strict=True)},
        }  # fmt: skip
        logits, *present = session.run(None, {name: given[name] for name in names})
        return logits[0].astype(np.float32), present

    step(windows[0][:2], nothing)  # memory is taken at the first call
    begun = time.perf_counter()
    found = [step(window, nothing)[0] for window in windows]
    read, decoded = time.perf_counter(), min(32, windows.shape[1])
    past = step(windows[0], nothing)[1]
    first = time.perf_counter()
    for token in windows[0][:decoded]:
        past = step(token[None], past)[1]
    np.savez(
        out, logits=np.stack(found), version=f"onnxruntime {onnxruntime.__version__}", loading=loaded - start,
        prefill=read - begun, decode=time.perf_counter() - first, decoded=decoded,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
