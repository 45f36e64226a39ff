"""How a degradation is shown: as a change of the perplexity in per cent, in points, or in the metric's own unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePath

from pennyweight import catalogue
from pennyweight.budget import Claim
from pennyweight.errors import PennyweightError
from pennyweight.report.words import NONE, THIN, number, rise, rounded_up, significant


@dataclass(frozen=True)
class Shown:
    """One metric, as people read it.

    Args:
        name: of the metric.
        unit: of its scores.
        scale: a degradation times this is what is shown; the perplexity's is shown by itself.
        suffix: follows the number.
        phrase: a bound in words, with `{bound}` in it.
        signed: whether it can fall as well as rise.
    """

    name: str
    unit: str
    scale: float
    suffix: str
    phrase: str
    signed: bool

    def plain(self, value: float) -> float:
        """Say the number that stands on an axis."""
        return 100 * math.expm1(value) if self.name == "perplexity" else self.scale * value

    def value(self, value: object, digits: int = 4) -> str:
        """Write an estimate, with its sign where there are two."""
        found = number(value)
        if found is None:
            return NONE
        if self.name == "perplexity":
            return rise(found, digits)
        sign = "+" if self.signed and found > 0 else ""
        return self._with_unit(f"{sign}{significant(self.scale * found, digits)}")

    def at_most(self, value: object) -> str:
        """Write a bound, rounded towards the weaker claim."""
        found = number(value)
        return NONE if found is None else self._with_unit(rounded_up(self.plain(found)))

    def limit(self, margin: float) -> str:
        """Write a limit that a person chose, without zeros at its end."""
        return self._with_unit(f"{self.plain(margin):.6g}".replace("-", "−"))

    def bounded(self, value: float) -> str:
        """Put a bound in words, as part of a sentence."""
        if self.name == "perplexity" and value < 0:  # rounding the fall down is rounding the rise up
            return f"perplexity falls by at least {self.at_most(value).removeprefix('−')}"
        return self.phrase.format(bound=self.at_most(value))

    def changed(self, value: object) -> str:
        """Put an estimate in words."""
        found = number(value)
        if found is None:
            return f"{self.name} was not recorded"
        size = self.value(abs(found) if self.name != "perplexity" else found).lstrip("+−")
        if self.name == "perplexity":
            return f"perplexity {'rises' if found >= 0 else 'falls'} by {size}"
        if " falls by at most " in self.phrase:
            return f"{self.phrase.partition(' falls by')[0]} {'falls' if found >= 0 else 'rises'} by {size}"
        if " rises by at most " in self.phrase:
            return f"{self.phrase.partition(' rises by')[0]} {'rises' if found >= 0 else 'falls'} by {size}"
        return self.phrase.replace("at most {bound}", "{bound}").format(bound=self.value(found))

    def _with_unit(self, written: str) -> str:
        suffix = "point" if self.suffix == "points" and written == "1" else self.suffix
        return f"{written}{THIN}{suffix}" if suffix else written


def shown(metric: str, unit: str) -> Shown:
    """How a metric of the catalogue is shown; an unknown one is shown in its own unit."""
    try:
        found = catalogue.find(metric, "measurement")
    except PennyweightError:
        return Shown(metric, unit, 1.0, unit, f"{metric} is at most {{bound}}", True)
    signed = found.lower is None or found.lower < 0
    suffix = found.unit
    if found.percent:
        suffix = "points" if found.lower == -1 else "%"
    return Shown(found.name, unit, 100.0 if found.percent else 1.0, suffix, found.phrase, signed)


def of(claim: Claim) -> Shown:
    """How the metric of a claim is shown."""
    return shown(claim.budget.metric if claim.budget.is_claim else claim.metric, claim.score_unit)


def named(claim: Claim) -> str:
    """A claim in a few words, such as `accuracy on quiz.jsonl`."""
    name = claim.budget.metric if claim.budget.is_claim else claim.metric
    return f"{name} on {task(claim)}" if claim.budget.on else name


def task(claim: Claim) -> str:
    """Name of the file with the questions."""
    return PurePath(claim.budget.on).name or claim.budget.on


def where(claim: Claim) -> str:
    """What a claim is about, as the end of a sentence; it differs with the scope."""
    units = f"the questions of {task(claim)}" if claim.budget.on else "this text"
    if claim.terms.scope == "corpus":
        return f"on {units}"
    return f"on average over the source that {units} {'come' if claim.budget.on else 'comes'} from"


def approximate(claim: Claim) -> bool:
    """Whether the bound holds only as units or documents grow many; nothing about a full pass is approximate."""
    if complete(claim):
        return False
    try:
        engine = catalogue.find(claim.rule, "certification")
    except PennyweightError:
        return claim.terms.scope == "asymptotic"
    return claim.terms.scope == "asymptotic" or not engine.validity.exact


def complete(claim: Claim) -> bool:
    """Whether every unit of the population was scored, so that the estimate is the value itself."""
    return claim.verdict == "exact" or (claim.terms.population is not None and claim.scored == claim.terms.population)
