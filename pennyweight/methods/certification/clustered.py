"""Clustered t bound: an approximate bound on the mean with nothing capped.

Source: Miller. Adding Error Bars to Evals. 2024. arXiv:2411.00640; here as a ratio of sums, clusters are documents.
It rests on the central limit theorem over documents and on a number of documents fixed beforehand. Never certify with
it; print it, labelled approximate, next to a bound that is exact.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from pennyweight.errors import InvalidMeasurement


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
