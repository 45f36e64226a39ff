"""ReCU: clamp the largest weights to a quantile of a Laplace distribution before their signs are taken.

Source: Xu et al. ReCU: Reviving the Dead Weights in Binary Neural Networks. arXiv:2103.12369, as BiBench
(arXiv:2301.11233) compares it with other binarizers. Clamping at ± Q, Q = −mean |w| · ln(2 − 2 tau), which is the
quantile tau of a Laplace distribution with that mean, leaves signs as they are and lowers the scales that follow.
Departs from it: there it is a step of training, with tau rising from .85 to .99 and weights centred before; here it
chooses the scales of trained weights once. The format has no offset, so nothing is centred; one bit of `k_means` has.

When: the start of a training of signs that few large weights would otherwise stretch. Cost: a mean. Known failures: as
a choice after training it has a larger squared error than mean |w|, which is the best scale there is: by 9 % at tau .85
on normal weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import Binary, Compressed, Format
from pennyweight.promises import Deterministic, Promise, RowEquivariant
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class ReCU:
    """Signs whose scales are those of clamped weights.

    Args:
        tau: share of a Laplace distribution below the upper clamp, above .5 and below 1.
    """

    name: ClassVar[str] = "recu"
    paper: ClassVar[str] = "arXiv:2103.12369"
    needs: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[tuple[type[Format], ...]] = (Binary,)
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(), RowEquivariant())
    tau: float = 0.99

    def __post_init__(self) -> None:
        if not 0.5 < self.tau < 1:
            raise InvalidMethod(
                f"tau={self.tau!r}", expected="above .5 and below 1", mend="recu(tau=0.99)", site=self.name
            )

    def compress(
        self,
        weight: Float[Tensor, "out in"],
        statistics: Statistics | None,
        format: Binary,
        *,
        generator: Generator,
    ) -> Compressed:
        """Clamp each tile, take the means of what is left as scales, and round; statistics are not looked at.

        Raises:
            InvalidFormat: the format's groups do not divide the inputs.
        """
        w, sharing = weight.float(), format.sharing
        mean = sharing.spread(sharing.split(w.abs()).mean(-1), tuple(w.shape))
        reach = mean * -math.log(2 - 2 * self.tau)
        fitted = format.fit(w.clamp(-reach, reach), search=False)
        return Compressed((fitted.part(fitted.round(w)),), tuple(w.shape))
