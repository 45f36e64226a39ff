"""Relative squared error of the grids on normal weights: min-max and searched, symmetric and not."""

import machine
import torch

from pennyweight.formats import Grid
from pennyweight.numerics.random import stream


def main() -> None:
    weight = torch.randn(1024, 1024, generator=stream(0, "grid_error"))
    rows = []
    for bits in (8, 6, 5, 4, 3, 2):
        for symmetric in (True, False):
            grid = Grid(bits=bits, group_size=128, symmetric=symmetric)
            row: dict[str, object] = {"grid": grid.label()}
            for name, search in (("min_max", False), ("searched", True)):
                scales = grid.fit(weight, search=search)
                error = grid.decode(scales.part(scales.round(weight)).tensors, tuple(weight.shape)) - weight
                row[name] = float(error.square().sum() / weight.square().sum())
            rows.append(row)
            print(row)
    print(machine.write("grid_error", {**machine.facts(0), "rows": rows}))


if __name__ == "__main__":
    main()
