"""How far a ladder may go, before and after a first candidate was measured, and the rungs that follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from pennyweight.flow.certifying.claims import Asked
from pennyweight.flow.certifying.rules import Pilot

# Measured on one 135M model at 8, 4 and 3 bits: the share of choices that change is 0.55 times the root of the KL, and
# other bounded distances are near it. A probe corrects the guess.
ROOT_OF_KL = 0.55
MOST_GROWTH = 4.0  # damage after the probe over the probe's: beyond that nothing was measured
PROBE = 0.7  # share of the margin the first candidate is planned to spend; it tells what prediction is worth here
RUNGS = (0.6, 0.8)  # shares of the margin, after the probe has corrected the prediction
HOPELESS = 1.0  # share of a margin above which a rung's selection score makes certifying it a waste


class Rung(Protocol):
    """A candidate of a ladder, whatever kind of network it is."""

    @property
    def key(self) -> str:
        """Equal for equal plans."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def damage(self) -> float:
        """Predicted."""
        ...


R = TypeVar("R", bound=Rung)


def rungs(
    probe: R, within_damage: Callable[[float], R], scores: Callable[[R], Mapping[str, Pilot]], claims: Sequence[Asked]
) -> list[R]:  # fmt: skip
    """Candidates from safe to aggressive, from what a probe lost on the selection split.

    Second-order prediction is off by a factor that all plans near the probe share; the probe measures it.

    Args:
        probe: the first candidate.
        within_damage: builds the smallest candidate of at most so much predicted damage.
        scores: of a candidate on the selection split, by population.
        claims: limits on losses.
    """
    found = {probe.key: probe}
    for share in RUNGS:
        candidate = within_damage(allowed_after(claims, share, probe.damage, scores(probe)))
        found.setdefault(candidate.key, candidate)
    strains = {key: strain(claims, scores(candidate)) for key, candidate in found.items()}
    ladder = sorted(found.values(), key=lambda candidate: (strains[candidate.key], -candidate.size))
    hopeful = [candidate for candidate in ladder if strains[candidate.key] < HOPELESS]
    return _smaller_as_riskier(hopeful) or ladder[:1]


def _smaller_as_riskier(ladder: list[R]) -> list[R]:
    """Drop rungs that are riskier and yet no smaller than one before."""
    kept: list[R] = []
    for candidate in ladder:
        if not kept or candidate.size < kept[-1].size:
            kept.append(candidate)
    return kept


def allowed_before(claims: Sequence[Asked]) -> float:
    """Damage in nats per token that the claims are guessed to allow, before anything was measured."""
    return min(_guess(claim) for claim in claims)


def allowed_after(claims: Sequence[Asked], share: float, damage: float, pilots: Mapping[str, Pilot]) -> float:
    """Damage in nats that spends up to a share of every margin, judged by what a probe of known damage did.

    Args:
        claims: limits on losses.
        share: of each margin to spend.
        damage: predicted for the probe, nats per token.
        pilots: scores of the probe on the selection split, by population.
    """
    most = MOST_GROWTH * damage if damage > 0 else allowed_before(claims)
    for claim in claims:
        lost = _lost(claim, pilots)
        if lost is not None and lost > 0 and damage > 0:
            most = min(most, damage * (share * claim.budget.margin / lost) ** (1 / claim.metric.growth))
    return most


def strain(claims: Sequence[Asked], pilots: Mapping[str, Pilot]) -> float:
    """Largest share of any margin that a candidate spends on the selection split."""
    spent = [lost / claim.budget.margin for claim in claims if (lost := _lost(claim, pilots)) is not None]
    return max(spent, default=0.0)


def _lost(claim: Asked, pilots: Mapping[str, Pilot]) -> float | None:
    pilot = pilots.get(claim.on)
    if pilot is None:
        return None
    x = pilot[claim.metric.name].degradation
    # a few hundred questions say little: one standard error is added to what they show
    doubt = float(x.std()) / math.sqrt(len(x)) if claim.metric.reads != "tokens" else 0.0
    return float(x.mean()) + doubt


def _guess(claim: Asked) -> float:
    margin = claim.budget.margin
    return margin if claim.metric.growth == 1 else float((margin / ROOT_OF_KL) ** (1 / claim.metric.growth))
