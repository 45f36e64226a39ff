"""How a network's weights are distributed, and what its codes would take if they were coded by how often they occur.

    python benchmarks/weight_shape.py --model DIR [--seed 0]

DIR holds the model of benchmarks/peer_scripts/make_model.py. For the linear weights of every role in a block: the
shape of the generalized Gaussian with their moments (2 is normal, 1 Laplace), the squared error of replacing them by
its quantiles (what DeepShape does before it trains again), and for codes of several formats the bits a code takes as
stored, at its entropy, and in Exp-Golomb words of its rank. Medians over blocks.
"""

import argparse
from pathlib import Path
from statistics import median

import machine
from rich.console import Console
from rich.table import Table

import pennyweight as pw
from pennyweight import formats
from pennyweight.formats import Scalar
from pennyweight.numerics.generalized_gaussian import entropy_bits, exp_golomb_bits, matched, shape_of

LABELS = ("int8 row sym", "int4 g64 sym", "int4 g64 asym", "int3 g64 asym", "int2 g64 affine", "nf4 g64")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="written into the result; nothing here is random")
    arguments = parser.parse_args()
    network = pw.load(arguments.model)
    found: dict[str, dict[str, list[float]]] = {}
    for site in network.sites:
        if site.role != "linear" or site.block is None:
            continue
        weight = network.source.read(network.stored_name(site.parameter)).float()
        own = found.setdefault(site.name.rpartition(".")[2], {})
        shape = shape_of(weight)
        moved = float((matched(weight, shape) - weight).square().sum() / weight.square().sum())
        measured = {"shape": shape, "moved": moved}
        for label in LABELS:
            format = formats.parse(label)
            assert isinstance(format, Scalar)
            codes = format.store(weight).tensors["codes"].long()
            measured[f"{label} entropy"] = entropy_bits(codes) / codes.numel()
            measured[f"{label} exp_golomb"] = exp_golomb_bits(codes) / codes.numel()
            measured[f"{label} stored"] = (format.levels - 1).bit_length()
        for name, value in measured.items():
            own.setdefault(name, []).append(value)
    rows = [
        {"sites": role, "blocks": len(own["shape"])} | {name: median(values) for name, values in own.items()}
        for role, own in found.items()
    ]
    machine.write("weight_shape", {**machine.facts(arguments.seed), "model": "SmolLM2-135M-Instruct", "rows": rows})
    table = Table("sites", "shape", "moved", *(f"{label}: entropy / EG" for label in LABELS), show_edge=False)
    for row in rows:
        costs = (f"{row[f'{label} entropy']:.2f} / {row[f'{label} exp_golomb']:.2f}" for label in LABELS)
        table.add_row(str(row["sites"]), f"{row['shape']:.2f}", f"{row['moved']:.4f}", *costs)
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
