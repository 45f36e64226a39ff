"""End to end: train what is stored so that the whole network predicts again what the reference predicts.

Source: Chen et al. EfficientQAT: Efficient Quantization-Aware Training for Large Language Models. arXiv:2407.11062,
second phase (E2E-QP), where integers stay and only scales are trained; Hinton, Vinyals, Dean. Distilling the Knowledge
in a Neural Network. arXiv:1503.02531, for the loss.
Departs from it: the loss is KL(reference || compressed) on the calibration text and not that of the next token, since
the reference is what the certificate compares with; with a `rate` codes move too, which on SmolLM2 with thirty
thousand tokens was worse at two to four bits than leaving them: they wander with the noise of single batches.

When: at four bits and below. Cost: a step is a pass of the network forward and backward over its batch; the network
must fit into memory six times over in float32, with hidden weights, their averages, and what is rounded. Known
failures: a text that is too short is learnt by heart: the batches held out tell, and then nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import Part
from pennyweight.methods.recovery.learning import Schedule, learn
from pennyweight.piece import Piece, Weights

TOKENS = 256  # whose logits are in memory at once


@dataclass(frozen=True, kw_only=True)
class EndToEnd(Schedule):
    """Lower KL(reference || compressed) of the network by Adam, on codes and on what tiles share.

    Args:
        steps: of Adam; 0 changes nothing.
        batches: in a step, of about a thousand tokens each.
        rate: of weights, in steps of their grid; 0 leaves every code as it is.
        scale_rate: of scales and offsets, in steps of the outermost code; 0 leaves them.
    """

    name: ClassVar[str] = "end_to_end"
    paper: ClassVar[str] = "arXiv:2407.11062"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[Literal["block", "network"]] = "network"
    steps: int = 60
    batches: int = 1
    rate: float = 0.0
    scale_rate: float = 0.02

    def recover(
        self, piece: Piece, parts: Mapping[str, Part], weights: Weights, *, seed: int, advance: Callable[[], None]
    ) -> tuple[dict[str, Part], dict[str, Any]]:
        """What is stored after training, and the loss of the batches held out before and after, nats per token.

        Raises:
            InvalidFormat: a format without parameters that can be learnt.
            InvalidMethod: the piece has no logits.
        """
        return learn(piece, parts, weights, divergence, self, seed=seed, advance=advance)


def divergence(piece: Piece, values: Weights, batch: int) -> Tensor:
    """KL(reference || compressed) of a batch, nats per token; gradients go to the weights where they are wanted.

    Logits are made for some tokens at a time, forward and backward: all of them would take more than the activations.
    """
    if piece.logits is None:
        raise InvalidMethod("this piece of the network has no logits", expected="the whole network", site="end_to_end")
    hidden = piece.run(values, batch)
    flat = hidden.detach().flatten(0, 1).float()
    reference = piece.target(batch).flatten(0, 1)
    total, slopes = torch.zeros(()), list[Tensor]()
    for part, meant in zip(torch.split(flat, TOKENS), torch.split(reference, TOKENS), strict=True):
        part.requires_grad_(torch.is_grad_enabled())
        with torch.no_grad():
            p = piece.logits(meant).float().log_softmax(-1)
        q = piece.logits(part).float().log_softmax(-1)
        loss = (p.exp() * (p - q)).sum() / len(flat)
        total += loss.detach()
        if torch.is_grad_enabled():
            slopes += torch.autograd.grad(loss, part)
    if slopes:
        torch.autograd.backward(hidden, torch.cat(slopes).view_as(hidden).to(hidden.dtype))
    return total
