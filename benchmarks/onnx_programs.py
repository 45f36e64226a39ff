"""What we write for onnxruntime, run by onnxruntime: its logits beside those of our loader, its speed and its memory.

    python benchmarks/onnx_programs.py --model DIR [--text TEXT] [--windows 4] [--seed 0]

Every linear weight is rounded to nearest, without a search, in the grid of the row; `table` says what embedding and
head are. `level` is the accuracy that MatMulNBits is asked for: 1 multiplies floats, 4 rounds activations to 8 bits.
`kl` is what the engine's arithmetic costs (our loader on the same file), `kl_of_weights` what storing the weights
costs (our loader, against the model before), `kl_of_both` the engine against the model before, nats a token. The rows
`MatMulNBitsQuantizer` are onnxruntime's own quantizer on our float32 program. Tokens a second are of one thread, by
the seconds that the processor worked on it.
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
from pennyweight.export.onnx.write import NAME, write
from pennyweight.export.probes import FOLDER
from pennyweight.formats import Compressed
from pennyweight.network.network import Network, Site

ROWS = (
    ("float32", "", "float32", 1), ("float16", "", "float16", 1),
    ("int4 g32 sym", "", "float16", 1), ("int4 g32 sym", "int4 g32 asym", "float16", 1),
    ("int4 g64 asym", "int4 g32 asym", "float16", 1), ("int8 g64 sym", "", "float16", 1),
    ("int4 g32 sym", "int4 g32 asym", "float16", 4), ("int4 g64 asym", "int8 g32 sym", "float16", 4),
    ("int8 g64 sym", "int8 g32 sym", "float16", 4), ("int2 g32 asym", "int8 g32 sym", "float16", 4),
)  # fmt: skip
THEIRS = "MatMulNBitsQuantizer, 4 bits, blocks of 32"
# The memory a process took at most, which the operating system counts anew when a program begins; and seconds of its
# one thread, which do not depend on what else the machine does.
PEAK = """
import runpy, sys, time
sys.argv, time.perf_counter = sys.argv[1:], time.process_time
runpy.run_path(sys.argv[0], run_name="__main__")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = pw.load(arguments.model)
    tokens = pw.sample(
        arguments.text, network, count=arguments.windows, length=arguments.length, seed=arguments.seed
    ).ids
    before = ours(network, tokens)
    settings = {"model": network.source.fingerprint, "windows": arguments.windows, "length": arguments.length}
    rows = machine.kept("onnx_programs", settings, lambda _row: False)

    def add(told: dict[str, Any], path: Path, mine: Tensor | None) -> None:
        rows.append({**told, **figures(path, tokens, before, mine)})
        machine.write("onnx_programs", {**machine.facts(arguments.seed), **settings, "rows": rows})
        print(rows[-1], flush=True)

    def missing(told: dict[str, Any]) -> bool:
        return all(any(row[key] != value for key, value in told.items()) for row in rows)

    with tempfile.TemporaryDirectory() as temporary:
        for grid, table, dtype, level in ROWS:
            told, out = {"weights": grid, "table": table or dtype, "level": level}, Path(temporary) / "ours"
            if missing(told):
                store(network, grid, table, dtype, level, out)
                add(told, out / NAME, ours(pw.load(out), tokens))
                shutil.rmtree(out)
        for level in (1, 4):
            told = {"weights": THEIRS, "table": "float32", "level": level}
            if missing(told):
                dense = Path(temporary) / "theirs"
                if not dense.exists():
                    store(network, "float32", "", "float32", 1, dense)
                add(told, theirs(dense, level), None)
    show(rows)


def store(network: Network, grid: str, table: str, dtype: str, level: int, out: Path) -> None:
    """Write the model in one grid."""
    words = {"linear": grid, "embedding": table, "head": table}
    found = {site.name: formats.parse(words.get(site.role, "")) for site in network.sites if words.get(site.role)}
    chosen = {name: format for name, format in found.items() if grid not in ("float32", "float16")}

    def compressed(site: Site) -> Compressed:
        weight = network.source.read(network.stored_name(site.parameter)).float()
        return Compressed((chosen[site.name].store(weight, search=False),), site.shape)

    write(network, chosen, compressed, out, dtype=dtype, level=level).reconcile()


def figures(path: Path, tokens: Tensor, before: Tensor, mine: Tensor | None) -> dict[str, Any]:
    """Bytes, KL, speed and memory of a program in a process of its own."""
    logits, facts = engine(path, tokens)
    kept = [path, path.with_name(f"{path.name}.data")]
    costs = {} if mine is None else {"kl": kl(mine, logits), "kl_of_weights": kl(before, mine)}
    return {"bytes": sum(file.stat().st_size for file in kept), **costs, "kl_of_both": kl(before, logits), **facts}


def engine(path: Path, tokens: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Logits, and tokens a second, seconds of loading and megabytes at most."""
    with tempfile.TemporaryDirectory() as temporary:
        given, out = Path(temporary) / "tokens.npy", Path(temporary) / "logits.npz"
        np.save(given, tokens.numpy())
        command = [sys.executable, "-c", PEAK, str(FOLDER / "onnxruntime.py"), str(path), str(given), str(out), "1"]
        peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        found = np.load(out)
        return torch.from_numpy(found["logits"]), {
            "prefill": tokens.numel() / float(found["prefill"]),
            "decode": float(found["decoded"] / found["decode"]), "loading": float(found["loading"]),
            "peak_mb": int(peak[-2]) / 1024,
        }  # fmt: skip


def theirs(dense: Path, level: int) -> Path:
    """The float32 program with its weights folded into products, rounded by onnxruntime's quantizer."""
    import onnxruntime
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    options, out = onnxruntime.SessionOptions(), dense / f"level{level}.onnx"
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(dense / "folded.onnx")
    onnxruntime.InferenceSession(str(dense / NAME), options, providers=["CPUExecutionProvider"])
    quantizer = MatMulNBitsQuantizer(
        str(dense / "folded.onnx"), bits=4, block_size=32, is_symmetric=True, accuracy_level=level
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), True)
    return out


if __name__ == "__main__":
    main()
