"""What a method promises; the contract tests hold it to each promise it makes."""

from __future__ import annotations

from dataclasses import dataclass


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
