"""Two one-sided tests: no worse than the margin, and no better than it either.

Source: Schuirmann. A comparison of the two one-sided tests procedure and the power approach for assessing the
equivalence of average bioavailability. J. Pharmacokinetics and Biopharmaceutics 1987. doi:10.1007/BF01068419.
Both tests run at the full level: the claim needs both, so one wrong rejection is enough only where the other is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Terms
from pennyweight.errors import InvalidBudget
from pennyweight.methods.certification.admission import Array, finite, mirrored
from pennyweight.methods.certification.clustered import ClusteredT
from pennyweight.methods.certification.engine import Engine
from pennyweight.promises import Validity


@dataclass(frozen=True, kw_only=True)
class TwoOneSidedTests:
    """Equivalence: the mean degradation lies between -margin and margin.

    Args:
        engine: bounds the mean from both sides. The validity declared here is that of the default; with another engine
            it is that engine's. An engine with a cap needs a floor too: the one is the other after turning the sign.
    """

    name: ClassVar[str] = "tost"
    paper: ClassVar[str] = "doi:10.1007/BF01068419"
    needs: ClassVar[frozenset[str]] = frozenset()
    validity: ClassVar[Validity] = ClusteredT.validity
    engine: Engine = field(default_factory=ClusteredT)

    def bound(
        self, x: Array, terms: Terms, alpha: float | None = None, *, documents: NDArray[np.int64] | None = None
    ) -> float:
        """Upper end of the interval: the engine's own bound.

        Raises:
            InvalidMeasurement, InvalidBudget: what the engine raises.
        """
        return self.engine.bound(x, terms, alpha, documents=documents)

    def interval(
        self, x: Array, terms: Terms, alpha: float | None = None, *, documents: NDArray[np.int64] | None = None
    ) -> tuple[float, float]:
        """Two-sided interval at confidence 1 - 2 alpha: the engine on the degradations and on their opposites.

        Args:
            x: degradations `[n]`.
            terms: as the engine uses them.
            alpha: error level of each end; `terms.alpha` by default.
            documents: document of each unit `[n]`, or None.

        Raises:
            InvalidMeasurement, InvalidBudget: what the engine raises.
        """
        upper = self.bound(x, terms, alpha, documents=documents)
        x, turned = finite(x), mirrored(terms)
        if self.engine.validity.values == "any":
            turned = replace(turned, floor=None)  # nothing is counted up to a cap, so nothing limits it from below
        else:
            x = np.minimum(x, terms.cap)
        return -self.engine.bound(-x, turned, alpha, documents=documents), upper

    def equivalent(
        self, x: Array, terms: Terms, alpha: float | None = None, *, documents: NDArray[np.int64] | None = None
    ) -> bool:
        """Whether |mean| < margin is shown at error level alpha.

        Raises:
            InvalidBudget: the margin is not above zero.
            InvalidMeasurement: what the engine raises.
        """
        if not terms.margin > 0:
            raise InvalidBudget(
                f"nothing is equivalent within a margin of {terms.margin:g}",
                expected="a margin above zero",
                site=self.name,
            )
        lower, upper = self.interval(x, terms, alpha, documents=documents)
        return -terms.margin < lower and upper < terms.margin
