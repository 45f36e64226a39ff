"""Rounding what a state-space layer scans: one scale a tensor, a state group, or a cluster of channels (Quamba2).

    python benchmarks/shelf_scans.py [--steps 60] [--windows 64] [--items 200] [--seed 0]

A small Mamba2 with four state groups and eight heads, trained on bytes. The convolution's outputs x, B and C are
rounded where every layer scans them, all else stays; scales are fitted to calibration windows. KL of the predictions
for held-out text, nats a token.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import any_module as networks
import machine
import torch
from shelf_modules import change, outputs
from torch import Tensor
from transformers.models.mamba2 import modeling_mamba2

from pennyweight.formats import passing
from pennyweight.formats.passing import Dynamic, Quantizer
from pennyweight.methods.activations import SortAndCluster, StateGroups, StaticRange
from pennyweight.statistics import Statistics

Fit = Callable[[Statistics, int, Mapping[str, int]], Quantizer]


def one(seen: Statistics, bits: int, _: Mapping[str, int]) -> Quantizer:
    """One scale for all."""
    return StaticRange().fit(seen, passing.parse(f"int{bits} tensor"))


def grouped(seen: Statistics, bits: int, sizes: Mapping[str, int]) -> Quantizer:
    """One scale a state group."""
    return StateGroups(groups=sizes["groups"]).fit(seen, passing.parse(f"int{bits} clusters"))


def clustered(seen: Statistics, bits: int, sizes: Mapping[str, int]) -> Quantizer:
    """One scale for some channels of some heads."""
    return SortAndCluster(heads=sizes["heads"]).fit(seen, passing.parse(f"int{bits} clusters"))


def dynamic(_: Statistics, bits: int, __: Mapping[str, int]) -> Quantizer:
    """One scale a token, found as it passes."""
    return Dynamic(passing.parse(f"int{bits} token"))


WAYS: Mapping[str, tuple[Fit, Fit]] = {  # for x, and for B and C
    "a tensor": (one, one), "a state group": (one, grouped), "a cluster, a state group": (clustered, grouped),
    "a token, as it passes": (dynamic, dynamic),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    given = networks.prepare_bytes(networks.mamba2, steps=arguments.steps)
    module = given.module.eval().requires_grad_(False)
    config, held_out = module.config, given.held_out[: arguments.items]
    sizes = {"heads": config.num_heads, "groups": config.n_groups}
    before = outputs(given, module, held_out)
    kept: list[list[Tensor]] = [[] for _ in range(3 * config.num_hidden_layers)]
    with scanning(lambda place, part: (kept[place].append(part), part)[1], config.num_hidden_layers):
        outputs(given, module, given.calibration[: arguments.windows])
    seen = [Statistics(edge="scan", count=len(x), low=x.amin(0), high=x.amax(0)) for x in map(torch.cat, kept)]
    rows: list[dict[str, Any]] = []
    for bits in (8, 6, 4):
        for name, fits in WAYS.items():
            fitted = [fits[place % 3 > 0](one, bits, sizes) for place, one in enumerate(seen)]
            with scanning(lambda place, part, own=fitted: own[place].rounded(part), config.num_hidden_layers):
                kl = change("mamba2", before, outputs(given, module, held_out))
            rows.append({"bits": bits, "scale": name, "change": kl})
            print(rows[-1], flush=True)
    settings = {"training_steps": arguments.steps, "windows": arguments.windows, "items": len(held_out), **sizes}
    machine.write("shelf_scans", {**machine.facts(arguments.seed), **settings, "rows": rows})


@contextmanager
def scanning(given: Callable[[int, Tensor], Tensor], layers: int) -> Iterator[None]:
    """What every layer scans goes through a function: its place (x, B, C of the first layer, ...) and `[tokens, n]`."""
    real, calls = modeling_mamba2.mamba2_chunk_scan, itertools.count()

    def scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, **more: Any) -> Any:
        first = 3 * (next(calls) % layers)
        parts = [given(first + i, part.flatten(2).flatten(0, 1)).view_as(part) for i, part in enumerate((x, b, c))]
        return real(parts[0], dt, a, *parts[1:], **more)

    modeling_mamba2.mamba2_chunk_scan = scan
    try:
        yield
    finally:
        modeling_mamba2.mamba2_chunk_scan = real


if __name__ == "__main__":
    main()
