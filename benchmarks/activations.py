"""How activations are rounded, on SmolLM2: KL and perplexity of W8A8, W4A8, W6A6 and W4A4, one row a way.

    python benchmarks/activations.py --model DIR --calibration TRAIN.txt --test TEST.txt [--only "w8a8 dynamic;..."]

DIR holds the model of benchmarks/peer_scripts/make_model.py: SmolLM2-135M-Instruct with its channels permuted. Weights
of all linear layers of the blocks are rounded to nearest, with a searched range (FP8 keeps the whole), and what they
read as the row's `input` says (`down` where down projections get another one). Both are multiplied as floats, which is
what integers give (tests/unit/test_integer.py). Embedding, head, attention and norms stay as they are. Scored on
windows of 256 tokens of the test text in float32 against the network as it was. Ranges come from windows of the
calibration text; rows whose weights are rewritten first say so. Rows of an earlier run with the same settings are kept.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import torch
from rich.console import Console
from rich.table import Table
from scoring import compared, scores
from torch import Tensor, nn

from pennyweight import catalogue, formats
from pennyweight.flow.activations import quantizers
from pennyweight.flow.observe import observe
from pennyweight.flow.rewrite import rewrite
from pennyweight.flow.steps import held_out, sample
from pennyweight.network.finding.trace import load_network
from pennyweight.network.network import Network, Site
from pennyweight.network.running.activations import activations
from pennyweight.network.running.run import materialised
from pennyweight.network.sources.opening import open_source
from pennyweight.numerics.random import permutation, stream
from pennyweight.plan import Input
from pennyweight.statistics import Statistics

PERCENTILE = "static_percentile(percentile=99.999)"
WAYS: dict[str, dict[str, str]] = {
    "w8": {"weight": "int8 row sym"},
    "w8a8 dynamic": {"weight": "int8 row sym", "input": "int8 token"},
    "w8a8 dynamic asym": {"weight": "int8 row sym", "input": "int8 token asym"},
    "w8a8 static range": {"weight": "int8 row sym", "input": "int8 tensor"},
    "w8a8 static range asym": {"weight": "int8 row sym", "input": "int8 tensor asym"},
    "w8a8 static 99.99": {"weight": "int8 row sym", "input": "static_percentile int8 tensor"},
    "w8a8 static 99.999": {"weight": "int8 row sym", "input": f"{PERCENTILE} int8 tensor"},
    "w8a8 static mse": {"weight": "int8 row sym", "input": "static_mse int8 tensor"},
    "w8a8 static entropy": {"weight": "int8 row sym", "input": "static_entropy int8 tensor"},
    "w8a8 smoothquant, static range": {
        "weight": "int8 row sym", "input": "int8 tensor", "rewrite": "smoothquant(norms_only=False)",
    },
    "w8a8 smoothquant, dynamic": {
        "weight": "int8 row sym", "input": "int8 token", "rewrite": "smoothquant(norms_only=False)",
    },
    "w8a8 static range, noisy text": {
        "weight": "int8 row sym", "input": "int8 tensor", "calibration": "token_noise(share=1.0, tokens=0.2)",
    },
    "w8a8 static range, down dynamic": {"weight": "int8 row sym", "input": "int8 tensor", "down": "int8 token"},
    "fp8": {"weight": "fp8 e4m3 row"},
    "fp8 dynamic": {"weight": "fp8 e4m3 row", "input": "fp8 e4m3 token"},
    "fp8 static range": {"weight": "fp8 e4m3 row", "input": "fp8 e4m3 tensor"},
    "fp8 e5m2 inputs dynamic": {"weight": "fp8 e4m3 row", "input": "fp8 e5m2 token"},
    "w4": {"weight": "int4 g64 asym"},
    "w4a8": {"weight": "int4 g64 asym", "input": "int8 token"},
    "w4a8 progressive": {"weight": "int4 g64 progressive", "input": "int8 token"},
    "w4a8 rows": {"weight": "int4 row asym", "input": "int8 token"},
    "w6a6": {"weight": "int6 g64 sym", "input": "int6 g64"},
    "w6a6, down a8": {"weight": "int6 g64 sym", "input": "int6 g64", "down": "int8 g64"},
    "w6a6 token": {"weight": "int6 g64 sym", "input": "int6 token"},
    "w6a6 token, down a8": {"weight": "int6 g64 sym", "input": "int6 token", "down": "int8 token"},
    "w4a4": {"weight": "int4 g64 asym", "input": "int4 g64"},
    "w4a4 token": {"weight": "int4 g64 asym", "input": "int4 token"},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--calibration-windows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=";".join(WAYS), help="names of rows, with a semicolon between")
    arguments = parser.parse_args()
    network = load_network(open_source(arguments.model))
    text = held_out(arguments.test, network, length=256)
    test = text.ids[torch.from_numpy(permutation(len(text), arguments.seed, "activations")[: arguments.windows])]
    calibration = sample(
        arguments.calibration, network, count=arguments.calibration_windows, length=256, seed=arguments.seed
    )
    settings = {
        "seed": arguments.seed, "windows": arguments.windows, "tokens": 256,
        "calibration_windows": arguments.calibration_windows, "threads": torch.get_num_threads(),
    }  # fmt: skip
    names = arguments.only.split(";")
    rows = machine.kept("activations", settings, lambda row: row["way"] in names)
    with materialised(network, exact=False, dtype=torch.float32) as model:
        before = [scores(model, window) for window in test]
    grounds = {name: (WAYS[name].get("rewrite", ""), WAYS[name].get("calibration", "")) for name in names}
    for rewriting, degraded in dict.fromkeys(grounds.values()):
        shown = calibration
        if degraded:
            method, generator = catalogue.find(degraded, "calibration"), stream(arguments.seed, "calibration")
            shown = replace(calibration, ids=method.degrade(calibration.ids, generator=generator))
        chosen, _ = rewrite(network, [rewriting] if rewriting else [], calibration=calibration, seed=arguments.seed)
        seen = observe(chosen, shown)
        here = [name for name in names if grounds[name] == (rewriting, degraded)]
        for weight in dict.fromkeys(WAYS[name]["weight"] for name in here):
            with materialised(chosen, exact=False, dtype=torch.float32) as model:
                round_weights(chosen, model, weight)
                for name in [name for name in here if WAYS[name]["weight"] == weight]:
                    row = {"way": name, **WAYS[name], "commit": machine.facts(arguments.seed)["commit"]}
                    rows.append(row | measured(WAYS[name], chosen, model, seen, test, before))
                    print(rows[-1], flush=True)
                    value = {**machine.facts(arguments.seed), "model": "SmolLM2-135M-Instruct, channels permuted"}
                    machine.write("activations", {**value, **settings, "rows": rows})  # after each
    show(rows)


def sites_of(network: Network) -> list[Site]:
    return [site for site in network.sites if site.role == "linear" and site.block is not None]


def round_weights(network: Network, model: nn.Module, label: str) -> None:
    """Every linear weight of the blocks becomes what a format stores; floats of eight bits keep their whole range."""
    format, parameters = formats.parse(label), dict(model.named_parameters())
    for site in sites_of(network):
        parameter = parameters[site.parameter]
        part = format.store(parameter.data, search=not label.startswith("fp8"))
        parameter.data = format.decode(part.tensors, tuple(parameter.shape))


def measured(
    way: Mapping[str, str], network: Network, model: nn.Module, seen: Mapping[str, Statistics], test: Tensor,
    before: list[Tensor],
) -> dict[str, float]:  # fmt: skip
    """Score the network under one way of rounding."""
    sites = [site.name for site in sites_of(network)]
    inputs = {site: way["input"] for site in sites if "input" in way}
    if "down" in way:
        inputs |= {site: way["down"] for site in sites if site.endswith("down_proj")}
    fitted = quantizers({site: Input.parse(label) for site, label in inputs.items()}, seen)
    with activations(model, fitted):
        return compared(model, test, before)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(show_edge=False)
    for heading in ("way", "weight", "input", "down", "perplexity", "kl", "agreement"):
        table.add_column(heading, justify="left" if heading in ("way", "weight", "input", "down") else "right")
    for row in sorted(rows, key=lambda row: row["kl"]):
        table.add_row(
            row["way"], row["weight"], row.get("input", ""), row.get("down", ""), f"{row['perplexity']:.2f}",
            f"{row['kl']:.4f}", f"{row['agreement']:.3f}",
        )  # fmt: skip
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
