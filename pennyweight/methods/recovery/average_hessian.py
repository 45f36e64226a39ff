"""Block by block, with errors weighed by how much the network's predictions mind each channel of a block's output.

Source: APHQ-ViT: Post-Training Quantization with Average Perturbation Hessian Based Reconstruction for Vision
Transformers. CVPR 2025. arXiv:2504.02508. The importance of an element of a block's output O is the mean over samples
of |g(O + δ) − g(O − δ)|, g the gradient of KL(reference || ·) of predictions at temperature 20: a product of the
Hessian with a fixed direction, from two passes backward. The block is trained on Σ importance · (change of O)².

Departs from it: the direction is a random sign for every element. A constant one, as in the source, is what LayerNorm
takes away: where every reader of a residual stream subtracts the mean, H · 1 = 0, and so it does where O are the logits
themselves; `signs=False` has it. δ is a share of the size of O and not 1e-6, which float32 does not resolve. Windows of
text have no places as images have, so the mean is taken over positions too, unless `positions`. Left out: the
reconstruction of MLPs that puts ReLU for GELU (another network than the engine has), QDrop (activations are not rounded
here), and AdaRound's regulariser (hidden weights are learnt straight through, as in `block_wise`).

When: channels of a block's output differ much in what they do. Cost: that of `block_wise`, and for each block four
passes through all blocks behind it a sample; the network has to fit into memory. Known failures: importance is of the
reference, one element at a time; what errors of several channels do together is not in it. On residual blocks of random
weights with channels of unequal size it is ahead of `block_wise` at 3 bits and more so at 2; on a small Llama trained
on bytes the two are level.
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
from pennyweight.numerics.random import stream
from pennyweight.piece import Piece, Weights

TOKENS = 256  # whose logits are in memory at once


@dataclass(frozen=True, kw_only=True)
class AverageHessian(Schedule):
    """Lower the squared error of a block's output by Adam, each channel weighed by the predictions' mind of it.

    Args:
        steps: of Adam a block; 0 changes nothing.
        batches: in a step, of about a thousand tokens each.
        rate: of weights, in steps of their grid; 0 leaves every code as it is.
        scale_rate: of scales and offsets, in steps of the outermost code; 0 leaves them.
        samples: batches that importance is the mean of, at most; those held out are not among them.
        temperature: of the predictions.
        size: of δ, as a share of the root mean square of O.
        signs: perturb in random signs; otherwise all elements alike.
        positions: keep an importance for every position of a window.
    """

    name: ClassVar[str] = "average_hessian"
    paper: ClassVar[str] = "arXiv:2504.02508"
    needs: ClassVar[frozenset[str]] = frozenset({"onward"})
    unit: ClassVar[Literal["block", "network"]] = "block"
    steps: int = 60
    batches: int = 1
    rate: float = 0.005
    scale_rate: float = 0.01
    samples: int = 8
    temperature: float = 20.0
    size: float = 0.01
    signs: bool = True
    positions: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1 or not self.temperature > 0 or not self.size > 0:
            raise InvalidMethod(
                f"samples={self.samples!r}, temperature={self.temperature!r}, size={self.size!r}",
                expected="at least one sample, above zero", mend="average_hessian()", site=self.name,
            )  # fmt: skip

    def recover(
        self, piece: Piece, parts: Mapping[str, Part], weights: Weights, *, seed: int, advance: Callable[[], None]
    ) -> tuple[dict[str, Part], dict[str, Any]]:
        """What is stored after training, and the relative weighed error of the batches held out before and after.

        Raises:
            InvalidFormat: a format without parameters that can be learnt.
            InvalidMethod: nothing is known of what follows the piece.
        """
        loss = partial(weighed_error, importance=self.importance(piece, seed))
        return learn(piece, parts, weights, loss, self, seed=seed, advance=advance)

    def importance(self, piece: Piece, seed: int) -> Float[Tensor, "length size"] | Float[Tensor, " size"]:
        """Mean of |g(O + δ) − g(O − δ)| over samples, and over positions unless they are kept; its mean is one.

        Raises:
            InvalidMethod: nothing is known of what follows the piece.
        """
        total = torch.zeros(())
        count = min(self.samples, piece.batches - piece.held_out)
        for batch in range(count):
            out = piece.target(batch).float()
            direction = torch.ones_like(out)
            if self.signs:
                generator = stream(seed, "perturbation", str(batch))
                direction = torch.randint(0, 2, out.shape, generator=generator) * 2.0 - 1
            direction *= self.size * out.square().mean().sqrt()
            ends = [slope(piece, out, out + way * direction, self.temperature) for way in (1, -1)]
            total = total + (ends[0] - ends[1]).abs().mean(0)
        found = total if self.positions else total.mean(0)
        return found / found.mean().clamp(min=torch.finfo(found.dtype).tiny)


def slope(
    piece: Piece, out: Float[Tensor, "windows length size"], moved: Float[Tensor, "windows length size"],
    temperature: float,
) -> Float[Tensor, "windows length size"]:  # fmt: skip
    """Gradient by a block's output, where it is moved, of KL(predictions || those when moved), summed over tokens.

    Args:
        piece: a block.
        out: what the reference has.
        moved: the same, moved.
        temperature: of the predictions.

    Raises:
        InvalidMethod: nothing is known of what follows the piece.
    """
    if piece.onward is None or piece.logits is None:
        raise InvalidMethod(
            "nothing is known of what follows this piece", expected="a piece with onward and logits",
            site="average_hessian",
        )  # fmt: skip
    with torch.no_grad():
        meant = piece.onward(out).flatten(0, 1).float()
    moved = moved.detach().requires_grad_()
    with torch.enable_grad():
        hidden, slopes = piece.onward(moved), list[Tensor]()
        flat = hidden.detach().flatten(0, 1).float()
        for part, reference in zip(torch.split(flat, TOKENS), torch.split(meant, TOKENS), strict=True):
            part.requires_grad_()
            with torch.no_grad():
                p = (piece.logits(reference).float() / temperature).log_softmax(-1)
            q = (piece.logits(part).float() / temperature).log_softmax(-1)
            slopes += torch.autograd.grad((p.exp() * (p - q)).sum(), part)
        (found,) = torch.autograd.grad(hidden, moved, torch.cat(slopes).view_as(hidden).to(hidden.dtype))
    return found


def weighed_error(piece: Piece, values: Weights, batch: int, *, importance: Tensor) -> Tensor:
    """Weighed squared error of the output over its weighed square; gradients go to the weights that want them."""
    meant = piece.target(batch)
    change = (piece.run(values, batch).float() - meant).square()
    error = (change * importance).sum() / (meant.square() * importance).sum()
    if torch.is_grad_enabled():
        torch.autograd.backward(error)
    return error.detach()
