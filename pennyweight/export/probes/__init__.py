"""Small programs that an engine's own interpreter runs on our files: `python probe.py MODEL TOKENS.npy OUT.npz`.

A probe imports the engine, numpy and nothing of Pennyweight. It writes `logits` `[windows, length, vocabulary]` in
float32, `version`, and seconds: `loading`, `prefill` of all windows, and `decode` of `decoded` tokens one at a time.
Each also has `timed`, by which `loop.py` measures it in turn with other engines.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LOOP = FOLDER / "loop.py"
