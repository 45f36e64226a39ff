"""Products with weights that stay packed, beside dense ones: microseconds a call, in turn, and the error of each.

    python benchmarks/linear_kernels.py [--threads 1]

`kernel` is PyTorch's own on packed codes whatever the number of tokens, `ours` leaves it where decoding pays; both in
the type of their column. Errors are relative, to a product in float64 of the exact stored numbers.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import machine
import torch

from pennyweight import formats
from pennyweight.numerics.four_bits import FourBits
from pennyweight.numerics.kernels import EIGHT_UNTIL, FOUR_UNTIL, op
from pennyweight.numerics.linear import linear
from pennyweight.numerics.products import EightBits, held
from pennyweight.numerics.random import stream

SHAPES = ((192, 576), (576, 576), (1536, 576), (576, 1536), (49152, 576), (4096, 4096))  # SmolLM2's, and a large one
TOKENS_READ = (1, 8, 64, 128, 512)
LABELS = ("int4 g64 sym bfloat16", "int8 row sym bfloat16", "int8 g64 sym bfloat16")
ROUNDS, SECONDS, PATIENCE = 7, 0.02, 0.5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    with torch.no_grad():
        for shape in SHAPES:
            generator = stream(arguments.seed, "linear_kernels", str(shape))
            weight = torch.randn(shape, generator=generator) * 0.05
            stored = {label: formats.parse(label).store(weight, search=False) for label in LABELS}
            for tokens in TOKENS_READ:
                x = torch.randn(tokens, shape[1], generator=generator)
                calls, errors = ways(weight, stored, x)
                rows.append({"shape": list(shape), "tokens": tokens, "microseconds": timed(calls), "errors": errors})
                print(rows[-1], flush=True)
    facts = machine.facts(arguments.seed)
    print(
        machine.write(
            "linear_kernels",
            {**facts, "threads": arguments.threads, "left_at": [FOUR_UNTIL, EIGHT_UNTIL], "rows": rows},
        )
    )


def ways(
    weight: torch.Tensor, stored: dict[str, formats.Part], x: torch.Tensor
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    half = x.bfloat16()
    dense = weight.bfloat16()
    calls = {"dense float32": partial(linear, x, weight), "dense bfloat16": partial(linear, half, dense)}
    errors = {"dense bfloat16": relative(calls["dense bfloat16"](), half, weight)}
    for label, part in stored.items():
        exact = part.format.decode(part.tensors, weight.shape)
        lattice = part.format.lattice(part.tensors, weight.shape)
        assert lattice is not None
        for dtype, given in ((torch.float32, x), (torch.bfloat16, half)):
            name = f"{label.removesuffix(' bfloat16')}, {str(dtype).removeprefix('torch.')}"
            packed = held(lattice.codes, lattice.step, lattice.offset, levels=lattice.levels, dtype=dtype)
            assert packed is not None
            calls[f"{name}, ours"] = partial(packed.product, given)
            errors[f"{name}, ours"] = relative(packed.product(given), given, exact)
            kernel = alone(packed, given)
            if kernel is not None and (dtype == torch.bfloat16 or len(x) == 1):  # in float32 minutes for many tokens
                calls[f"{name}, kernel"] = kernel
                errors[f"{name}, kernel"] = relative(kernel(), given, exact)
    return calls, errors


def alone(packed: FourBits | EightBits, x: torch.Tensor) -> Callable[[], torch.Tensor] | None:
    """The kernel itself, where one plane is enough."""
    if isinstance(packed, EightBits):
        return partial(op("_weight_int8pack_mm"), x, packed.codes, packed.scale)
    if len(packed.planes) > 1:
        return None
    group = packed.inputs // len(packed.scales[0])
    return partial(op("_weight_int4pack_mm_for_cpu"), x, packed.planes[0], group, packed.scales[0])


def relative(found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> float:
    exact = x[:8].double() @ weight.double().T
    return float((found[:8].double() - exact).norm() / exact.norm())


def timed(calls: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Median, least and most over rounds; every round asks each of them in turn."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS + 1):
        for name, call in calls.items():
            if len(found[name]) > 2 and found[name][0] > PATIENCE:
                continue
            start, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - start < SECONDS:
                call()
                count += 1
            if turn:  # the first is to warm up
                found[name].append((time.perf_counter() - start) / count)
    return {
        name: {"median": 1e6 * statistics.median(s), "least": 1e6 * min(s), "most": 1e6 * max(s)}
        for name, s in found.items()
    }


if __name__ == "__main__":
    main()
