"""Squared error of a layer's output beside the size of its input, counted alike for every layer.

Source: common practice; Hubara et al. arXiv:2006.10518 measure it layer by layer.

When: as a yardstick. Cost: none beside the gram matrices. Known failures: it does not know which layers matter; its
unit is not nats, so that a limit on the loss means nothing under it, while one on the size does; embedding tables are
priced in nats all the same, and do not compare with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.methods.pricing.change import Change


@dataclass(frozen=True, kw_only=True)
class OutputError:
    """Squared change of all outputs, over the squared size of the input."""

    name: ClassVar[str] = "output_error"
    paper: ClassVar[str] = "arXiv:2006.10518"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def price(self, change: Change) -> Float[Tensor, " formats"]:
        """Σ_out (E gram Eᵀ)_out,out / tr(gram)."""
        return (
            change.outputs.double()
            @ change.stands_for.double()
            / change.gram.diagonal().double().sum().clamp(min=1e-300)
        )
