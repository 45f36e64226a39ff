"""What exact rewrites are worth when everything is rounded: SmolLM2 at W8A8, W4A4 and W4A16, with and without each.

    python benchmarks/rewrites.py --model DIR --calibration TRAIN.txt --test TEST.txt [--windows 24] [--seed 0]

DIR holds the model of benchmarks/peer_scripts/make_model.py. Every row is one way of rewriting the network, each exact
by itself (the column `change` is its own float64 probe), followed by plain rounding and nothing else:

    w8a8          weights one scale an output, inputs one scale a token
    w8a8_static   weights one scale an output, inputs one scale a layer, from the calibration text
    w4a4          as w8a8 with 4 bits; w4a4_r4 with the online rotation of what down projections read besides
    w4            weights alone, groups of 64, to their range

Embedding and head stay as they are. Perplexity is that of windows of 256 tokens of the test text, in float32.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pennyweight.flow.activations import quantizers
from pennyweight.flow.observe import observe
from pennyweight.flow.rewrite import rewrite
from pennyweight.flow.steps import held_out, sample
from pennyweight.formats import Grid
from pennyweight.network.finding.trace import load_network
from pennyweight.network.network import Network
from pennyweight.network.running.activations import activations
from pennyweight.network.running.run import materialised
from pennyweight.network.sources.opening import open_source
from pennyweight.numerics.hadamard import transform
from pennyweight.numerics.random import permutation
from pennyweight.plan import Input
from pennyweight.statistics import Statistics

WAYS = {
    "none": [], "smoothquant": ["smoothquant"], "smoothquant(alpha=0.8)": ["smoothquant(alpha=0.8)"],
    "smoothquant+": ["smoothquant+"], "outlier_suppression_plus": ["outlier_suppression_plus"],
    "awq_scales": ["awq_scales"], "cross_layer_equalization": ["cross_layer_equalization"],
    "learned_scale": ["learned_scale"], "fold_norms": ["untie", "fold_norms"],
    "random_rotation": ["untie", "random_rotation"],
    "hadamard": ["untie", "hadamard"], "learned_rotation": ["untie", "learned_rotation"],
    "smoothquant, hadamard": ["smoothquant", "untie", "hadamard"],
    "hadamard, learned_scale": ["untie", "hadamard", "learned_scale"],
}  # fmt: skip
TABLE = [name for name in WAYS if "learned" not in name and "alpha" not in name]  # learning takes hours on two cores
Round = Callable[[str, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--calibration-windows", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", default=";".join(TABLE), help="names, with a semicolon between")
    arguments = parser.parse_args()
    network = load_network(open_source(arguments.model))
    calibration = sample(
        arguments.calibration, network, count=arguments.calibration_windows, length=256, seed=arguments.seed
    )
    text = held_out(arguments.test, network, length=256)
    chosen = torch.from_numpy(permutation(len(text), arguments.seed, "rewrites")[: arguments.windows])
    test = text.ids[chosen]
    names = arguments.ways.split(";")
    settings = {
        "seed": arguments.seed, "windows": arguments.windows, "tokens": 256,
        "calibration_windows": arguments.calibration_windows, "threads": torch.get_num_threads(),
    }  # fmt: skip
    rows = machine.kept("rewrites", settings, lambda row: row["rewrite"] in names)
    for name in names:
        start = time.monotonic()
        rewritten, steps = rewrite(network, WAYS[name], calibration=calibration, seed=arguments.seed)
        seconds = time.monotonic() - start
        seen = observe(rewritten, calibration)
        row = {"rewrite": name, "change": max((step.change for step in steps), default=0.0), "seconds": seconds}
        rows.append(row | perplexities(rewritten, test, seen))
        print(row["rewrite"], rows[-1], flush=True)
        value = {
            **machine.facts(arguments.seed), "model": "SmolLM2-135M-Instruct, channels permuted", **settings,
            "rows": rows,
        }  # fmt: skip
        machine.write("rewrites", value)
    show(rows)


def perplexities(network: Network, test: Tensor, seen: dict[str, Statistics]) -> dict[str, float]:
    """Perplexity of the network as it is, and under every way of rounding."""
    sites = [site.name for site in network.sites if site.role == "linear"]
    token, tensor, token_of_4 = (
        quantizers(dict.fromkeys(sites, Input.parse(label)), seen)
        for label in ("int8 token", "int8 tensor", "int4 token")
    )
    turned = {name: transform for name in sites if name.endswith("down_proj")}
    row_of_8, row_of_4 = Grid(bits=8, group_size=None, symmetric=True), Grid(bits=4, group_size=None, symmetric=True)
    unrounded = dict.fromkeys(sites, AsItIs())
    ways: dict[str, tuple[dict[str, Any], dict[str, Any], Round]] = {
        "w8a8": ({}, token, on(row_of_8)),
        "w8a8_static": ({}, tensor, on(row_of_8)),
        "w4a4": ({}, token_of_4, on(row_of_4)),
        "w4a4_r4": (turned, token_of_4, on(row_of_4)),
        "w4": ({}, unrounded, on(Grid(bits=4, group_size=64, symmetric=False))),
    }
    with materialised(network, exact=False, dtype=torch.float32) as model:
        found = {"float32": perplexity(model, test)}
        for name, (rotations, inputs, weights) in ways.items():
            with activations(model, inputs, rotations=rotations, round_weights=weights):
                found[name] = perplexity(model, test)
    return found


class AsItIs:
    """An input that stays as it is where the weight alone is rounded."""

    def rounded(self, x: Tensor) -> Tensor:
        return x


def on(grid: Grid) -> Round:
    def round_weight(_: str, weight: Tensor) -> Tensor:
        scales = grid.fit(weight, search=False)
        return grid.decode(scales.part(scales.round(weight)).tensors, tuple(weight.shape))

    return round_weight


@torch.no_grad()
def perplexity(model: nn.Module, ids: Tensor) -> float:
    total, count = 0.0, 0
    for batch in ids.split(4):
        scores = model(input_ids=batch, use_cache=False).logits[:, :-1].log_softmax(-1)
        total -= float(scores.gather(-1, batch[:, 1:, None]).double().sum())
        count += batch[:, 1:].numel()
    return math.exp(total / count)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(show_edge=False)
    for heading in rows[0]:
        table.add_column(heading, justify="left" if heading == "rewrite" else "right")
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:.3g}" if k in ("change", "seconds") else f"{v:.2f}"
                        for k, v in row.items()))  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
