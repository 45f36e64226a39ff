"""What `predict` says against what `compress` ends with: size, KL, minutes and memory, on one model at several widths.

    python benchmarks/prediction.py --model DIR --calibration TRAIN.txt [--bits 2.5,3,3.5,4,5] [--seed 0]

DIR holds the model of benchmarks/peer_scripts/make_model.py. The plan predicted is the one that is carried out, with
the calibration windows that compress shows its methods; measured is what the summary of its artifact says, on windows
that neither saw. `inside` says whether the measured KL is in the predicted interval.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import torch
from rich.console import Console
from rich.table import Table

import pennyweight as pw


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--bits", default="2.5,3,3.5,4,5")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings = pw.Settings(seed=arguments.seed, certification_windows=32)
    rows: list[dict[str, Any]] = []
    for bits in map(float, arguments.bits.split(",")):
        budget = pw.Budget(metric="bits", at_most=bits, unit="bits per weight")
        start = time.monotonic()
        told = pw.predict(arguments.model, budget, calibration=arguments.calibration, settings=settings)
        predicting = time.monotonic() - start
        with tempfile.TemporaryDirectory() as work:
            start = time.monotonic()
            outcome = pw.compress(
                arguments.model, Path(work) / "small", budget=budget, plan=told.plan,
                calibration=arguments.calibration, settings=settings,
            )  # fmt: skip
            minutes = (time.monotonic() - start) / 60
            summary = outcome.summary
        rows.append(
            {
                "bits": bits, "sum_of_damages": told.plan.damage, "factor": told.factor, "kl": told.kl,
                "low": told.low, "high": told.high, "measured_kl": summary["kl"],
                "inside": told.low <= summary["kl"] <= told.high, "bytes": told.bytes,
                "measured_bytes": summary["bytes_after"], "minutes": told.minutes, "measured_minutes": minutes,
                "predicting_seconds": predicting,
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
        value = {**machine.facts(arguments.seed), "model": "SmolLM2-135M-Instruct, channels permuted"}
        machine.write("prediction", {**value, "threads": torch.get_num_threads(), "rows": rows})
    table = Table(show_edge=False)
    for heading in ("bits", "sum of damages", "factor", "predicted KL", "measured", "bytes", "measured", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row['bits']:g}", f"{row['sum_of_damages']:.4f}", f"{row['factor']:.2f}",
            f"{row['kl']:.4f} ({row['low']:.3f} to {row['high']:.3f})", f"{row['measured_kl']:.4f}",
            f"{row['bytes']}", f"{row['measured_bytes']}", f"{row['predicting_seconds']:.0f}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
