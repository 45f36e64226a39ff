"""Formats and quantizers on SmolLM2: bits a weight, perplexity, KL and the same next token, one row a pair.

    python benchmarks/shelf.py --model DIR --calibration TRAIN.txt --test TEST.txt [--only "gptq int4;nf4"] [--seed 0]

DIR holds the model of benchmarks/peer_scripts/make_model.py: SmolLM2-135M-Instruct with its channels permuted, so that
rounding meets no grid its weights were rounded to before. Every linear weight of the blocks is replaced by what the
step stores, each layer by itself on the gram matrices of the float32 network; embedding and head stay. Scored on
windows of 256 tokens of the test text in float32 against the network as it was. Seconds are of the process, for the
rounding alone; the statistics are collected once and shared. Rows of an earlier run with the same settings are kept.
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
from scoring import compared, scores
from torch import Tensor, nn

import pennyweight as pw
from pennyweight import catalogue, formats
from pennyweight.network.network import Network
from pennyweight.network.running.run import materialised
from pennyweight.numerics.random import permutation, stream
from pennyweight.plan import Step
from pennyweight.statistics import Statistics

EVERYWHERE = ("round_to_nearest", "gptq")  # on all formats; other quantizers on those of few bits that they take
WIDE = (
    "rf8 row", "int8 row sym", "fp8 e4m3 row", "fp8 e5m2 row", "mxfp8 e4m3", "mxint8", "q8_0", "int6 g192 sym",
    "mxfp6 e2m3", "fp6 e3m2 g64", "q5_0", "int4 g64 sym", "nf4 g64", "mxfp4", "nvfp4", "q4_0", "iq4_nl",
    "int4 g64 progressive", "log2 4bit g64", "log-sqrt2 4bit g64", "binary3 g64", "fairy2 g64", "ternary g64",
)  # fmt: skip
FEW = (
    "int4 g64 asym", "int4 g64 affine", "fp4 e2m1 g64", "kmeans4 row", "int3 g64 asym", "int3 g64 affine",
    "vector2 64 g64", "int2 g64 asym", "int2 g64 affine", "kmeans2 row", "binary g64",
)  # fmt: skip
PARTS = (  # with a part of it left out, for `orderings.py`
    "round_to_nearest(search=False) int4 row sym", "round_to_nearest int4 row sym",
    "round_to_nearest(search=False) int4 g64 asym", "round_to_nearest(search=False) int3 g64 asym",
    "gptq(order='none') int4 g64 asym", "gptq(order='none') int3 g64 asym", "gptq(order='none') int2 g64 asym",
)  # fmt: skip


def steps() -> list[str]:
    """Every quantizer on every format it takes, so that a new one has its rows by itself; and some without a part."""
    found = list(PARTS)
    for kind in catalogue.classes("quantization"):
        labels = (*WIDE, *FEW) if kind.name in EVERYWHERE else FEW
        found += [f"{kind.name} {label}" for label in labels if isinstance(formats.parse(label), kind.takes)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--calibration-windows", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=";".join(steps()), help="steps, with a semicolon between")
    arguments = parser.parse_args()
    network = pw.load(arguments.model)
    text = pw.held_out(arguments.test, network, length=256)
    test = text.ids[torch.from_numpy(permutation(len(text), arguments.seed, "shelf")[: arguments.windows])]
    calibration = pw.sample(
        arguments.calibration, network, count=arguments.calibration_windows, length=256, seed=arguments.seed
    )
    settings = {
        "seed": arguments.seed, "windows": arguments.windows, "tokens": 256,
        "calibration_windows": arguments.calibration_windows, "threads": torch.get_num_threads(),
    }  # fmt: skip
    asked = arguments.only.split(";")
    rows = machine.kept("shelf", settings, lambda row: row["step"] in asked)
    with tempfile.TemporaryDirectory() as work, materialised(network, exact=False, dtype=torch.float32) as model:
        seen = pw.collect(network, calibration, needs=frozenset({"gram"}), work=work)
        statistics = [seen.block(index) for index in range(len(network.blocks))]
        before = [scores(model, window) for window in test]
        for label in asked:
            row = {"step": label, "commit": machine.facts(arguments.seed)["commit"]}
            rows.append(row | measured(label, network, model, statistics, test, before, arguments.seed))
            print(rows[-1], flush=True)
            value = {**machine.facts(arguments.seed), "model": "SmolLM2-135M-Instruct, channels permuted", **settings}
            machine.write("shelf", {**value, "rows": rows})  # after each: a row takes minutes
    show(rows)


def measured(
    label: str, network: Network, model: nn.Module, statistics: list[dict[str, Statistics]], test: Tensor,
    before: list[Tensor], seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Round, score, and put the weights back."""
    (stage,) = Step.parse(label).stages
    method = catalogue.find(stage.method, "quantization")
    parameters, originals = dict(model.named_parameters()), dict[str, Tensor]()
    bits = elements = 0
    start = time.process_time()
    for site in network.sites:
        if site.role != "linear" or site.block is None:
            continue
        weight = parameters[site.parameter].data
        generator = stream(seed, site.name, stage.method)
        result = method.compress(weight, statistics[site.block][site.reads], stage.format, generator=generator)
        originals[site.parameter], parameters[site.parameter].data = weight, result.dequantize()
        bits, elements = bits + result.bits, elements + site.elements
    seconds = time.process_time() - start
    found = compared(model, test, before)
    for name, weight in originals.items():
        parameters[name].data = weight
    return {"bits": bits / elements, **found, "cpu_seconds": seconds}


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(show_edge=False)
    for heading in ("step", "bits", "perplexity", "kl", "agreement", "cpu_seconds"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for row in sorted(rows, key=lambda row: (-row["bits"], row["kl"])):
        table.add_row(
            row["step"], f"{row['bits']:.2f}", f"{row['perplexity']:.2f}", f"{row['kl']:.4f}",
            f"{row['agreement']:.3f}", f"{row['cpu_seconds']:.0f}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
