"""Block by block: train what is stored of a block so that its output is again that of the reference.

Source: Chen et al. EfficientQAT: Efficient Quantization-Aware Training for Large Language Models. arXiv:2407.11062,
first phase (Block-AP): weights, steps and zero points of one block are trained on the squared error of its output;
inputs come from the blocks compressed before it, targets from the reference. Cheng et al. AutoRound. arXiv:2309.05516
learns the rounding alone in the same place.
Departs from them: it starts where a quantizer of single layers ended; the error is relative to the output.

When: at two and three bits, for networks that do not fit into memory six times; before `end_to_end`. Cost: a step is
a pass of one block forward and backward; memory for one block. Known failures: with less than some ten thousand tokens
the last blocks are fitted too closely; the batches held out tell, block by block, and such a block stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pennyweight.formats import Part
from pennyweight.methods.recovery.learning import Schedule, learn
from pennyweight.piece import Piece, Weights


@dataclass(frozen=True, kw_only=True)
class BlockWise(Schedule):
    """Lower the squared error of a block's output by Adam, on codes and on what tiles share.

    Args:
        steps: of Adam a block; 0 changes nothing.
        batches: in a step, of about a thousand tokens each.
        rate: of weights, in steps of their grid; 0 leaves every code as it is.
        scale_rate: of scales and offsets, in steps of the outermost code; 0 leaves them.
    """

    name: ClassVar[str] = "block_wise"
    paper: ClassVar[str] = "arXiv:2407.11062"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[Literal["block", "network"]] = "block"
    steps: int = 60
    batches: int = 1
    rate: float = 0.005
    scale_rate: float = 0.01

    def recover(
        self, piece: Piece, parts: Mapping[str, Part], weights: Weights, *, seed: int, advance: Callable[[], None]
    ) -> tuple[dict[str, Part], dict[str, Any]]:
        """What is stored after training, and the relative squared error of the batches held out before and after.

        Raises:
            InvalidFormat: a format without parameters that can be learnt.
        """
        return learn(piece, parts, weights, relative_error, self, seed=seed, advance=advance)


def relative_error(piece: Piece, values: Weights, batch: int) -> Tensor:
    """Squared error of the output over its square; gradients go to the weights where they are wanted."""
    meant = piece.target(batch)
    error = (piece.run(values, batch).float() - meant).square().sum() / meant.square().sum()
    if torch.is_grad_enabled():
        torch.autograd.backward(error)
    return error.detach()
