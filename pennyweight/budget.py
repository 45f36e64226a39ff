"""What the user allows, what was measured, and what is claimed: the values a certificate is made of."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pennyweight.errors import InvalidBudget, InvalidMeasurement

LOSS = re.compile(
    r"\s*(?:(?P<metric>[A-Za-z][\w-]*(?:\([^)]*\))?)(?::(?P<on>\S(?:.*\S)?))?\s+)?"
    r"(?P<number>[-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(?P<unit>%|pts?|points)?\s*"
)
ALIASES = {"agreement": "disagreement", "top-1": "disagreement", "top-5": "top-k(k=5)", "ppl": "perplexity"}
SIZES = ("size", "bits", "memory")
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One limit. `metric` says of what, `on` on what, and `unit` in what.

    Args:
        metric: of a loss: `perplexity` (a relative rise, 0.02 is 2 %) or any metric of the catalogue (`kl`, `tv`,
            `disagreement`, `accuracy` …); or `size` (bytes on disk), `bits` (stored bits per weight) or `memory` (bytes
            in the engine).
        at_most: the limit.
        unit: `ratio`, `share` (0.01 is 1 % or one point), `absolute` (the metric's own), `bytes` or `bits per weight`.
        confidence: of the certificate, in (0, 1).
        on: path of the task a loss is meant on; empty for the text of the run.
    """

    metric: str
    at_most: float
    unit: str
    confidence: float = 0.95
    on: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.at_most) and self.at_most > 0):
            raise InvalidBudget(
                f"{self.at_most:g} {self.unit} is not a limit",
                expected="a finite number above zero",
                mend="for example --lose 2%, --fit 120MB or --bits 4.5",
                site=self.metric,
            )
        if not 0 < self.confidence < 1:
            raise InvalidBudget(
                f"a confidence of {self.confidence:g} means nothing",
                expected="a number between 0 and 1, such as 0.95",
                mend="--confidence 0.95",
                site=self.metric,
            )

    @property
    def is_claim(self) -> bool:
        """Whether it limits a loss, which is certified, and not a size, which is counted."""
        return self.metric not in SIZES

    @property
    def margin(self) -> float:
        """The limit in the unit of the degradation: log(1 + at_most) nats per token for perplexity, else at_most."""
        if not self.is_claim:
            raise InvalidBudget(f"a budget on {self.metric} limits no degradation", site=self.metric)
        return math.log1p(self.at_most) if self.metric == "perplexity" else self.at_most

    @property
    def label(self) -> str:
        """As it is written after --lose, in one way only."""
        if not self.is_claim:
            where = " in memory" if self.metric == "memory" else ""
            megabytes = f"{self.at_most / 1e6:.12g} MB{where}"
            return megabytes if self.unit == "bytes" else f"{self.at_most:.12g} bits a weight"
        amount = f"{self.at_most:.12g}" if self.unit == "absolute" else f"{100 * self.at_most:.12g}%"
        return f"{self.metric}:{self.on} {amount}" if self.on else f"{self.metric} {amount}"

    @classmethod
    def lose(cls, text: str, *, confidence: float = 0.95) -> Budget:
        """Read `2%`, `perplexity 2%`, `kl 0.02`, `agreement 3%`, `accuracy:quiz.jsonl 1pt`.

        Without a metric it is the rise of the perplexity. `agreement 3%` allows 3 % of the choices to differ, and one
        `pt` is one point in a hundred.

        Raises:
            InvalidBudget: anything else, or an amount that is not above zero.
        """
        match = LOSS.fullmatch(text)
        number = _number(match["number"]) if match else None
        if match is None or number is None:
            raise InvalidBudget(
                f"cannot read {text!r} as a loss",
                expected="a metric, the file of its task after a colon, and an amount, such as 2%, kl 0.02, "
                "agreement 3% or accuracy:quiz.jsonl 1pt; without a metric, a rise of the perplexity",
                mend="--lose 2%",
                site="--lose",
            )
        metric = ALIASES.get(match["metric"] or "perplexity", match["metric"] or "perplexity")
        points = match["unit"] in ("pt", "pts", "points")
        value = number / (100 if match["unit"] else 1)
        if value <= 0:
            raise InvalidBudget(
                f"{text.strip()} is not a loss anyone can certify",
                expected="an amount above zero, such as 2%",
                mend="--lose 2%; for a lossless copy nothing needs to be certified",
                site="--lose",
            )
        if metric in SIZES or (metric == "perplexity" and (points or match["on"])):
            raise InvalidBudget(
                f"{text.strip()} is not a loss of {metric}",
                expected="sizes after --fit, --bits or --memory, and a rise of the perplexity of the run's text in %",
                mend="--lose 'perplexity 2%' --on test.txt",
                site="--lose",
            )
        unit = "ratio" if metric == "perplexity" else "share" if match["unit"] else "absolute"
        return cls(metric=metric, at_most=value, unit=unit, confidence=confidence, on=match["on"] or "")

    @classmethod
    def fit(cls, text: str, *, confidence: float = 0.95) -> Budget:
        """Read `120MB`, `1.5GiB` or a number of bytes.

        Raises:
            InvalidBudget: anything else, or a size that is not above zero.
        """
        return cls(metric="size", at_most=_size(text, "--fit"), unit="bytes", confidence=confidence)

    @classmethod
    def memory(cls, text: str, *, confidence: float = 0.95) -> Budget:
        """Read `200MB` of memory in the engine, as `fit` reads it.

        Raises:
            InvalidBudget: anything else, or a size that is not above zero.
        """
        return cls(metric="memory", at_most=_size(text, "--memory"), unit="bytes", confidence=confidence)


def _size(text: str, option: str) -> float:
    """Whole bytes."""
    match = re.fullmatch(r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*([A-Za-z]*)\s*", text)
    number = _number(match.group(1)) if match else None
    unit = match.group(2).upper() or "B" if match else ""
    if number is None or unit not in UNITS or not 0 < number * UNITS[unit] < math.inf:
        raise InvalidBudget(
            f"cannot read {text!r} as a size",
            expected=f"a number above zero and one of {', '.join(UNITS)}",
            mend=f"{option} 120MB",
            site=option,
        )
    return float(math.floor(number * UNITS[unit]))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """Two models scored on the same units, windows of a text or questions; paired, one number a unit and model.

    Args:
        metric: name of the metric.
        unit: of the scores, such as `nats per token`.
        reference: score of each unit under the reference model `[n]`.
        compressed: score of each unit under the compressed model `[n]`.
        drawn: index of each unit in its population `[n]`, in the order they were scored.
        documents: index of the document each unit belongs to `[n]`.
        tokens: scored positions per unit.
        fingerprint: hash of the population: text, tokenisation and windows, or questions.

    Raises:
        InvalidMeasurement: lengths differ, or a score is not finite.
    """

    metric: str
    unit: str
    reference: NDArray[np.float64]
    compressed: NDArray[np.float64]
    drawn: NDArray[np.int64]
    documents: NDArray[np.int64]
    tokens: int
    fingerprint: str

    def __post_init__(self) -> None:
        lengths = {len(self.reference), len(self.compressed), len(self.drawn), len(self.documents)}
        if len(lengths) != 1:
            raise InvalidMeasurement(
                f"scores of unequal lengths: {sorted(lengths)}",
                expected="one pair of scores a unit",
                site=self.metric,
            )
        if not (np.isfinite(self.reference).all() and np.isfinite(self.compressed).all()):
            raise InvalidMeasurement(
                "a score is NaN or infinite",
                expected="finite scores",
                mend="look at the first unit that fails: the model overflows on it, or its weights are damaged",
                site=self.metric,
            )

    @property
    def degradation(self) -> NDArray[np.float64]:
        """How much worse the compressed model is on each unit `[n]`; positive is worse."""
        return self.compressed - self.reference

    def take(self, chosen: NDArray[np.int64]) -> Measurement:
        """The same measurement on some of its units, in the order given (positions, not unit numbers)."""
        return Measurement(
            metric=self.metric, unit=self.unit, reference=self.reference[chosen], compressed=self.compressed[chosen],
            drawn=self.drawn[chosen], documents=self.documents[chosen], tokens=self.tokens,
            fingerprint=self.fingerprint,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What is fixed, from the selection split alone, before the certification split is opened.

    Args:
        margin: the claim is `mean degradation < margin`, in the unit of the degradation.
        cap: degradations are counted up to this much in each unit; > margin.
        pilot_mean: mean degradation per unit on the selection split.
        pilot_sd: its standard deviation.
        alpha: error level at which the margin is tested.
        tail_alpha: error level of the bound on the share of units above the cap; 0 where nothing can be above it.
        population: units in the certification split (scope corpus), or None (scopes source and asymptotic).
        n_max: units to score at most.
        floor: smallest degradation there can be, or None where nothing limits it; some bounds need it.
        bound_alpha: error level of the printed bound; below `alpha` where several bounds are to hold at once. None
            stands for `alpha`.
        scope: `corpus`, `source` or `asymptotic`.
    """

    margin: float
    cap: float
    pilot_mean: float
    pilot_sd: float
    alpha: float
    tail_alpha: float
    population: int | None
    n_max: int
    floor: float | None = None
    bound_alpha: float | None = None
    scope: str = "corpus"

    @property
    def printed_alpha(self) -> float:
        """Error level of the printed bound."""
        return self.alpha if self.bound_alpha is None else self.bound_alpha


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What one group of units lost.

    Args:
        group: its label.
        holds: whether the limit is certified for this group alone.
        scored: units of it that were scored.
        population: units of it there are (scope corpus), or None.
        estimate: their mean degradation.
        bound: upper bound of the group's mean; all bounds of one claim's slices hold at once.
        alone: upper bound of this group's mean alone, at the full error level; the largest over all groups bounds the
            worst group's mean.
    """

    group: str
    holds: bool
    scored: int
    population: int | None
    estimate: float
    bound: float
    alone: float


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One limit, judged.

    Args:
        budget: what was allowed.
        metric: what was measured.
        score_unit: of its scores, such as `nats per token`.
        holds: whether the limit is certified.
        verdict: `certified`, `exact` (every unit was scored), `futile`, `exhausted`, or `measured` (nothing claimed).
        scope: what the claim is about, in words.
        counted: what a unit is, in the plural: `windows` or `questions`.
        rule: name of the bound.
        anytime: whether the bound holds whenever scoring stopped, or only for the number of units fixed beforehand.
        terms: fixed before the certification split was opened.
        scored: units scored.
        estimate: mean degradation over the units scored, uncapped.
        bound: upper bound of the mean degradation, each unit counted up to the cap, at the level `printed_alpha`.
        log_wealth: log E of the betting process at the margin, certified when it reaches log(1/alpha); 0 for rules
            that do not bet.
        above_cap: units scored whose degradation exceeds the cap.
        tail_bound: upper bound of the share of units that exceed the cap.
        statement: the claim as a sentence.
        slices: the same bound group by group, if groups were asked for.
    """

    budget: Budget
    metric: str
    score_unit: str
    holds: bool
    verdict: str
    scope: str
    counted: str
    rule: str
    anytime: bool
    terms: Terms
    scored: int
    estimate: float
    bound: float
    log_wealth: float
    above_cap: int
    tail_bound: float
    statement: str
    slices: tuple[Slice, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Which opening of its text a certificate rests on.

    Args:
        number: 1 for the first time this text is used to certify anything.
        alpha: error level of this opening: of its gate, and of all its printed bounds together.
        spent: chance that the gate was opened wrongly in this opening or an earlier one, at most.
    """

    number: int
    alpha: float
    spent: float


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Claims about one pair of models, and everything needed to check them again.

    Args:
        claims: each limit with its bound.
        holds: whether every limit is certified.
        opening: which opening of its text this is, and the error level it leaves.
        noise_floor: by metric, how far the reference is from itself under another batch shape, thread count and dtype.
        fingerprints: hashes of model, artifact, text, plan, code.
        statement: all claims in words.
    """

    claims: tuple[Claim, ...]
    holds: bool
    opening: Opening
    noise_floor: Mapping[str, float]
    fingerprints: Mapping[str, str]
    statement: str

    @property
    def confidence(self) -> float:
        """At which all printed bounds hold together."""
        return 1 - self.opening.alpha
