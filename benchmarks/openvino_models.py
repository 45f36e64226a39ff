"""What we write for OpenVINO, run by OpenVINO: its logits beside those of our loader, its speed and its memory.

    python benchmarks/openvino_models.py --model DIR [--text TEXT] [--windows 4] [--seed 0] [--nncf FOLDER]

Every linear weight is rounded to nearest, without a search, in the grid of the row; `table` says what embedding and
head are, which are one tensor. `settings` are `exact`, those of the probe (float32, no activations rounded, keys and
values in float32), or `default`, what OpenVINO does of its own accord; `ended_with` is the code of a process that did
not end well. `kl` is what the engine's arithmetic costs (our loader on the same file), where the last quarter of a
window reads keys and values from the state; `kl_of_weights` what storing the weights costs (our loader, against the
model before), `kl_of_both` the engine against the model before, nats a token. `--nncf` is where that package is
installed: its own rounding to nearest of our float32 model, groups of 64. Tokens a second are of one thread, by the
seconds that the processor worked on it.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from scoring import kl, ours, show
from torch import Tensor

import pennyweight as pw
from pennyweight import formats
from pennyweight.export.openvino.write import XML, write
from pennyweight.export.probes import FOLDER
from pennyweight.formats import Compressed
from pennyweight.network.network import Network, Site

ROWS = (
    ("float16", "float16"), ("int4 g64 sym", "int8 row sym"), ("int4 g64 asym", "int8 row sym"),
    ("int4 g32 sym", "int4 g32 asym"), ("int8 row sym", "int8 row sym"), ("int2 g32 asym", "int8 row sym"),
)  # fmt: skip
SETTINGS = ("exact", "default")
# Seconds of the one thread, which do not depend on what else the machine does, and the most memory the process took,
# which the operating system counts anew when a program begins. The last quarter of a window reads the state of the
# first three, as writing does.
ENGINE = """
import runpy, sys, time
import numpy as np
probe, path, tokens, out, settings = sys.argv[1:]
known = runpy.run_path(probe)
start = time.process_time()
decoder = known["Decoder"](path, {"INFERENCE_NUM_THREADS": "1", **(known["EXACT"] if settings == "exact" else {})})
windows = np.load(tokens)
decoder.logits(windows[:1, :2])
loaded, found, split = time.process_time(), [], windows.shape[1] * 3 // 4
for window in windows[:, None]:
    decoder.forget()
    found.append(np.concatenate([decoder.logits(part)[0].copy() for part in (window[:, :split], window[:, split:])]))
read = time.process_time()
for token in windows[0, :32]:
    decoder.logits(token.reshape(1, 1))
written = time.process_time() - read
facts = {"loading": loaded - start, "prefill": windows.size / (read - loaded), "decode": 32 / written}
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
np.savez(out, logits=np.stack(found), peak_mb=int(peak) / 1024, **facts)
"""
NNCF = """
import sys
sys.path.append(sys.argv[4])
import nncf, openvino
model = openvino.Core().read_model(sys.argv[1])
mode = getattr(nncf.CompressWeightsMode, sys.argv[3])
small = {} if "INT8" in sys.argv[3] else {"ratio": 1.0, "group_size": 64}
openvino.save_model(nncf.compress_weights(model, mode=mode, **small), sys.argv[2], compress_to_fp16=False)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nncf", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = pw.load(arguments.model)
    tokens = pw.sample(
        arguments.text, network, count=arguments.windows, length=arguments.length, seed=arguments.seed
    ).ids
    before = ours(network, tokens)
    settings = {"model": network.source.fingerprint, "windows": arguments.windows, "length": arguments.length}
    rows = machine.kept("openvino_models", settings, lambda _row: False)

    def add(told: dict[str, Any], path: Path, mine: Tensor | None) -> None:
        for name in SETTINGS:
            rows.append({**told, "settings": name, **figures(path, tokens, before, mine, name)})
            machine.write("openvino_models", {**machine.facts(arguments.seed), **settings, "rows": rows})
            print(rows[-1], flush=True)

    def missing(told: dict[str, Any]) -> bool:
        return all(any(row[key] != value for key, value in told.items()) for row in rows)

    with tempfile.TemporaryDirectory() as temporary:
        for grid, table in ROWS:
            told, out = {"weights": grid, "table": table}, Path(temporary) / "ours"
            if missing(told):
                store(network, grid, table, "float16", out)
                add(told, out / XML, ours(pw.load(out), tokens))
                shutil.rmtree(out)
        for mode in ("INT4_SYM", "INT4_ASYM", "INT8_SYM") if arguments.nncf else ():
            told, dense = {"weights": f"nncf {mode}", "table": "nncf's"}, Path(temporary) / "dense"
            if missing(told):
                if not dense.exists():
                    store(network, "float32", "float32", "float32", dense)
                small = dense / f"{mode}.xml"
                given = [str(dense / XML), str(small), mode, str(arguments.nncf)]
                subprocess.run([sys.executable, "-c", NNCF, *given], check=True, capture_output=True)
                add(told, small, None)
    show(rows)


def store(network: Network, grid: str, table: str, dtype: str, out: Path) -> None:
    """Write the model in one grid."""
    words = {"linear": grid, "embedding": table, "head": table}
    found = {site.name: formats.parse(words[site.role]) for site in network.sites if site.role in words}

    def compressed(site: Site) -> Compressed:
        weight = network.source.read(network.stored_name(site.parameter)).float()
        return Compressed((found[site.name].store(weight, search=False),), site.shape)

    write(network, found, compressed, out, dtype=dtype).reconcile()


def figures(path: Path, tokens: Tensor, before: Tensor, mine: Tensor | None, settings: str) -> dict[str, Any]:
    """Bytes, KL, speed and memory of a model in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        given, out = Path(temporary) / "tokens.npy", Path(temporary) / "logits.npz"
        np.save(given, tokens.numpy())
        command = [sys.executable, "-c", ENGINE, str(FOLDER / "openvino.py"), str(path), str(given), str(out), settings]
        ended = subprocess.run(command, check=False, capture_output=True)
        size = sum(file.stat().st_size for file in (path, path.with_suffix(".bin")))
        if ended.returncode:
            return {"bytes": size, "ended_with": ended.returncode}
        found = np.load(out)
        logits = torch.from_numpy(found["logits"])
        facts = {name: float(found[name]) for name in ("prefill", "decode", "loading", "peak_mb")}
    costs = {} if mine is None else {"kl": kl(mine, logits), "kl_of_weights": kl(before, mine)}
    return {"bytes": size, **costs, "kl_of_both": kl(before, logits), **facts}


if __name__ == "__main__":
    main()
