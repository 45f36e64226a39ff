"""A part of a network that a recovery method trains: what goes in, what should come out, nothing of how it is run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pennyweight.formats import Part

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Piece:
    """A block, or everything from the first block to the last, with batches of calibration text.

    Args:
        batches: number of them.
        held_out: the last batches, which are only measured.
        run: weights by parameter, and the number of a batch -> hidden states `[windows, length, size]` of the
            compressed network; gradients flow to the weights.
        target: number of a batch -> what the reference has in the same place.
        reads: weights by parameter, or None for the reference, the number of a batch, and parameters -> what the
            products of these read there, `[tokens, in]` by parameter, in the order in which they are reached; one that
            no module has by itself is missing; given to methods whose `needs` name it.
        store: a parameter's name, a weight `[out, in]` and the gram matrix of its inputs -> what the plan's step makes
            of that weight; None where it could not be carried out.
        run_with: the same as `run`, with a vector that is added to the outputs of a weight's product, by parameter;
            None where nothing can be added.
        logits: hidden states of single tokens behind the last block `[tokens, size]` -> logits; None for a piece that
            is neither the whole nor a block of which `onward` is known.
        onward: what a block returns -> the reference's hidden states behind the last block, in float32; given to
            methods whose `needs` name it.
    """

    batches: int
    held_out: int
    run: Callable[[Weights, int], Float[Tensor, "windows length size"]]
    target: Callable[[int], Float[Tensor, "windows length size"]]
    logits: Callable[[Float[Tensor, "tokens size"]], Float[Tensor, "tokens vocabulary"]] | None = None
    onward: Callable[[Float[Tensor, "windows length size"]], Float[Tensor, "windows length size"]] | None = None
    run_with: Callable[[Weights, int, Weights], Float[Tensor, "windows length size"]] | None = None
    reads: Callable[[Weights | None, int, Collection[str]], Weights] | None = None
    store: Callable[[str, Float[Tensor, "out n"], Float[Tensor, "n n"]], Part | None] | None = None
