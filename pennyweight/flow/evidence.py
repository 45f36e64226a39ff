"""What a certificate rests on, as plain values: the scores of every window, in the order they were drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Measurement
from pennyweight.errors import VerificationFailed
from pennyweight.numerics.random import derived_seed, permutation


def random_order(count: int, windows: str, weights: str, salt: str) -> tuple[int, NDArray[np.int64]]:
    """The order in which windows are drawn, and the seed it comes from.

    The seed follows from the hashes of the text's tokens and of the candidate's weights, so that a candidate that
    failed does not get another order by renaming a file. Only the salt is anyone's choice; the evidence records it.
    """
    names = ("certification order", windows, weights)
    return derived_seed(salt, *names), permutation(count, salt, *names)


def to_values(measurements: Mapping[str, Measurement]) -> dict[str, Any]:
    """Measurements on the same windows as JSON-able columns."""
    first = next(iter(measurements.values()))
    return {
        "windows": first.windows.tolist(), "documents": first.documents.tolist(), "tokens": first.tokens,
        "fingerprint": first.fingerprint,
        "metrics": {
            name: {"unit": m.unit, "reference": m.reference.tolist(), "compressed": m.compressed.tolist()}
            for name, m in measurements.items()
        },
    }  # fmt: skip


def from_values(values: Mapping[str, Any]) -> dict[str, Measurement]:
    """Measurements from their columns.

    Raises:
        VerificationFailed: a column is missing or of the wrong kind.
        InvalidMeasurement: columns of unequal lengths, or a score that is not finite.
    """
    try:
        return {
            name: Measurement(
                metric=name, unit=columns["unit"],
                reference=np.array(columns["reference"], dtype=np.float64),
                compressed=np.array(columns["compressed"], dtype=np.float64),
                windows=np.array(values["windows"], dtype=np.int64),
                documents=np.array(values["documents"], dtype=np.int64),
                tokens=int(values["tokens"]), fingerprint=str(values["fingerprint"]),
            )
            for name, columns in values["metrics"].items()
        }  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationFailed(
            f"the evidence cannot be read: {error}",
            expected="columns of scores, one number a window",
            mend="restore evidence.json from a copy, or compress again",
            site="evidence.json",
        ) from error


def join(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One set of columns out of several, in order."""
    first, *rest = parts
    joined = {**first, "metrics": {n: {**c} for n, c in first["metrics"].items()}}
    for part in rest:
        joined["windows"] = joined["windows"] + part["windows"]
        joined["documents"] = joined["documents"] + part["documents"]
        for name, columns in joined["metrics"].items():
            for side in ("reference", "compressed"):
                columns[side] = columns[side] + part["metrics"][name][side]
    return joined
