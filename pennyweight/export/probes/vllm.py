"""What vLLM makes of tokens, on the CPU or on whatever its build is for."""

import os
import sys
import time
from pathlib import Path
from typing import Any

# Not this folder, where a file has the name of the engine's package.
if str(Path(__file__).resolve().parent) == sys.path[0]:
    sys.path.pop(0)
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model runs in this process, where its logits can be seen
    "VLLM_CPU_INT4_W4A8": "0",  # where the processor has AMX it would round activations beside weights of four bits
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING",
}  # fmt: skip
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import numpy as np
import vllm

VERSION = f"vllm {vllm.__version__}"


class Runner:
    """An engine whose model tells every logit that it computes."""

    def __init__(self, path: str, length: int, texts: int, **options: Any) -> None:
        self.engine = vllm.LLM(
            path, skip_tokenizer_init=True, max_model_len=length, max_num_seqs=texts, enforce_eager=True,
            enable_prefix_caching=False, seed=0, max_num_batched_tokens=max(2048, length * texts), **options,
        )  # fmt: skip

    def written(self, ids: Any, count: int, **wanted: Any) -> Any:
        """Let it write so many tokens after some texts."""
        settings = vllm.SamplingParams(
            temperature=0.0, max_tokens=count, min_tokens=count, ignore_eos=True, detokenize=False, **wanted
        )
        return self.engine.generate([{"prompt_token_ids": row} for row in ids.tolist()], settings, use_tqdm=False)


def main(path: str, tokens: str, out: str) -> None:
    """Load, read every window, then write a few tokens after the first."""
    windows, start = np.load(tokens), time.perf_counter()
    decoded = min(32, windows.shape[1])
    runner = Runner(path, windows.shape[1] + decoded + 1, 1, dtype="auto")
    loaded, seen = time.perf_counter(), []

    def record(model: Any) -> None:
        compute = model.compute_logits

        def computed(*args: Any, **kwargs: Any) -> Any:
            logits = compute(*args, **kwargs)
            seen.append(logits.detach().float().cpu().numpy().copy())
            return logits

        model.compute_logits = computed

    runner.engine.apply_model(record)
    found = []
    for window in windows:
        seen.clear()
        runner.written(window[None], 1, prompt_logprobs=1)  # asks for the logits of every position
        rows = sorted(seen, key=len, reverse=True)
        found.append(np.concatenate([rows[0], rows[1]])[: len(window)])
    read = time.perf_counter()
    runner.written(windows[:1], decoded)
    np.savez(
        out, logits=np.stack(found), version=VERSION, loading=loaded - start, prefill=read - loaded,
        decode=time.perf_counter() - read, decoded=decoded,
    )  # fmt: skip


class Timed:
    """The engine as it is served: every step writes one more token of each text, whichever it thinks likeliest."""

    version = VERSION

    def __init__(self, path: str, batch: int, length: int, threads: int) -> None:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
        self.engine = Runner(path, length + 1, batch).engine.llm_engine
        self.asked, self.running = 0, list[str]()

    def prefill(self, ids: Any) -> None:
        """Read a batch of prompts."""
        self.engine.abort_request(self.running)
        self.running = [str(self.asked + place) for place in range(len(ids))]
        self.asked += len(ids)
        settings = vllm.SamplingParams(temperature=0.0, max_tokens=1 << 20, ignore_eos=True, detokenize=False)
        for name, row in zip(self.running, ids.tolist(), strict=True):
            self.engine.add_request(name, {"prompt_token_ids": row}, settings)
        written = dict.fromkeys(self.running, 0)
        while not all(written.values()):
            for output in self.engine.step():
                written[output.request_id] = len(output.outputs[0].token_ids)

    def step(self, ids: Any) -> None:
        """Write one more token of each."""
        del ids
        self.engine.step()


def timed(path: str, options: dict[str, int]) -> Timed:
    """See `loop.py`."""
    return Timed(path, options["batch"], options["length"], options["threads"])


if __name__ == "__main__":
    main(*sys.argv[1:])
