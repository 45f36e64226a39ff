"""What a method promises; the contract tests hold it to each promise it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Deterministic:
    """The same weight, statistics, format and generator give the same bits."""


@dataclass(frozen=True)
class RowEquivariant:
    """Rows are compressed independently: permuting them permutes the result, stacking them changes nothing."""


@dataclass(frozen=True)
class Idempotent:
    """Compressing the dequantized result again changes nothing."""


@dataclass(frozen=True)
class BetterOnAverage:
    """The output error trace(E gram Eᵀ) is lower than that of another method, on average over random layers."""

    than: str


Promise = Deterministic | RowEquivariant | Idempotent | BetterOnAverage


@dataclass(frozen=True, kw_only=True)
class Validity:
    """When a bound on a mean holds; the contract test simulates exactly this much.

    Args:
        anytime: at every stopping time; otherwise only for a number of units fixed beforehand.
        exact: at every sample size; otherwise only as the units grow many.
        scopes: `corpus` (drawn without replacement from a finite set), `source` (independent units), `asymptotic`
            (documents are clusters).
        values: of the degradation: `capped` (an upper limit is enough), `bounded` (limits on both sides), `binary` (0
            or 1), `ternary` (-1, 0 or 1), `any`.
    """

    anytime: bool
    exact: bool
    scopes: frozenset[str]
    values: str


class Metric(Protocol):
    """What certification needs to know of a metric: its limits, and how a bound on it is said.

    Attributes:
        name: in the catalogue.
        unit: of its scores.
        reads: what it is computed from: `tokens`, `choices`, `text` or `outputs`.
        lower: smallest degradation of a unit, or None.
        upper: largest degradation of a unit, or None.
        growth: power of the divergence between two models with which the degradation grows.
        phrase: a bound in words, with `{bound}` in it.
        percent: whether amounts are shown in per cent.
    """

    name: str
    unit: str
    reads: str
    lower: float | None
    upper: float | None
    growth: float
    phrase: str
    percent: bool
