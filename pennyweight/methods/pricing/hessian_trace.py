"""HAWQ-V2: the mean eigenvalue of a layer's Hessian times the squared change of its weights.

Source: Dong et al. HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks. arXiv:1911.03852.
Departs from it: the trace is that of the Kronecker-factored Fisher information, tr(gram) · Σ fisher, which is known
already, and not Hutchinson's estimate of the Hessian's, which takes many backward passes and is not positive.

When: as a yardstick. Cost: none beside the statistics. Known failures: rounding errors are taken to fall evenly on all
inputs and outputs; methods that put them where they do not hurt, such as GPTQ, look like plain rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.methods.pricing.change import Change


@dataclass(frozen=True, kw_only=True)
class HessianTrace:
    """Half of the Hessian's trace per weight, times the squared change of all weights under plain rounding."""

    name: ClassVar[str] = "hessian_trace"
    paper: ClassVar[str] = "arXiv:1911.03852"
    needs: ClassVar[frozenset[str]] = frozenset({"gram", "fisher"})

    def price(self, change: Change) -> Float[Tensor, " formats"]:
        """½ · tr(H)/n · ‖E‖², nats per token."""
        trace = change.gram.diagonal().double().mean() * change.fisher.double().mean()
        return change.weights.double().sum(1) * trace / 2
