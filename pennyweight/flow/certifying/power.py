"""Before running: how many units a claim needs, whether there are so many, and the smallest margin they can certify."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pennyweight.budget import Budget
from pennyweight.corpus import cut, describe_source, read_documents, require_windows, split_documents
from pennyweight.errors import InvalidBudget, InvalidMeasurement
from pennyweight.flow.certifying.claims import Asked, check_reads, resolve
from pennyweight.flow.certifying.populations import Population, Text, split_task
from pennyweight.flow.certifying.rules import units_of
from pennyweight.flow.load import check_pair
from pennyweight.flow.profiling.bounds import finite, smallest_at_cap
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.text import check_vocabulary, some
from pennyweight.formats import Grid
from pennyweight.methods.certification import choose_cap, needed_windows, smallest_margin
from pennyweight.network.changing.rounded import rounded
from pennyweight.network.network import Network
from pennyweight.network.sources.tokenizer import load_tokenizer, separator_id
from pennyweight.numerics.random import permutation
from pennyweight.task import read_task

SCOPES = ("corpus", "source")
SHARES = {"selection": 0.15, "certification": 0.85}  # as a certificate divides one text
WINDOWS, QUESTIONS = 16, 64  # units of the pilot
BITS = (8, 4, 3)
GROUP = 32  # weights that share a scale
PATIENCE = 3.0  # units allowed over units needed on average
TAIL_SHARE = 0.2  # of the error level, for the units above the cap
FLIP_RATES = (0.005, 0.02, 0.05, 0.1)
DOUBT = 1.645  # standard errors by which a pilot must exceed the margin before it counts as the answer
POWER = 0.8  # of the fixed-size test that the numbers are compared with
VERDICTS = ("yes", "no", "only exactly, by a full pass")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate, or one typical rate of flips, under one claim.

    Args:
        candidate: what was measured, or assumed.
        units: of the pilot; 0 where nothing was measured.
        loss: expected degradation, in the unit of the metric; where it is a gain, the plan counts on none.
        sd: standard deviation of a unit.
        standard_error: of the expected loss, from the pilot alone; None where nothing was measured.
        fixed: units a z test of fixed size needs at 80 % power; None if no number is enough.
        needed: units after which the bets certify the claim, on average; None if no number is enough.
        most: units that the run is given, three times as many, or all there are in the scope corpus.
        feasible: `yes`, `no`, or `only exactly, by a full pass`.
        smallest: smallest margin that the units there are can be expected to certify; None if there is none.
        smallest_fixed: the same for the z test of fixed size.
    """

    candidate: str
    units: int
    loss: float
    sd: float
    standard_error: float | None
    fixed: int | None
    needed: int | None
    most: int | None
    feasible: str
    smallest: float | None
    smallest_fixed: float | None


@dataclass(frozen=True, kw_only=True)
class ClaimPower:
    """What one claim takes.

    Args:
        label: the limit as it is written after --lose.
        metric: its name.
        unit: of its scores.
        percent: whether amounts are shown in per cent.
        margin: the limit, in the unit of the metric.
        counted: what a unit is, in the plural.
        available: units there are for the claim; in the scope source one of each document or cluster.
        on: where they are from, in words.
        scope: `corpus` or `source`.
        floor: margin below which no method certifies anything from so many units, even if none of them loses; scope
            source and metrics with an upper limit only, else None.
        rows: one a candidate.
        flips: typical rates of flips, without a drop; accuracies only.
        feasible: whether any candidate can be certified; a full pass counts.
        note: what a reader has to know.
    """

    label: str
    metric: str
    unit: str
    percent: bool
    margin: float
    counted: str
    available: int
    on: str
    scope: str
    floor: float | None
    rows: tuple[Row, ...]
    flips: tuple[Row, ...]
    feasible: bool
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Power:
    """What all claims take.

    Args:
        feasible: whether one candidate can carry all claims at once.
        sentence: the answer in words.
        confidence: of the claims.
        scope: of the claims.
        claims: in the order given.
    """

    feasible: bool
    sentence: str
    confidence: float
    scope: str
    claims: tuple[ClaimPower, ...]


def power(
    reference: Network,
    compressed: Network | None,
    budgets: Sequence[Budget],
    *,
    on: str | Path | None = None,
    scope: str = "corpus",
    length: int = 256,
    seed: int = 0,
    progress: Progress = QUIET,
) -> Power:
    """Plan a certificate from a small pilot, before anything is certified.

    Without a compressed model the pilot is what plain rounding would do to the reference: its linear weights rounded to
    nearest at 8, 4 and 3 bits in groups of 32, in memory.

    Args:
        reference: network before.
        compressed: network after, or None.
        budgets: limits on losses.
        on: text of the claims on texts; None for the one every Python carries.
        scope: `corpus` (this very text or task) or `source` (independent units like these).
        length: tokens in a window.
        seed: of the choice of pilot units.
        progress: told about every pilot.

    Raises:
        InvalidBudget: limits that make no claim, or a scope that nothing can be planned for.
        InvalidText: a text or task that cannot be read or is too short.
        InvalidMeasurement: a model gives NaN or infinite scores, or reads other tokens.
    """
    if scope not in SCOPES:
        raise InvalidBudget(
            f"nothing is planned for a scope {scope!r}", expected=f"one of {', '.join(SCOPES)}", mend="--scope corpus",
            site="--scope",
        )  # fmt: skip
    asked = resolve(budgets, text=False)
    if not all(one.budget.is_claim for one in asked):
        raise InvalidBudget(
            "a size claims no loss, so there is nothing to plan", expected="limits on losses", mend="--lose 2%",
            site="power",
        )  # fmt: skip
    candidates = _candidates(reference, compressed)
    claims: dict[str, ClaimPower] = {}
    for place in dict.fromkeys(one.on for one in asked):
        mine = [one for one in asked if one.on == place]
        pilot, available, words, note = _units(reference, mine, on, scope, length, seed)
        chosen = permutation(len(pilot), seed, "power", pilot.fingerprint)
        chosen = chosen[: QUESTIONS if pilot.discrete else WINDOWS]
        measured: dict[str, dict[str, NDArray[np.float64]]] = {}
        for name, network in candidates.items():
            with progress.stage(f"pilot of {name} on {pilot.counted}", len(chosen)) as advance:
                scores = pilot.scorer(reference, network).score(chosen, advance)
            measured[name] = {metric: result.degradation for metric, result in scores.items()}
        for one in mine:
            losses = {name: values[one.metric.name] for name, values in measured.items()}
            claims[one.budget.label] = replace(
                plan_claim(one, losses, available, scope, discrete=pilot.discrete), on=words, counted=pilot.counted,
                note=note,
            )  # fmt: skip
    found = tuple(claims[one.budget.label] for one in asked)
    together = [name for name in candidates if all(_row(claim, name).feasible != "no" for claim in found)]
    confidence = budgets[0].confidence
    return Power(
        feasible=bool(together), sentence=_sentence(found, together, confidence), confidence=confidence, scope=scope,
        claims=found,
    )  # fmt: skip


def plan_claim(
    asked: Asked, losses: dict[str, NDArray[np.float64]], available: int, scope: str, *, discrete: bool
) -> ClaimPower:
    """What one claim takes, from a pilot of every candidate.

    Args:
        asked: limit and metric.
        losses: degradations of each candidate's pilot `[n]`, at least two.
        available: units there are.
        scope: `corpus` or `source`.
        discrete: whether a unit is one question.
    """
    budget, metric = asked.budget, asked.metric
    alpha, margin, upper = 1 - budget.confidence, budget.margin, metric.upper
    floor = zero_floor(available, alpha) * upper if scope == "source" and upper is not None else None
    rows = []
    for name, values in losses.items():
        x = np.asarray(values, dtype=np.float64)
        if len(x) < 2:
            raise InvalidMeasurement(
                f"a pilot of {len(x)} units shows no spread", expected="two units or more", mend="give more text",
                site=metric.name,
            )  # fmt: skip
        cap, level = choose_cap(x, margin), (1 - TAIL_SHARE) * alpha
        if upper is not None and (discrete or cap >= upper):
            cap, level = upper, alpha  # nothing is above the cap, so nothing is spent on it
        mean, sd = float(x.mean()), float(x.std(ddof=1))
        likely = max(mean, 0.0)  # a gain in so few units is mostly luck, and nobody should plan on it
        # the cap of windows grows with the margin, that of questions is the limit of the metric
        fixed_cap = discrete and upper is not None
        least = (
            smallest_at_cap(likely, sd, available, level, cap)
            if fixed_cap
            else smallest_margin(x - mean + likely, available, level)
        )
        error = sd / math.sqrt(len(x))
        row = _plan(likely, sd, margin, cap, level, available, scope, max(least, floor or 0.0), error)
        rows.append(replace(row, candidate=name, units=len(x), loss=mean, standard_error=error))
    accuracy = discrete and metric.lower == -1.0
    return ClaimPower(
        label=budget.label, metric=metric.name, unit=metric.unit, percent=metric.percent, margin=margin,
        counted="questions" if discrete else "windows", available=available, on=budget.on, scope=scope,
        floor=floor, rows=tuple(rows), flips=flip_rows(margin, budget.confidence, available, scope) if accuracy else (),
        feasible=any(row.feasible != "no" for row in rows),
    )  # fmt: skip


def flip_rows(margin: float, confidence: float, available: int, scope: str) -> tuple[Row, ...]:
    """Questions a claim on accuracy takes at typical rates of flips, if as many are gained as lost.

    The variance of a question is then the rate itself: it is flips - drop^2 in general.
    """
    alpha, rows = 1 - confidence, []
    for rate in FLIP_RATES:
        sd = math.sqrt(rate)
        row = _plan(0.0, sd, margin, 1.0, alpha, available, scope, smallest_at_cap(0.0, sd, available, alpha, 1.0))
        rows.append(replace(row, candidate=f"{100 * rate:g} % flips, no drop"))
    return tuple(rows)


def fixed_size(loss: float, sd: float, margin: float, alpha: float) -> float:
    """Units that a one-sided z test of fixed size needs at 80 % power: ((z_alpha + z_power) sd / (margin - loss))^2."""
    if loss >= margin:
        return math.inf
    return float((ndtri(1 - alpha) + ndtri(POWER)) * sd / (margin - loss)) ** 2


def zero_floor(available: int, alpha: float) -> float:
    """Smallest share that n units without a single loss rule out: 1 - alpha^(1/n), about log(1/alpha) / n.

    Source: Clopper, Pearson 1934 with no success. Any bound must allow the share with which n clean units still have
    probability alpha, so no method certifies a smaller margin.
    """
    return -math.expm1(math.log(alpha) / available)


def _plan(
    loss: float, sd: float, margin: float, cap: float, alpha: float, available: int, scope: str, smallest: float,
    error: float = 0.0,
) -> Row:  # fmt: skip
    needed, fixed = needed_windows(loss, sd, margin, cap, alpha), fixed_size(loss, sd, margin, alpha)
    exact = scope == "corpus"
    # a full pass always answers, but there is no point in it if the pilot clearly loses more
    otherwise = VERDICTS[2] if exact and loss - DOUBT * error < margin else VERDICTS[1]
    feasible = VERDICTS[0] if needed <= available else otherwise
    most = min(PATIENCE * needed, available) if exact else PATIENCE * needed
    fixed = math.inf if sd == 0 else fixed  # no spread was seen: a z test would take none for granted
    least = loss + float(ndtri(1 - alpha) + ndtri(POWER)) * sd / math.sqrt(available)
    return Row(
        candidate="", units=0, loss=loss, sd=sd, standard_error=None, fixed=_whole(fixed), needed=_whole(needed),
        most=_whole(most), feasible=feasible, smallest=finite(smallest), smallest_fixed=least,
    )  # fmt: skip


def _candidates(reference: Network, compressed: Network | None) -> dict[str, Network]:
    if compressed is not None:
        check_pair(reference, compressed)
        return {compressed.source.path.name: compressed}
    return {f"plain rounding, int{b}": rounded(reference, Grid(bits=b, group_size=GROUP)) for b in BITS}


def _units(
    network: Network, asked: Sequence[Asked], on: str | Path | None, scope: str, length: int, seed: int
) -> tuple[Population, int, str, str]:
    """Units of the pilot, how many are left for the claim, what they are, and what a reader has to know."""
    place = asked[0].on
    if place:
        task = read_task(place)
        for one in asked:
            check_reads(one, task)
        pilot, claim = split_task(task, place)
        note = "" if pilot else "the pilot is of the very questions of the claim: there are too few to keep some apart"
        return pilot or claim, units_of(claim, scope), task.source, note
    parts = split_documents(read_documents(on), shares=SHARES)
    tokenizer = load_tokenizer(network.source)
    separator, source = separator_id(network.source, tokenizer), describe_source(on)
    windows = {
        split: cut(
            parts[split], tokenizer, length=length, split=split, source=source, separator=separator,
            apart=scope == "source",
        )
        for split in SHARES
    }  # fmt: skip
    for split, least in (("selection", 2), ("certification", 1)):
        require_windows(windows[split], least, "planning")
        check_vocabulary(windows[split], network)
    claim_text = Text(windows["certification"])
    return Text(some(windows["selection"], WINDOWS, seed)), units_of(claim_text, scope), source, ""


def _sentence(claims: Sequence[ClaimPower], together: Sequence[str], confidence: float) -> str:
    """The answer in one plain sentence."""
    wanted = " and ".join(claim.label for claim in claims)
    if not together:
        short = [claim for claim in claims if not claim.feasible]
        if not short:
            return f"Not feasible: each of {wanted} can be certified for some candidate, but no candidate carries all."
        claim = short[0]
        if claim.scope == "corpus":
            return f"Not feasible: every candidate clearly loses more than {claim.label} in the pilot."
        margins = [row.smallest for row in claim.rows if row.smallest is not None]
        offer = f"the smallest margin they can carry is about {_amount(claim, min(margins))}" if margins else (
            "they can carry no margin at all"
        )  # fmt: skip
        return f"Not feasible: {claim.available:,} {claim.counted} cannot certify {claim.label}; {offer}."
    needs = []
    for claim in claims:
        row = _row(claim, together[0])
        if row.feasible == VERDICTS[0]:
            needs.append(f"about {row.needed:,} of {claim.available:,} {claim.counted} for {claim.label}")
        else:
            needs.append(f"a full pass over all {claim.available:,} {claim.counted} for {claim.label}")
    names = f"{together[0]} needs"
    return f"Feasible at {100 * confidence:.4g} % confidence: {names} {' and '.join(needs)}."


def _row(claim: ClaimPower, name: str) -> Row:
    return next(row for row in claim.rows if row.candidate == name)


def _amount(claim: ClaimPower, value: float) -> str:
    if claim.metric == "perplexity":
        return f"{100 * math.expm1(value):.3g} %"
    return f"{100 * value:.3g} {'points' if claim.flips else '%'}" if claim.percent else f"{value:.3g} {claim.unit}"


def _whole(value: float) -> int | None:
    return math.ceil(value) if math.isfinite(value) else None
