"""Studentised bootstrap over documents: an approximate bound that corrects the t bound for skew.

Source: Hall. Theoretical comparison of bootstrap confidence intervals. Annals of Statistics 1988.
doi:10.1214/aos/1176350933 (bootstrap-t); here of a ratio of sums, and the units drawn again are documents.
It rests on a number of documents fixed beforehand, and on their being many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from pennyweight.budget import Terms
from pennyweight.errors import InvalidBudget, InvalidMeasurement, InvalidMethod
from pennyweight.methods.certification.admission import Array, admit
from pennyweight.methods.certification.clustered import clustered_bound, enough_documents
from pennyweight.numerics.random import stream
from pennyweight.promises import Validity

CHUNK = 1 << 21  # draws in memory at once; the result depends on it, because the stream is cut there


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Approximate bound on a mean with nothing capped, from documents drawn again with replacement.

    Args:
        replicates: times the documents are drawn again; 1 / alpha at the least.
        seed: of the draws.
    """

    name: ClassVar[str] = "bootstrap"
    paper: ClassVar[str] = "doi:10.1214/aos/1176350933"
    needs: ClassVar[frozenset[str]] = frozenset()
    validity: ClassVar[Validity] = Validity(anytime=False, exact=False, scopes=frozenset({"asymptotic"}), values="any")
    replicates: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates < 1:
            raise InvalidMethod(
                f"{self.replicates} replicates are none", expected="1000 or more", mend="10000", site=self.name
            )

    def bound(
        self, x: Array, terms: Terms, alpha: float | None = None, *, documents: NDArray[np.int64] | None = None
    ) -> float:
        """Estimate less the low quantile of the t statistics of the replicates, times the standard error.

        Args:
            x: degradations `[n]`, uncapped.
            terms: the population must be None.
            alpha: error level; `terms.alpha` by default.
            documents: document of each unit `[n]`; every unit its own if None.

        Raises:
            InvalidMeasurement: fewer than fifteen documents, or so few that differ that replicates have no spread.
            InvalidBudget: a level that is too small for so few replicates, or a corpus.
        """
        x, alpha = admit(self, x, terms, alpha)
        sums, counts = enough_documents(x, documents, self.name)
        rank = math.floor(alpha * (self.replicates + 1))
        if rank < 1:
            raise InvalidBudget(
                f"{self.replicates} replicates show no quantile at a level of {alpha:g}",
                expected=f"{math.ceil(1 / alpha)} replicates or more",
                mend=f"replicates={math.ceil(100 / alpha)}",
                site=self.name,
            )
        estimate, error, _ = clustered_bound(sums, counts, 0.5)
        if error == 0:
            return estimate  # every document says the same, and so does every replicate
        quantile = float(np.partition(self._statistics(sums - estimate * counts, counts), rank - 1)[rank - 1])
        if math.isinf(quantile):
            raise InvalidMeasurement(
                "too few documents differ: many replicates have no spread at all",
                expected="degradations that vary over documents",
                mend="measure more documents, or use planned-mixture, which needs no spread",
                site=self.name,
            )
        return estimate - quantile * error

    def _statistics(self, residuals: Array, counts: Array) -> Array:
        """(estimate of a replicate - estimate) / standard error of the replicate `[replicates]`.

        Args:
            residuals: sum of each document less what the estimate expects of it `[documents]`; they add up to zero.
            counts: units of each document `[documents]`.
        """
        groups, generator = len(residuals), stream(self.seed, "certification", self.name)
        scale = math.sqrt(float(residuals @ residuals))  # a pure number afterwards, so nothing over- or underflows
        residuals = residuals / scale
        columns = np.stack([residuals, counts, residuals**2, residuals * counts, counts**2], axis=1)
        pieces, rows = [], max(1, CHUNK // groups)
        for start in range(0, self.replicates, rows):
            drawn = min(rows, self.replicates - start)
            chosen = torch.randint(groups, (drawn, groups), generator=generator)
            chosen += groups * torch.arange(drawn)[:, None]
            times = torch.bincount(chosen.ravel(), minlength=drawn * groups).reshape(drawn, groups).double().numpy()
            total, units, squares, cross, counted = (times @ columns).T
            shift = total / units
            variance = squares - 2 * shift * cross + shift**2 * counted
            # below this the sum of squares is what rounding left of a replicate whose documents all agree
            spread = np.sqrt(np.where(variance > 1e-14 * squares, variance, 0.0) * groups / (groups - 1)) / units
            away = np.where(shift == 0, 0.0, np.copysign(math.inf, shift))
            pieces.append(np.divide(shift, spread, out=away, where=spread > 0))
        return np.concatenate(pieces)
