"""Second order of the KL with a Kronecker-factored Hessian, its output factor diagonal.

Source: Martens, Grosse. Optimizing Neural Networks with Kronecker-factored Approximate Curvature. arXiv:1503.05671.
Departs from it: of the output factor the diagonal alone is kept; the change of outputs is the one expected of the
method that will round, not of plain rounding.

When: always; it is the default. Cost: none beside the statistics. Known failures: what layers do to each other is not
in it: measured KL is 1.5 to 2.1 times the sum on SmolLM2 at 2.5 to 4 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.methods.pricing.change import Change


@dataclass(frozen=True, kw_only=True)
class Kronecker:
    """Half of the squared changes of outputs, each weighed by how much the network minds it."""

    name: ClassVar[str] = "kronecker"
    paper: ClassVar[str] = "arXiv:1503.05671"
    needs: ClassVar[frozenset[str]] = frozenset({"gram", "fisher"})

    def price(self, change: Change) -> Float[Tensor, " formats"]:
        """½ Σ_out fisher_out · (E gram Eᵀ)_out,out, nats per token."""
        return change.outputs.double() @ change.fisher.double() / 2
