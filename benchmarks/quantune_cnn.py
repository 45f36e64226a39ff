"""Quantune's claim on a ResNet: it needs far fewer trials than random, grid or genetic search to a near-best recipe.

    python benchmarks/quantune_cnn.py [--bits 3] [--seeds 100] [--replay]

The ResNet of benchmarks/any_module.py, trained on drawn shapes. A recipe for all of it says how many pictures
calibrate, which grids weights and inputs have, how both are clipped, which weights share a scale, and whether the first
and the last layer are left alone: the factors of the paper, with groups of 16 inputs as a third granularity. Weights
and what they read are rounded to `bits` bits, inputs over a fixed range of the tensor. Every recipe is carried out and
measured once on all held-out pictures; searches are then replayed on that table (benchmarks/replay.py), trials counted
until a recipe is as near to the best of all as asked. With `--replay` the table of an earlier run is taken.
"""

import argparse
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import any_module as networks
import machine
import numpy as np
import replay
import torch
from any_module import Prepared
from rich.console import Console
from rich.table import Table
from shelf_modules import change, outputs, whole_rows
from torch import Tensor

import pennyweight as pw
from pennyweight import formats
from pennyweight.errors import InvalidFormat
from pennyweight.flow.activations import quantizers
from pennyweight.flow.observe import observe
from pennyweight.formats.passing import Static
from pennyweight.formats.scale_types import power_of_two
from pennyweight.methods.search import Quantune
from pennyweight.network.network import Network, Site
from pennyweight.network.running.activations import activations
from pennyweight.network.sources.module import module_with
from pennyweight.plan import Input
from pennyweight.statistics import Statistics

POWERS = "powers of two"  # scales, symmetric grids
FACTORS: dict[str, tuple[Any, ...]] = {
    "pictures": (8, 64, 512),
    "scheme": ("symmetric", "asymmetric", "asymmetric inputs", POWERS),
    "clipping": ("none", "squared error"),
    "granularity": ("tensor", "row", "g16"),
    "ends": ("rounded", "kept"),
}
RECIPES = list(itertools.product(*FACTORS.values()))
SEARCHES = {
    "random": replay.random, "grid": replay.grid, "genetic": replay.genetic,
    "quantune": replay.method(Quantune(trials=len(RECIPES))),
    "quantune, first 8, batch 4": replay.method(Quantune(trials=len(RECIPES), first=8, batch=4)),
}  # fmt: skip
GOALS = {
    "accuracy": {"within 0.1 points": (0.001, 0.0), "within 1 point": (0.01, 0.0)},
    "kl": {"within 1 %": (0.0, 0.01), "within 10 %": (0.0, 0.1)},
}  # what may be lacking: absolute, and as a share of the best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--items", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--replay", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {**machine.facts(networks.SEED), "bits": arguments.bits, "items": arguments.items}
    if arguments.replay:
        known = json.loads((machine.RESULTS / "quantune_cnn.json").read_text())
        result = {key: value for key, value in known.items() if key not in ("seeds", "replayed")}
    else:
        result |= measured(arguments.bits, arguments.items)
    result |= {"seeds": arguments.seeds, "replayed": replayed(result["rows"], arguments.seeds)}
    machine.write("quantune_cnn", result)
    show(result)


def measured(bits: int, items: int) -> dict[str, Any]:
    """Accuracy and KL of every recipe."""
    given = networks.prepare_vision(networks.resnet, "x", 600, 4e-3)
    assert given.targets is not None
    network = pw.network_of(given.module, {"x": given.calibration[0]["x"][:2]})
    pictures = torch.cat([batch["x"] for batch in given.calibration])
    seen = {
        count: observe(network, [{"x": part} for part in pictures[:count].split(32)]) for count in FACTORS["pictures"]
    }
    held_out, right = given.held_out[: items // 50], torch.tensor(given.targets[:items])
    before = outputs(given, given.module, held_out)
    rows = []
    for recipe in RECIPES:
        started = time.process_time()
        after = carried_out(given, network, seen, recipe, bits, held_out)
        rows.append({
            **dict(zip(FACTORS, recipe, strict=True)), "accuracy": accuracy(after, right),
            "kl": change("resnet", before, after), "cpu_seconds": time.process_time() - started,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return {"accuracy": accuracy(before, right), "rows": rows}


def accuracy(scores: Tensor, right: Tensor) -> float:
    return float((scores.argmax(-1) == right).double().mean())


def carried_out(
    given: Prepared, network: Network, seen: Mapping[int, Mapping[str, Statistics]], recipe: Sequence[Any], bits: int,
    held_out: list[dict[str, Tensor]],
) -> Tensor:  # fmt: skip
    """Scores of the network under one recipe."""
    pictures, scheme, clipping, granularity, ends = recipe
    sites = list(network.sites)
    sites = sites[1:-1] if ends == "kept" else sites
    search = clipping == "squared error"
    parameters = dict(given.module.named_parameters())
    for site in sites:
        weight = site.matrix(parameters[site.parameter].detach()).float()
        format = weight_format(site, scheme, granularity, bits)
        stored = format.store(weight, search=search)
        parameters[site.parameter] = site.restored(
            format.decode(stored.tensors, site.shape), parameters[site.parameter].shape
        )
    label = f"int{bits} tensor{' asym' if scheme.startswith('asymmetric') else ''}"
    chosen = dict.fromkeys([site.name for site in sites], Input.parse(f"static_mse {label}" if search else label))
    inputs = quantizers(chosen, seen[pictures])
    if scheme == POWERS:
        inputs = {name: covering(fitted) for name, fitted in inputs.items()}
    with activations(module_with(given.module, parameters).eval(), inputs) as running:
        return outputs(given, running, held_out)


def weight_format(site: Site, scheme: str, granularity: str, bits: int) -> Any:
    """A grid; where groups do not divide a row, as in the first layer, a scale a row."""
    kind = {"asymmetric": "asym", POWERS: "sym e8m0"}.get(scheme, "sym")
    format = formats.parse(f"int{bits} {granularity} {kind}")
    try:
        format.fields(site.shape)
    except InvalidFormat:
        return whole_rows(format)
    return format


def covering(fitted: Any) -> Static:
    """The next power of two for a scale, with which the codes still reach the ends."""
    assert isinstance(fitted, Static)
    return replace(fitted, scale=power_of_two(fitted.scale, up=True))


def replayed(rows: Sequence[Mapping[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """Trials that each search needs, over the seeds."""
    found = []
    places = [tuple(FACTORS[factor].index(row[factor]) for factor in FACTORS) for row in rows]
    for metric, goals in GOALS.items():
        values = [1 - row["accuracy"] if metric == "accuracy" else row["kl"] for row in rows]
        scores, best = dict(zip(places, values, strict=True)), min(values)
        limits = {name: best + more + share * best for name, (more, share) in goals.items()}
        for name, search in SEARCHES.items():
            started = time.process_time()
            needed = np.array([replay.trials(search, scores, [*limits.values()], seed) for seed in range(seeds)])
            seconds = (time.process_time() - started) / seeds
            for (goal, limit), column in zip(limits.items(), needed.T, strict=True):
                found.append({
                    "metric": metric, "goal": goal, "good_enough": sum(value <= limit for value in values),
                    "search": name, "mean": float(column.mean()), "median": float(np.median(column)),
                    "nine_in_ten": float(np.quantile(column, 0.9)),
                    "standard_error": float(column.std(ddof=1) / seeds**0.5), "cpu_seconds": seconds,
                })  # fmt: skip
    return found


def show(result: Mapping[str, Any]) -> None:
    rows = sorted(result["rows"], key=lambda row: row["kl"])
    print(f"accuracy {result['accuracy']:.4f} before; best and worst recipe by KL:", rows[0], rows[-1], sep="\n")
    table = Table(show_edge=False)
    for heading in ("metric", "goal", "good_enough", "search", "mean", "standard_error", "median", "nine_in_ten"):
        table.add_column(heading, justify="left" if heading in ("metric", "goal", "search") else "right")
    for row in result["replayed"]:
        table.add_row(
            row["metric"], row["goal"], str(row["good_enough"]), row["search"], f"{row['mean']:.1f}",
            f"{row['standard_error']:.1f}", f"{row['median']:g}", f"{row['nine_in_ten']:.0f}",
        )  # fmt: skip
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
