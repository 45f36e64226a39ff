"""Log-probabilities of llama.cpp for given tokens.   llama_logits.py MODEL.gguf TOKENS.npy OUT.npz"""

import sys

import llama_cpp
import numpy as np

path, tokens, out = sys.argv[1:]
windows = np.load(tokens)
FLOAT32 = 0  # keys and values are kept in float16 otherwise
model = llama_cpp.Llama(
    path, n_ctx=windows.shape[1], n_batch=windows.shape[1], n_threads=1, logits_all=True, verbose=False,
    type_k=FLOAT32, type_v=FLOAT32,
)  # fmt: skip
found = []
for window in windows:
    model.reset()
    model.eval([int(token) for token in window])
    found.append(np.array(model.scores[: len(window)], dtype=np.float32))
np.savez(out, logits=np.stack(found), version=llama_cpp.__version__)
