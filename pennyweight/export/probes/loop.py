"""Time an engine as asked, a line at a time: `python loop.py PROBE MODEL OPTIONS`.

PROBE is a program of this folder or another with `timed(model, options)`, which gives `version`, `prefill(ids)` for
token ids `[batch, length]` from nothing, and `step(ids)` for one more token `[batch]`; both return when it is done.
OPTIONS is JSON. Every line on stdin asks `{"batch", "prompt", "written"}`, and one on stdout answers with seconds.
Who asks can so take turns between engines that are all in memory. Other lines on stdout are an engine's own.
"""

import json
import resource
import runpy
import sys
import time
from pathlib import Path

if str(Path(__file__).resolve().parent) == sys.path[0]:
    sys.path.pop(0)

import numpy as np

MARK = "pennyweight "


def main(probe: str, model: str, options: str) -> None:
    """Load, then answer."""
    given, start = json.loads(options), time.perf_counter()
    engine = runpy.run_path(probe)["timed"](model, given)
    answer({"loading": time.perf_counter() - start, "version": engine.version})
    random = np.random.default_rng(0)
    for line in sys.stdin:
        asked = json.loads(line)
        ids = random.integers(0, given["vocabulary"], (asked["batch"], asked["prompt"] + asked["written"]))
        try:
            start = time.perf_counter()
            engine.prefill(ids[:, : asked["prompt"]])
            read = time.perf_counter()
            for place in range(asked["prompt"], ids.shape[1]):
                engine.step(ids[:, place])
            answer({"prefill": read - start, "decode": time.perf_counter() - read})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


def answer(value: dict[str, object]) -> None:
    """One line, with the most memory so far."""
    print(f"{MARK}{json.dumps({**value, 'peak': peak()})}", flush=True)  # noqa: T201


def peak() -> int:
    """Most resident memory of this process, bytes; getrusage begins at that of the process that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * next(int(s.split()[1]) for s in status.read_text().splitlines() if s.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
