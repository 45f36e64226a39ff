"""What a certificate rests on, as plain values: the scores of every unit, in the order they were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Measurement
from pennyweight.errors import VerificationFailed
from pennyweight.numerics.random import derived_seed, permutation


def random_order(count: int, units: str, weights: str, salt: str, lot: str = "") -> tuple[int, NDArray[np.int64]]:
    """The order in which units are drawn, and the seed it comes from.

    The seed follows from the hashes of the population and of the candidate's weights, so that a candidate that failed
    does not get another order by renaming a file. Only the salt is anyone's choice; the evidence records it.

    Args:
        count: units there are.
        units: hash of the population.
        weights: hash of the candidate's weights.
        salt: declared part of the seed.
        lot: hash of whatever else the verdict follows from (`rules.lot_of`), or nothing.
    """
    names = ("certification order", units, weights, *([lot] if lot else []))
    return derived_seed(salt, *names), permutation(count, salt, *names)


def first_of_each(order: NDArray[np.int64], documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keep the first unit of every document in an order `[n]`: documents are independent, their units are not.

    Args:
        order: of all units `[n]`.
        documents: of each unit `[n]`; negative for one that reaches into another document and may not stand for either.
    """
    order = order[documents[order] >= 0]
    _, first = np.unique(documents[order], return_index=True)
    return order[np.sort(first)]


def to_values(measurements: Mapping[str, Measurement]) -> dict[str, Any]:
    """Measurements on the same units as JSON-able columns."""
    first = next(iter(measurements.values()))
    return {
        "drawn": first.drawn.tolist(), "documents": first.documents.tolist(), "tokens": first.tokens,
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
                drawn=np.array(values["drawn"], dtype=np.int64),
                documents=np.array(values["documents"], dtype=np.int64),
                tokens=int(values["tokens"]), fingerprint=str(values["fingerprint"]),
            )
            for name, columns in values["metrics"].items()
        }  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationFailed(
            f"the evidence cannot be read: {error}",
            expected="columns of scores, one number a unit",
            mend="restore evidence.json from a copy, or certify again",
            site="evidence.json",
        ) from error


def join(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One set of columns out of several, in order."""
    first, *rest = parts
    joined = {**first, "metrics": {n: {**c} for n, c in first["metrics"].items()}}
    for part in rest:
        joined["drawn"] = joined["drawn"] + part["drawn"]
        joined["documents"] = joined["documents"] + part["documents"]
        for name, columns in joined["metrics"].items():
            for side in ("reference", "compressed"):
                columns[side] = columns[side] + part["metrics"][name][side]
    return joined
