"""Quantizers on small networks of other families: how far outputs move when every weight that sites name is rounded.

    python benchmarks/shelf_modules.py [--only "resnet;mamba"] [--steps "gptq nf4 g32"] [--items 300] [--seed 0]

The networks of benchmarks/any_module.py (MiniLM, a ResNet and a ViT trained on drawn shapes, a Mixtral trained on
bytes) and a Mamba trained on the same bytes for some steps. Embeddings and depthwise convolutions stay as they are.
Groups of 32 inputs; where they do not divide a matrix's inputs, its rows are one group, and vectors of two single
weights where these are odd in number. For MiniLM: one minus the
cosine of embeddings; for all others: KL of the predictions, nats. Seconds are of the process, for the rounding alone.
Rows of an earlier run with other networks or steps are kept.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import any_module as networks
import machine
import torch
from any_module import Prepared
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import pennyweight as pw
from pennyweight.errors import InvalidFormat
from pennyweight.flow.modules import store
from pennyweight.flow.modules.build import compress
from pennyweight.flow.modules.look import Seen, look, sites_by_tensor
from pennyweight.flow.progress import QUIET
from pennyweight.formats import Vectors
from pennyweight.plan import Stage, Step

NETWORKS: Mapping[str, Callable[[], Prepared]] = {
    "minilm": networks.prepare_minilm,
    "resnet": lambda: networks.prepare_vision(networks.resnet, "x", 600, 4e-3),
    "vit": lambda: networks.prepare_vision(networks.vit, "pixel_values", 700, 2e-3),
    "mixtral": lambda: networks.prepare_bytes(networks.mixtral, steps=200),
    "mamba": lambda: networks.prepare_bytes(networks.mamba, steps=40),
}  # fmt: skip
STEPS = [
    f"{method} int{bits} g32 asym"
    for bits in (4, 3, 2)
    for method in (
        "round_to_nearest(search=False)", "round_to_nearest", "percentile", "awq_clip", "adaquant", "gptq",
        "coordinate_descent",
    )
] + [f"{method} int{bits} g32 affine" for bits in (4, 3, 2) for method in ("hqq", "decoupleq", "gptq")] + [
    "gptq nf4 g32", "zeroquant_fp fp4 e2m1 g32", "gptvq vector2 16 g32", "round_to_nearest vector2 16 g32",
    "equal_error kmeans4 row", "round_to_nearest kmeans4 row", "recu binary g32", "round_to_nearest binary g32",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=";".join(NETWORKS), help="networks, with a semicolon between")
    parser.add_argument("--steps", default=";".join(STEPS), help="steps, with a semicolon between")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names, steps = arguments.only.split(";"), arguments.steps.split(";")
    settings = {"seed": arguments.seed, "items": arguments.items}
    rows = machine.kept("shelf_modules", settings, lambda row: row["network"] in names and row["step"] in steps)
    for name in names:
        given = NETWORKS[name]()
        rows += measured(name, given, steps, arguments.items, arguments.seed)
        machine.write("shelf_modules", {**machine.facts(arguments.seed), **settings, "rows": rows})
    show(rows)


def measured(name: str, given: Prepared, steps: list[str], items: int, seed: int) -> list[dict[str, Any]]:
    """A row for every step."""
    module = given.module.eval().requires_grad_(False)
    network = pw.network_of(module, given.calibration[0])
    seen = look(module, network, given.calibration, given.outputs, seed=seed, progress=QUIET)
    per_batch = next(iter(given.held_out[0].values())).shape[0]
    held_out = given.held_out[: -(-items // per_batch)]
    before = outputs(given, module, held_out)
    found = []
    for label in steps:
        start = time.process_time()
        compressed, bits = rounded(label, module, network, seen, seed)
        seconds = time.process_time() - start
        after = outputs(given, compressed, held_out)
        row = {"network": name, "step": label, "bits": bits, "change": change(name, before, after),
               "cpu_seconds": seconds}  # fmt: skip
        print(row, flush=True)
        found.append(row)
    return found


def rounded(
    label: str, module: nn.Module, network: pw.Network, seen: Mapping[str, Seen], seed: int
) -> tuple[nn.Module, float]:  # fmt: skip
    """The module with every weight as a step stores it, and the bits of one."""
    step, compressed, bits, elements = Step.parse(label), {}, 0, 0
    for tensor, (main_site, *_) in sites_by_tensor(network).items():
        if main_site.role == "embedding" or seen[tensor].statistics(tensor)[0][0] is None:
            continue
        weight = main_site.matrix(module.get_parameter(tensor).detach()).float()
        own = fitting(step, weight, len(seen[tensor].statistics(tensor)))
        result, _ = compress(main_site, weight, seen[tensor], own, seed)
        compressed[tensor] = (main_site, result)
        bits, elements = bits + result.bits, elements + main_site.elements
    return store.unpack(module, store.pack(module, compressed, "float16")), bits / elements


def fitting(step: Step, weight: Tensor, parts: int) -> Step:
    """The step, or one with a scale a row where its groups do not fit, of single weights where vectors do not."""
    (stage,) = step.stages
    shape = (len(weight) // parts, weight.shape[1])
    for format in (stage.format, whole_rows(stage.format)):
        try:
            format.fields(shape)
        except InvalidFormat:
            continue
        return Step((Stage(stage.method, format),))
    return Step((Stage(stage.method, single(whole_rows(stage.format))),))


def whole_rows(format: Any) -> Any:
    """The same format with a row a group."""
    if hasattr(format, "group_size"):
        return replace(format, group_size=None)
    return replace(format, sharing=replace(format.sharing, columns=None))


def single(format: Vectors) -> Vectors:
    """A codebook of single weights, for as many bits."""
    return replace(format, width=1, levels=round(format.levels ** (1 / format.width)))


@torch.no_grad()
def outputs(given: Prepared, module: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    """Of every item."""
    return torch.cat([given.outputs(module, batch).flatten(0, -2) for batch in batches])


def change(name: str, before: Tensor, after: Tensor) -> float:
    """One minus the cosine, or KL in nats."""
    if name == "minilm":
        return 1 - float((before * after).sum(-1).double().mean())
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def show(rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["network"] for row in rows))
    table = Table("step", *names, show_edge=False)
    for step in STEPS:
        own = {row["network"]: row for row in rows if row["step"] == step}
        table.add_row(step, *(f"{own[name]['change']:.4g}" if name in own else "" for name in names))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
