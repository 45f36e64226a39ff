"""End to end, for ternary weights: those that are rounded to zero act as a bias meanwhile, so that they hear from it.

Source: Tequila: Trapping-free Ternary Quantization for Large Language Models. 2025. arXiv:2509.23809. A weight inside
the dead zone, |w| ≤ α / 2, learns from a noisy gradient alone and stays there. So the forward pass is x Aᵀ + b with A
the ternary weight and b = ε Σ w over the dead weights of an output, ε = .001: a dead weight gets the straight-through
gradient and ε times the sum of its output's gradients over all tokens.

Departs from it: there b is merged into a bias in the end. No format here stores one, and layers without a bias would
need a tensor more, so ε falls to zero over the last part of the training: what is stored are ternary weights alone, and
the batches held out are measured without b. What the source gains by keeping b is not had. Scales are learned, and not
mean |w| of the hidden weights at every step; the loss is that of `end_to_end`; tokens are thousands and not billions.

When: to try what the source claims on ternary weights that are trained for long. Cost: that of `end_to_end`, and a sum
over each weight. Known failures: where inputs are of the size of one, ε = .001 is a thousandth of the gradient that is
there already. On small networks trained for sixty and three hundred steps nothing set it apart from `end_to_end`, and
as many dead weights came out of their zone; fewer did with ε = .1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import Part
from pennyweight.methods.recovery.end_to_end import divergence
from pennyweight.methods.recovery.learning import Learned, Schedule, learn
from pennyweight.piece import Piece, Weights


@dataclass(frozen=True, kw_only=True)
class Tequila(Schedule):
    """Lower KL(reference || compressed) of the network by Adam, with dead weights as a bias that fades.

    Args:
        steps: of Adam; 0 changes nothing.
        batches: in a step, of about a thousand tokens each.
        rate: of weights, in steps of their grid; 0 leaves every code as it is.
        scale_rate: of scales and offsets, in steps of the outermost code; 0 leaves them.
        strength: ε, 0 or more; 0 is `end_to_end`.
        fade: share of the steps over which ε falls to zero, above 0 and up to 1.
    """

    name: ClassVar[str] = "tequila"
    paper: ClassVar[str] = "arXiv:2509.23809"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[Literal["block", "network"]] = "network"
    steps: int = 60
    batches: int = 1
    rate: float = 0.005
    scale_rate: float = 0.02
    strength: float = 1e-3
    fade: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strength >= 0 or not 0 < self.fade <= 1:
            raise InvalidMethod(
                f"strength={self.strength!r}, fade={self.fade!r}", expected="0 or more; above 0 and up to 1",
                mend="tequila()", site=self.name,
            )  # fmt: skip

    def recover(
        self, piece: Piece, parts: Mapping[str, Part], weights: Weights, *, seed: int, advance: Callable[[], None]
    ) -> tuple[dict[str, Part], dict[str, Any]]:
        """What is stored after training, and the loss of the batches held out before and after, nats per token.

        Raises:
            InvalidFormat: a format without parameters that can be learnt.
            InvalidMethod: the piece has no logits, or nothing can be added to its outputs.
        """
        return learn(piece, parts, weights, divergence, self, seed=seed, advance=advance, added=self._bias)

    def _bias(self, learned: Learned, done: float) -> Tensor:
        return self.strength * min(1.0, (1 - done) / self.fade) * learned.dead()
