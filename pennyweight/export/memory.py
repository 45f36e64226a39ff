"""What engines hold in memory while they run a model, as data; a row of each is in `engines/`.

Counted is what the model takes: weights, keys and values, activations. What the engine's own libraries take, and pages
of a mapped file that the system can drop, are not. It is a prediction: in transformers one dense model took 14 % more
than is counted while it read 4096 tokens (`benchmarks/results/engine_memory.json`), and unpacking varies between runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from pennyweight.network.network import Network, Site

FLOAT32 = 4  # bytes
RESIDUAL = 4  # copies of what flows between blocks, in float32: norms compute in it
WIDEST = 2  # copies of the widest outputs of sites that read one activation: they, and what arithmetic makes of them


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How an engine holds a model.

    Args:
        weights: `stored`: as they are in the file; `dense`: unpacked, in the type of tensors that stay dense.
        unpacking: bytes that a number of the weight takes that is unpacked just now, beside its result.
        cache: bytes of one number of keys and values; None for as many as the type of dense tensors has.
        activations: the same of activations.
        prompt: tokens that go through a block together; None for all of the context.
        logits: positions whose logits are there at once, in float32; None for all that go through together.
        evidence: `measured` on this engine, or `estimated` from how such engines work.
    """

    weights: Literal["stored", "dense"]
    unpacking: float = 0.0
    cache: int | None = None
    activations: int | None = None
    prompt: int | None = None
    logits: int | None = 1
    evidence: Literal["measured", "estimated"] = "estimated"

    def working(self, network: Network, dtype: str, context: int, cached: int) -> int:
        """Bytes beside the weights at most: while one is unpacked, or while the last part of a full context is read.

        Args:
            network: what is run.
            dtype: of tensors that stay dense.
            context: tokens of prompt and answer.
            cached: numbers of keys and values of so many tokens.
        """
        largest = max((site.elements for site in network.sites if site.role == "linear"), default=0)
        together = min(context, self.prompt or context)
        positions = min(together, self.logits or together)
        vocabulary = max((site.shape[0] for site in network.sites if site.role == "head"), default=0)
        reading = (
            cached * (self.cache or size_of(dtype))
            + together * activations(network, self.activations or size_of(dtype))
            + together * context  # which positions see which, a byte each
            + positions * vocabulary * FLOAT32
        )
        return max(int(self.unpacking * largest), reading)


def activations(network: Network, size: int) -> int:
    """Bytes of a token's activations at once.

    Args:
        network: what is run.
        size: bytes of a number.
    """
    linear = [site for site in network.sites if site.role == "linear"]
    hidden = next((site.shape[1] for site in network.sites if site.role in ("embedding", "head")), 0)
    return RESIDUAL * FLOAT32 * hidden + WIDEST * size * max(outputs_together(linear), default=0)


def outputs_together(sites: Iterable[Site]) -> list[int]:
    """Numbers that sites write which read one activation, for every activation."""
    found: dict[tuple[int | None, str], int] = {}
    for site in sites:
        found[site.block, site.reads] = found.get((site.block, site.reads), 0) + site.shape[0]
    return list(found.values())


def size_of(dtype: str) -> int:
    """Bytes of a number."""
    return int(getattr(torch, dtype).itemsize)
