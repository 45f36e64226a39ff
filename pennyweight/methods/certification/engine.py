"""What an engine answers: an upper confidence bound on a mean degradation, under the validity that it declares."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Terms
from pennyweight.promises import Validity


@runtime_checkable
class Engine(Protocol):
    """Bounds a mean from degradations in the order they were drawn.

    Its `validity` says for which values, in which scopes and under which stopping rules the bound holds.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    validity: ClassVar[Validity]

    def bound(
        self,
        x: NDArray[np.float64],
        terms: Terms,
        alpha: float | None = None,
        *,
        documents: NDArray[np.int64] | None = None,
    ) -> float:
        """Upper bound, at error level alpha (`terms.alpha` by default), of the mean of what `x [n]` was drawn from."""
        ...


@runtime_checkable
class AnytimeEngine(Engine, Protocol):
    """An engine whose bound holds at every stopping time, because it stands on an e-process."""

    def path(self, x: NDArray[np.float64], terms: Terms) -> NDArray[np.float64]:
        """Log of the e-process against `mean >= margin` after each unit `[n]`; certified at log(1 / alpha)."""
        ...
