"""Multiplying rows by a Hadamard matrix: the fast transform against one dense product and against butterflies.

Seconds are processor time of one thread, so that other work on the machine changes them little; each repetition times
all ways one after another, and a ratio is the median over repetitions. Errors are against the transform in float64.
"""

import math
import statistics
import time
from collections.abc import Callable

import machine
import torch
from torch import Tensor

from pennyweight.numerics.hadamard import hadamard, order, transform
from pennyweight.numerics.linear import linear
from pennyweight.numerics.random import stream

SEED = 0
CASES = ((512, 512), (576, 512), (1536, 512), (3584, 512), (4096, 512), (11008, 64), (14336, 64))  # n, rows
ROUNDS = 15


def butterflies(x: Tensor, core: Tensor, twos: int) -> Tensor:
    """x @ (H / sqrt(n)) with additions of pairs, a pass over memory each, and one product with the core."""
    y, half = x.reshape(-1, twos), 1
    while half < twos:
        a, b = y.reshape(-1, twos // (2 * half), 2, half).unbind(2)
        y, half = torch.stack([a + b, a - b], 2), 2 * half
    y = y.reshape(-1, len(core), twos)
    return torch.bmm((core.T / math.sqrt(x.shape[-1])).expand(len(y), -1, -1), y).reshape(x.shape)


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for n, count in CASES:
        x = torch.randn(count, n, generator=stream(SEED, "hadamard", str(n)))
        found = order(n)
        assert found is not None
        size, twos = found
        core = hadamard(size).float()
        dense = hadamard(n).float().div_(math.sqrt(n))
        weight = dense.T.contiguous()
        ways: dict[str, Callable[[], Tensor]] = {
            "transform": lambda x=x: transform(x),
            "dense": lambda x=x, dense=dense: x @ dense,
            "dense_onednn": lambda x=x, weight=weight: linear(x, weight),
            "butterflies": lambda x=x, core=core, twos=twos: butterflies(x, core, twos),
        }
        exact = transform(x.double())
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        with torch.no_grad():
            errors = {name: float((way() - exact).abs().max() / exact.abs().max()) for name, way in ways.items()}
            for _ in range(ROUNDS):
                for name, way in ways.items():
                    start = time.thread_time()
                    way()
                    seconds[name].append(time.thread_time() - start)
        fast = seconds["transform"]
        row = {
            "n": n, "rows": count, "order": [size, twos],
            "seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "over_transform": {
                name: statistics.median(a / b for a, b in zip(values, fast, strict=True))
                for name, values in seconds.items() if name != "transform"
            },
            "errors": errors,
        }  # fmt: skip
        print(row, flush=True)
        rows.append(row)
    print(machine.write("hadamard", {**machine.facts(SEED), "threads": 1, "rounds": ROUNDS, "rows": rows}))


if __name__ == "__main__":
    main()
