"""What the user allows, what was measured, and what is claimed: the three values a certificate is made of."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pennyweight.errors import InvalidBudget, InvalidMeasurement

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One limit. `metric` says of what, and `unit` in what.

    Args:
        metric: `perplexity` (a relative rise, 0.02 is 2 %), `size` (bytes on disk) or `bits` (stored bits per weight).
        at_most: the limit.
        unit: `ratio`, `bytes` or `bits per weight`.
        confidence: of the certificate, in (0, 1).
    """

    metric: str
    at_most: float
    unit: str
    confidence: float = 0.95

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
    def margin(self) -> float:
        """The limit in nats per token, for a perplexity budget: log(1 + at_most)."""
        if self.metric != "perplexity":
            raise InvalidBudget(f"a budget on {self.metric} has no margin in nats", site=self.metric)
        return math.log1p(self.at_most)

    @classmethod
    def lose(cls, text: str, *, confidence: float = 0.95) -> Budget:
        """Read `2%` or `0.02`, optionally after the word `perplexity`.

        Raises:
            InvalidBudget: anything else, or a share that is not above zero.
        """
        match = re.fullmatch(r"\s*(?:perplexity\s+)?([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(%?)\s*", text)
        number = _number(match.group(1)) if match else None
        if match is None or number is None:
            raise InvalidBudget(
                f"cannot read {text!r} as a loss",
                expected="a rise of the perplexity, such as 2% or 0.02",
                mend="--lose 2%",
                site="--lose",
            )
        value = number / (100 if match.group(2) else 1)
        if value <= 0:
            raise InvalidBudget(
                f"{text.strip()} is not a loss anyone can certify",
                expected="a rise of the perplexity above zero, such as 2%",
                mend="--lose 2%; for a lossless copy nothing needs to be certified",
                site="--lose",
            )
        return cls(metric="perplexity", at_most=value, unit="ratio", confidence=confidence)

    @classmethod
    def fit(cls, text: str, *, confidence: float = 0.95) -> Budget:
        """Read `120MB`, `1.5GiB` or a number of bytes.

        Raises:
            InvalidBudget: anything else, or a size that is not above zero.
        """
        match = re.fullmatch(r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*([A-Za-z]*)\s*", text)
        number = _number(match.group(1)) if match else None
        unit = match.group(2).upper() or "B" if match else ""
        if number is None or unit not in UNITS or not 0 < number * UNITS[unit] < math.inf:
            raise InvalidBudget(
                f"cannot read {text!r} as a size",
                expected=f"a number above zero and one of {', '.join(UNITS)}",
                mend="--fit 120MB",
                site="--fit",
            )
        return cls(metric="size", at_most=float(math.floor(number * UNITS[unit])), unit="bytes", confidence=confidence)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """Two models scored on the same windows of the same text; paired, one number a window and model.

    Args:
        metric: `perplexity` (loss), `kl` or `disagreement`.
        unit: of the scores, such as `nats per token`.
        reference: score of each window under the reference model `[n]`.
        compressed: score of each window under the compressed model `[n]`.
        windows: index of each window in its text `[n]`, in the order they were scored.
        documents: index of the document each window starts in `[n]`.
        tokens: scored positions per window.
        fingerprint: hash of text, tokenisation and windows.

    Raises:
        InvalidMeasurement: lengths differ, or a score is not finite.
    """

    metric: str
    unit: str
    reference: NDArray[np.float64]
    compressed: NDArray[np.float64]
    windows: NDArray[np.int64]
    documents: NDArray[np.int64]
    tokens: int
    fingerprint: str

    def __post_init__(self) -> None:
        lengths = {len(self.reference), len(self.compressed), len(self.windows), len(self.documents)}
        if len(lengths) != 1:
            raise InvalidMeasurement(
                f"scores of unequal lengths: {sorted(lengths)}",
                expected="one pair of scores a window",
                site=self.metric,
            )
        if not (np.isfinite(self.reference).all() and np.isfinite(self.compressed).all()):
            raise InvalidMeasurement(
                "a score is NaN or infinite",
                expected="finite scores",
                mend="look at the first window that fails: the model overflows on it, or its weights are damaged",
                site=self.metric,
            )

    @property
    def degradation(self) -> NDArray[np.float64]:
        """How much worse the compressed model is on each window `[n]`; positive is worse."""
        return self.compressed - self.reference

    def take(self, chosen: NDArray[np.int64]) -> Measurement:
        """The same measurement on some of its windows, in the order given (positions, not window numbers)."""
        return Measurement(
            metric=self.metric, unit=self.unit, reference=self.reference[chosen], compressed=self.compressed[chosen],
            windows=self.windows[chosen], documents=self.documents[chosen], tokens=self.tokens,
            fingerprint=self.fingerprint,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What is fixed, from the selection split alone, before the certification split is opened.

    Args:
        margin: the claim is `mean degradation < margin`, in nats per token (or the metric's unit).
        cap: degradations are counted up to this much per window; > margin.
        pilot_mean: mean degradation per window on the selection split.
        pilot_sd: its standard deviation.
        alpha: error level of the capped mean.
        tail_alpha: error level of the bound on the share of windows above the cap.
        population: windows in the certification split (scope S1, corpus), or None (scope S2, source).
        n_max: windows to score at most.
    """

    margin: float
    cap: float
    pilot_mean: float
    pilot_sd: float
    alpha: float
    tail_alpha: float
    population: int | None
    n_max: int


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A claim, its bound, and everything needed to check it again.

    Args:
        budget: what was allowed.
        holds: whether the claim is certified.
        verdict: `certified`, `exact` (every window was scored), `futile`, `exhausted`, or `measured` (nothing claimed).
        scope: what the claim is about, in words.
        rule: name of the bound.
        terms: fixed before the certification split was opened.
        scored: windows scored.
        estimate: mean degradation over the windows scored, nats per token, uncapped.
        bound: upper bound of the capped mean degradation, at the confidence of `terms.alpha`.
        log_wealth: log E of the betting process at the margin; certified when it reaches log(1/alpha).
        above_cap: windows scored whose degradation exceeds the cap.
        tail_bound: upper bound of the share of windows that exceed the cap.
        fingerprints: hashes of model, artifact, text, plan, code.
        statement: the claim as a sentence.
    """

    budget: Budget
    holds: bool
    verdict: str
    scope: str
    rule: str
    terms: Terms
    scored: int
    estimate: float
    bound: float
    log_wealth: float
    above_cap: int
    tail_bound: float
    statement: str
    fingerprints: Mapping[str, str] = field(default_factory=dict)
