"""Clustered t bound: an approximate bound on the mean with nothing capped.

Source: Miller. Adding Error Bars to Evals. 2024. arXiv:2411.00640; here as a ratio of sums, clusters are documents.
It rests on the central limit theorem over documents and on a number of documents fixed beforehand. Never certify with
it; print it, labelled approximate, next to a bound that is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from pennyweight.budget import Terms
from pennyweight.errors import InvalidMeasurement
from pennyweight.methods.certification.admission import Array, admit
from pennyweight.promises import Validity

LEAST_DOCUMENTS = 15  # below this the t quantile leans on documents being normal, which nobody has seen


@dataclass(frozen=True, kw_only=True)
class ClusteredT:
    """Approximate bound on a mean with nothing capped; units of one document may depend on each other."""

    name: ClassVar[str] = "clustered-t"
    paper: ClassVar[str] = "arXiv:2411.00640"
    needs: ClassVar[frozenset[str]] = frozenset()
    validity: ClassVar[Validity] = Validity(anytime=False, exact=False, scopes=frozenset({"asymptotic"}), values="any")

    def bound(
        self, x: Array, terms: Terms, alpha: float | None = None, *, documents: NDArray[np.int64] | None = None
    ) -> float:
        """Estimate plus a t quantile, one degree of freedom less than documents, times the clustered standard error.

        Args:
            x: degradations `[n]`, uncapped.
            terms: the population must be None.
            alpha: error level; `terms.alpha` by default.
            documents: document of each unit `[n]`; every unit its own if None.

        Raises:
            InvalidMeasurement: values that are not finite, or fewer than fifteen documents.
            InvalidBudget: a level that means nothing, or a corpus.
        """
        x, alpha = admit(self, x, terms, alpha)
        sums, counts = enough_documents(x, documents, self.name)
        return clustered_bound(sums, counts, 1 - alpha)[2]


def enough_documents(x: Array, documents: NDArray[np.int64] | None, site: str) -> tuple[Array, Array]:
    """Sum and count of each document, `[documents]` each; every unit is its own document if none are given.

    Raises:
        InvalidMeasurement: not one document a unit, or fewer than fifteen of them.
    """
    groups = np.arange(len(x)) if documents is None else np.asarray(documents)
    if groups.shape != x.shape:
        raise InvalidMeasurement(
            f"{len(x)} degradations and documents of shape {list(groups.shape)}",
            expected="one document a unit",
            site=site,
        )
    sums, counts = by_document(x, groups)
    if len(sums) < LEAST_DOCUMENTS:
        raise InvalidMeasurement(
            f"{len(sums)} documents are too few for an approximate bound",
            expected=f"{LEAST_DOCUMENTS} documents or more",
            mend="measure more documents, or claim the named corpus alone, drawn without replacement",
            site=site,
        )
    return sums, counts


def clustered_bound(
    sums: NDArray[np.float64], counts: NDArray[np.float64], confidence: float
) -> tuple[float, float, float]:
    """Mean per unit, its standard error, and an approximate one-sided upper bound.

    Args:
        sums: sum of the degradations of each document `[documents]`.
        counts: units (tokens or windows) of each document `[documents]`, above zero.
        confidence: of the bound, in (0, 1).

    Raises:
        InvalidMeasurement: fewer than two documents, which say nothing of their spread, or lengths that differ.
    """
    sums, counts = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    groups = len(sums)
    if sums.shape != counts.shape or groups < 2 or not (counts > 0).all() or not np.isfinite(sums).all():
        raise InvalidMeasurement(
            f"{groups} documents give no standard error",
            expected="two documents or more, each with a finite sum and a count above zero",
            mend="measure on a text of more documents",
            site="certification",
        )
    units = counts.sum()
    estimate = float(sums.sum() / units)
    residuals = sums - estimate * counts
    error = math.sqrt(groups / (groups - 1) * float(residuals @ residuals)) / float(units)
    return estimate, error, estimate + float(stdtrit(groups - 1, confidence)) * error


def by_document(
    values: NDArray[np.float64], documents: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and count of the values of each document, `[documents]` each, from a value and a document per unit `[n]`."""
    _, inverse, counts = np.unique(documents, return_inverse=True, return_counts=True)
    sums = np.bincount(inverse, weights=values, minlength=len(counts)).astype(np.float64)
    return sums, counts.astype(np.float64)
