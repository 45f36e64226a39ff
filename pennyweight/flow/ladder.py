"""How far a ladder may go: damage in nats that the claims allow, before and after a first candidate was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pennyweight.flow.certifying.claims import Asked
from pennyweight.flow.certifying.rules import Pilot

# Measured on one 135M model at 8, 4 and 3 bits: the share of choices that change is 0.55 times the root of the KL, and
# other bounded distances are near it. A probe corrects the guess.
ROOT_OF_KL = 0.55
MOST_GROWTH = 4.0  # damage after the probe over the probe's: beyond that nothing was measured


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
