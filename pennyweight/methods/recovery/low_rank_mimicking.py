"""Block by block, with more weight on the directions in which the block's output varies most.

Source: BinaryDM: Towards Accurate Binarization of Diffusion Model. 2024. arXiv:2404.05662, low-rank representation
mimicking: E holds the first max(2, size / 4) principal directions of what a block of the reference returns on the first
batch, and the squared error of the output's projections on E is added to the loss.

Departs from it: there it is added, times 1e-4, to the loss of a diffusion model's noise, for all blocks at once; here
to the relative error of one block, as a relative error of its own. Channels are projected, and not the last axis of an
image, which in the released code is its width. Directions are those of the covariance; whether the source takes the
mean out could not be established. With `strength=0` it is `block_wise`. The source's binarizer is `binary2 row`, stored
without search, whose signs and scales are trained here; that only outer blocks have two bases is for a plan to say.

When: to compare. Cost: that of `block_wise`, and one decomposition of a covariance a block. Known failures: large
directions are in the plain error already. On a small Llama trained on bytes it was a little ahead of `block_wise` in
`binary2 row` and at 2 bits, on residual blocks of random weights a little behind, and far with `strength=10`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import Part
from pennyweight.methods.recovery.learning import Schedule, learn
from pennyweight.piece import Piece, Weights


@dataclass(frozen=True, kw_only=True)
class LowRankMimicking(Schedule):
    """Lower the squared error of a block's output by Adam, that of its principal directions once more.

    Args:
        steps: of Adam a block; 0 changes nothing.
        batches: in a step, of about a thousand tokens each.
        rate: of weights, in steps of their grid; 0 leaves every code as it is.
        scale_rate: of scales and offsets, in steps of the outermost code; 0 leaves them.
        strength: of the error of the projections beside that of the output, 0 or more.
        rank: principal directions, as a share of the channels, above 0 and up to 1; two at least.
    """

    name: ClassVar[str] = "low_rank_mimicking"
    paper: ClassVar[str] = "arXiv:2404.05662"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[Literal["block", "network"]] = "block"
    steps: int = 60
    batches: int = 1
    rate: float = 0.005
    scale_rate: float = 0.01
    strength: float = 1.0
    rank: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strength >= 0 or not 0 < self.rank <= 1:
            raise InvalidMethod(
                f"strength={self.strength!r}, rank={self.rank!r}", expected="0 or more; above 0 and up to 1",
                mend="low_rank_mimicking()", site=self.name,
            )  # fmt: skip

    def recover(
        self, piece: Piece, parts: Mapping[str, Part], weights: Weights, *, seed: int, advance: Callable[[], None]
    ) -> tuple[dict[str, Part], dict[str, Any]]:
        """What is stored after training, and the loss of the batches held out before and after.

        Raises:
            InvalidFormat: a format without parameters that can be learnt.
        """
        loss = partial(mimicking_error, basis=self.basis(piece), strength=self.strength)
        return learn(piece, parts, weights, loss, self, seed=seed, advance=advance)

    def basis(self, piece: Piece) -> Float[Tensor, "size rank"]:
        """Principal directions of what the reference returns on the first batch, of unit length, the largest first."""
        rows = piece.target(0).flatten(0, -2).double()
        rows = rows - rows.mean(0)
        count = min(rows.shape[1], max(2, round(self.rank * rows.shape[1])))
        directions: Tensor = torch.linalg.eigh(rows.T @ rows).eigenvectors
        return directions[:, -count:].flip(1).float()


def mimicking_error(piece: Piece, values: Weights, batch: int, *, basis: Tensor, strength: float) -> Tensor:
    """Relative squared error of the output, and of its projections; gradients go to the weights that want them."""
    meant = piece.target(batch)
    change = piece.run(values, batch).float() - meant
    error = change.square().sum() / meant.square().sum()
    if strength:
        error = error + strength * (change @ basis).square().sum() / (meant @ basis).square().sum()
    if torch.is_grad_enabled():
        torch.autograd.backward(error)
    return error.detach()
