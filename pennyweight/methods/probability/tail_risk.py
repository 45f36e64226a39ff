"""Importance sampling: the probability of a rare bad output, from samples of a model that makes it likely.

Source: Estimating Tail Risks in Language Model Output Distributions. 2026. arXiv:2604.22167; the rules for reading the
weights are common knowledge (Owen. Monte Carlo theory, methods and examples. 2013, chapter 9).
Departs from it: what it gives is called an estimate, and stands next to a bound from plain samples, which is the only
certificate. Without an upper limit of the weights on every bad output, seen or not, no number of weighted samples
excludes a bad output that the proposal never draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pennyweight.errors import InvalidMeasurement
from pennyweight.methods.probability.binomial import upper_bound
from pennyweight.methods.probability.checks import at_least, inside, same_length, sample
from pennyweight.numerics.random import derived_seed

ROUNDING = 1e-6  # a sum of float64 logarithms may exceed log 1 by its rounding
RESAMPLED = 1 << 20  # indices drawn at once


@dataclass(frozen=True, kw_only=True)
class TailEstimate:
    """What weighted samples say: unbiased, with no guarantee at any sample size.

    Args:
        value: mean of weight times badness.
        low: lower end of the bootstrap interval.
        high: upper end; too low when the worst outputs were never drawn.
        confidence: nominal, of the interval.
        samples: drawn from the proposal.
        bad: how many of them had a badness above zero.
        effective: (Σ w)^2 / Σ w^2, the number of plain samples the weights are worth for an event that is not rare.
        mean_weight: 1 in expectation; far from it, the proposal misses where the target goes.
        largest_share: of a single sample in the sum of weight times badness, in [0, 1].
        dominated: whether that share is above the limit: then the estimate rests on single samples.
        notes: reasons not to trust it, in words.
    """

    value: float
    low: float
    high: float
    confidence: float
    samples: int
    bad: int
    effective: float
    mean_weight: float
    largest_share: float
    dominated: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TailCertificate:
    """What plain samples prove: an exact upper bound of the mean badness.

    Args:
        bound: at most this, with the confidence.
        mean: of the badness seen.
        confidence: for a number of samples fixed beforehand.
        samples: drawn from the target itself.
        bad: how many had a badness above zero.
        rule: `clopper-pearson` for zeros and ones, `hoeffding` for scores between.
    """

    bound: float
    mean: float
    confidence: float
    samples: int
    bad: int
    rule: str


@dataclass(frozen=True, kw_only=True)
class ImportanceSampling:
    """Estimate the mean badness under a target from samples of a proposal; certify it from samples of the target.

    Args:
        resamples: of the bootstrap, 1 or more.
        confidence: of the bootstrap interval (two-sided) and of the certificate (one-sided), in (0, 1).
        warn_share: share of a single sample in the estimate above which it is called dominated, in (0, 1).
    """

    name: ClassVar[str] = "importance-sampling"
    paper: ClassVar[str] = "arXiv:2604.22167"
    needs: ClassVar[frozenset[str]] = frozenset()
    resamples: int = 1000
    confidence: float = 0.95
    warn_share: float = 0.1

    def __post_init__(self) -> None:
        at_least(self.resamples, "resamples", self.name, least=1)
        inside(self.confidence, "confidence", self.name, low=0.0, high=1.0)
        inside(self.warn_share, "warn_share", self.name, low=0.0, high=1.0)

    def estimate(
        self, log_target: ArrayLike, log_proposal: ArrayLike, badness: ArrayLike, *, seed: int | str = 0
    ) -> TailEstimate:
        """The mean badness under the target, from independent samples of the proposal.

        Args:
            log_target: log-probability of each whole output under the target, in nats `[n]`; -inf for one that it
                never gives.
            log_proposal: the same under the proposal it was drawn from `[n]`. What is common to both may be left out.
            badness: of each output, in [0, 1] `[n]`.
            seed: of the bootstrap.

        Raises:
            InvalidMeasurement: fewer than two samples, unequal lengths, NaN, log-probabilities above 0, a badness
                outside [0, 1], an output of proposal probability zero, or weights beyond float64.
        """
        p = sample(log_target, "target log-probabilities", self.name, high=ROUNDING, least=2)
        q = sample(log_proposal, "proposal log-probabilities", self.name, low=-1e300, high=ROUNDING, least=2)
        h = sample(badness, "badness scores", self.name, low=0.0, high=1.0, least=2)
        same_length(self.name, target=p, proposal=q, badness=h)
        with np.errstate(over="ignore"):
            w = np.exp(p - q)
            total = float(w @ w)
        if not np.isfinite(total):
            raise InvalidMeasurement(
                f"a weight of exp({float((p - q).max()):.0f})",
                expected="a proposal that gives every output of the target a probability of similar size",
                mend="mix the target into the proposal (a smaller `mix`, an earlier `switch`)",
                site=self.name,
            )
        parts = w * h
        means = self._bootstrap(parts, seed)
        side = (1 - self.confidence) / 2
        value, bad = float(parts.mean()), int((h > 0).sum())
        share = float(parts.max() / parts.sum()) if value > 0 else 0.0
        return TailEstimate(
            value=value, low=float(np.quantile(means, side)), high=float(np.quantile(means, 1 - side)),
            confidence=self.confidence, samples=len(w), bad=bad,
            effective=float(w.sum()) ** 2 / total if total else 0.0, mean_weight=float(w.mean()), largest_share=share,
            dominated=share > self.warn_share, notes=self._notes(w, bad, share),
        )  # fmt: skip

    def certify(self, badness: ArrayLike) -> TailCertificate:
        """Upper bound of the mean badness, from independent samples of the target itself.

        Args:
            badness: of each output, in [0, 1] `[n]`; their number was fixed beforehand.

        Raises:
            InvalidMeasurement: no samples, NaN, or a badness outside [0, 1].
        """
        h = sample(badness, "badness scores", self.name, low=0.0, high=1.0)
        bound, rule = upper_bound(h, self.confidence)
        return TailCertificate(
            bound=bound, mean=float(h.mean()), confidence=self.confidence, samples=len(h), bad=int((h > 0).sum()),
            rule=rule,
        )  # fmt: skip

    def _bootstrap(self, parts: NDArray[np.float64], seed: int | str) -> NDArray[np.float64]:
        """Means of samples drawn again with replacement `[resamples]`."""
        draw = np.random.Generator(np.random.PCG64(derived_seed(seed, self.name)))
        rows = max(1, RESAMPLED // len(parts))
        means = [
            parts[draw.integers(len(parts), size=(min(rows, self.resamples - start), len(parts)))].mean(axis=1)
            for start in range(0, self.resamples, rows)
        ]
        return np.concatenate(means)

    def _notes(self, w: NDArray[np.float64], bad: int, share: float) -> tuple[str, ...]:
        notes = []
        if bad == 0:
            notes.append(
                "no bad output was drawn: the estimate and its interval say nothing, only the certificate does"
            )
        if share > self.warn_share:
            notes.append(f"a single sample makes up {share:.0%} of the estimate")
        error = float(w.std(ddof=1)) / len(w) ** 0.5
        if abs(float(w.mean()) - 1) > 4 * error + 1e-9:
            notes.append(f"the mean weight is {w.mean():.3g} and not 1: the proposal misses much of the target")
        return tuple(notes)
