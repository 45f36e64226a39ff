"""Our files beside an engine's own of the same size: how quick, and how far from the model before.

    python benchmarks/engines.py --model DIR --calibration TRAIN.txt --test TEST.txt --python VENV/bin/python [...]

The interpreters have llama-cpp-python, and openvino with nncf; ONNX Runtime's quantizer comes with it. Layers are four
bits by GPTQ on 64 windows of calibration text, tables rounded to nearest as the engine's own quantizer would do it.
Times are those of `pennyweight bench`, all engines in turn on one thread. Losses are of logits that the engine itself
gave, against the model before in float32 by our loader.
"""

import argparse
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import numpy as np
import scoring
import torch

import pennyweight as pw
from pennyweight.export.engines import Engine, find
from pennyweight.export.probes import FOLDER
from pennyweight.flow.bench.bench import bench
from pennyweight.flow.bench.contenders import having, own
from pennyweight.flow.progress import Progress
from pennyweight.network.network import Network
from pennyweight.plan import Plan, Step

ROWS = (  # layers, tables, type of what stays dense
    ("transformers", "gptq int4 g64 sym bfloat16", "", "bfloat16"),
    ("llama.cpp", "gptq q4_0", "round_to_nearest q8_0", "float16"),
    ("onnxruntime", "gptq int4 g64 sym", "round_to_nearest int4 g64 sym", "float16"),
    ("onnxruntime-int8", "gptq int4 g64 sym", "round_to_nearest int4 g64 asym", "float16"),
    ("openvino", "gptq int4 g64 sym", "round_to_nearest int8 row sym", "float16"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--python", type=Path, nargs="+", required=True)
    parser.add_argument("--engines", default=",".join(row[0] for row in ROWS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    network = pw.load(arguments.model)
    calibration = pw.sample(arguments.calibration, network, count=64, length=256, seed=arguments.seed)
    test = pw.sample(arguments.test, network, count=arguments.windows, length=256, seed=arguments.seed).ids
    before, settings = scoring.ours(network, test), {"seed": arguments.seed, "windows": arguments.windows}
    rows = machine.kept("engines", settings, lambda row: row["for"] in arguments.engines.split(","))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        statistics = pw.collect(network, calibration, work=work / "statistics")
        for name, layers, tables, dtype in ROWS:
            if name not in arguments.engines.split(","):
                continue
            engine, out = find(name), work / name
            pw.apply(plan_of(network, name, layers, tables, dtype, arguments.seed), network, statistics, out=out)
            found = bench(
                out, engines=("pennyweight", "dense", name), pythons=arguments.python, reference=arguments.model,
                batches=[1, 8], repeats=arguments.repeats, threads=arguments.threads, progress=Progress(),
            )  # fmt: skip
            losses = {name: loss(engine, engine.files.handed(out), test, before, arguments.python)}
            if engine.own:
                python = having(engine, arguments.python)
                assert python is not None
                (work / "own").mkdir(exist_ok=True)
                kind, folder = own(network, engine, python, pw.load(out).source.stored_bytes, work / "own")
                losses[f"{name}'s own {kind}"] = loss(
                    engine, engine.files.handed(folder), test, before, arguments.python
                )
            rows.append({"for": name, "layers": layers, "tables": tables, "losses": losses, **asdict(found)})
            print(
                machine.write("engines", {**machine.facts(arguments.seed), **settings, "rows": rows}),
                name,
                losses,
                flush=True,
            )
    scoring.show([line for row in rows for line in lines(row)])


def plan_of(network: Network, engine: str, layers: str, tables: str, dtype: str, seed: int) -> Plan:
    steps = {site.name: layers if site.role == "linear" else tables for site in network.sites}
    return Plan(
        steps={name: Step.parse(step) for name, step in steps.items() if step}, kept={}, engine=engine, dtype=dtype,
        seed=seed, bytes=0, damage=0.0, model=network.source.fingerprint,
    )  # fmt: skip


def loss(engine: Engine, files: Path, test: torch.Tensor, before: torch.Tensor, pythons: list[Path]) -> float:
    """KL in nats a token of what the engine makes of files."""
    found = theirs(engine, files, test, pythons)
    assert isinstance(found, torch.Tensor), found
    return scoring.kl(before, found)


def theirs(engine: Engine, files: Path, tokens: torch.Tensor, pythons: list[Path]) -> torch.Tensor | str:
    """Logits of an engine; or the end of what it said, where it gave none."""
    with tempfile.TemporaryDirectory() as temporary:
        given, logits = Path(temporary) / "tokens.npy", Path(temporary) / "logits.npz"
        np.save(given, tokens.numpy().astype(np.int32))
        probe = [str(FOLDER / engine.probe), str(files), str(given), str(logits)]
        ended = subprocess.run([str(having(engine, pythons)), *probe], capture_output=True, text=True, check=False)
        if not logits.exists():
            return (
                "; ".join(line for line in ended.stderr.splitlines() if "Error" in line)[-300:] or ended.stderr[-300:]
            )
        with np.load(logits) as found:
            return torch.from_numpy(found["logits"])


def lines(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What there is to say of each contender."""
    found = []
    for one in row["rows"]:
        loss = row["losses"].get(one["name"])
        rates = {f"{what} {n}": round(one[what][n]["median"], 1) for what in ("prefill", "decode") for n in one[what]}
        found.append(
            {
                "files for": row["for"], "run by": one["name"], "MB": round(one["bytes"] / 1e6, 1),
                "KL": "" if loss is None else f"{loss:.4f}", "peak MB": round(one["peak"] / 1e6), **rates,
            }
        )  # fmt: skip
    return found


if __name__ == "__main__":
    main()
