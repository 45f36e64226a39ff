"""What training adds at 4, 3 and 2 bits: SmolLM2 by the protocol of the peers, in KL and in CPU-seconds.

    python benchmarks/recovery.py --model DIR --calibration TRAIN.txt --test TEST.txt [--only STEPS] [--seed 0]

DIR holds the model of benchmarks/peer_scripts/make_model.py. Calibration: windows of 512 tokens; test: 64 windows of
512 tokens, every position but the last, in float32 against the network as it was; embedding and head stay as they are.
These are the windows that the peers of benchmarks/peers.py are scored on. Each row is cumulative: a quantizer of
single layers, then the methods of recovery in their order. Seconds are of the process, statistics included, scoring
not.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import torch
from rich.console import Console
from rich.table import Table
from scoring import compared, scores
from torch import Tensor

import pennyweight as pw
from pennyweight.flow.apply import Applied, apply
from pennyweight.flow.journal import open_run
from pennyweight.flow.recover import recover
from pennyweight.network.network import Network
from pennyweight.network.running.run import materialised
from pennyweight.plan import Plan, Step

ROWS = (
    "coordinate_descent int4 g64 asym", "coordinate_descent int3 g64 asym", "coordinate_descent int2 g64 asym",
)  # fmt: skip
TRAINED = ("end_to_end",)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--calibration-windows", type=int, default=64)
    parser.add_argument("--gram-windows", type=int, default=32, help="of them shown to the quantizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=";".join(ROWS), help="steps, with a semicolon between")
    parser.add_argument("--recover", default=";".join(TRAINED), help="methods in order, with a semicolon between")
    parser.add_argument("--name", default="recovery")
    arguments = parser.parse_args()
    network = pw.load(arguments.model)
    test = pw.held_out(arguments.test, network, length=512).ids[: arguments.windows]
    calibration = pw.sample(
        arguments.calibration, network, count=arguments.calibration_windows, length=512, seed=arguments.seed
    )
    shown = replace(calibration, ids=calibration.ids[: arguments.gram_windows])  # recovery holds out the last ones
    settings = {
        "seed": arguments.seed, "windows": arguments.windows, "tokens": 512, "gram_windows": arguments.gram_windows,
        "calibration_windows": arguments.calibration_windows, "threads": torch.get_num_threads(),
    }  # fmt: skip
    steps, recovery = arguments.only.split(";"), tuple(filter(None, arguments.recover.split(";")))
    made = [(step, recovery[:count]) for step in steps for count in range(len(recovery) + 1)]
    rows = machine.kept(arguments.name, settings, lambda row: (row["step"], tuple(row["recovery"])) in made)
    with tempfile.TemporaryDirectory() as work, materialised(network, exact=False, dtype=torch.float32) as model:
        before = [scores(model, window).half() for window in test]
        start = time.process_time()
        statistics = pw.collect(network, shown, needs=frozenset({"gram"}), work=f"{work}/statistics")
        collected = time.process_time() - start
        for label in steps:
            step = Step.parse(label)
            plan = everywhere(step, network, arguments.seed)
            sites = [network.by_name[name] for name in plan.steps]
            with open_run(Path(work) / label.replace(" ", "-"), {"step": label}) as journal:
                start = time.process_time()
                applied = apply(plan, network, statistics, journal)
                spent = collected + time.process_time() - start
                for count in range(len(recovery) + 1):
                    if count:
                        start = time.process_time()
                        applied = recover(
                            replace(applied, plan=replace(plan, recovery=recovery[count - 1 : count])), statistics,
                            calibration,
                        )  # fmt: skip
                        spent += time.process_time() - start
                    bits = sum(step.stages[0].format.stored_bits(site.shape) for site in sites)
                    row = {"step": label, "recovery": list(recovery[:count]),
                           "commit": machine.facts(0)["commit"], "bits": bits / sum(site.elements for site in sites),
                           **scored(applied, model, test, before), "cpu_seconds": spent}  # fmt: skip
                    rows.append(row)
                    print(row, flush=True)
                    value = {**machine.facts(arguments.seed), "model": "SmolLM2-135M-Instruct, channels permuted"}
                    machine.write(arguments.name, {**value, **settings, "rows": rows})
    show(rows)


def everywhere(step: Step, network: Network, seed: int) -> Plan:
    """One step for every linear weight of the blocks."""
    sites = [site for site in network.sites if site.role == "linear" and site.block is not None]
    return Plan(
        steps={site.name: step for site in sites}, kept={}, engine="transformers", dtype="float16", seed=seed, bytes=0,
        damage=0.0, model=network.source.fingerprint,
    )  # fmt: skip


def scored(applied: Applied, model: torch.nn.Module, test: Tensor, before: list[Tensor]) -> dict[str, Any]:
    """Perplexity, KL and agreement with every compressed weight in place."""
    parameters, originals = dict(model.named_parameters()), dict[str, Tensor]()
    for site in applied.network.sites:
        if site.name in applied.keys:
            originals[site.parameter] = parameters[site.parameter].data
            parameters[site.parameter].data = applied.compressed(site).dequantize()
    found = compared(model, test, before)
    for name, weight in originals.items():
        parameters[name].data = weight
    return found


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(show_edge=False)
    for heading in ("step", "recovery", "bits", "perplexity", "kl", "agreement", "cpu_seconds"):
        table.add_column(heading, justify="left" if heading in ("step", "recovery") else "right")
    for row in sorted(rows, key=lambda row: (-row["bits"], -row["kl"])):
        table.add_row(
            row["step"], ", ".join(row["recovery"]), f"{row['bits']:.2f}", f"{row['perplexity']:.2f}",
            f"{row['kl']:.4f}", f"{row['agreement']:.3f}", f"{row['cpu_seconds']:.0f}",
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
