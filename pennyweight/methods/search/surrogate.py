"""What measured choices say about options nobody measured: predicted damages, corrected by a Gaussian process.

The KL of a choice is taken as the sum of the predicted damages of its options, each times a factor near one common
value. What is not known of the factors is a Gaussian process: options of one kind of site, of one step, of neighbouring
groups err together, and each has something of its own. That is Bayesian linear regression on the measured choices, with
a closed form (Rasmussen, Williams. Gaussian Processes for Machine Learning. MIT Press 2006, chapter 2); a function of
the factors is drawn by Matheron's rule (Wilson et al. Efficiently Sampling Functions from Gaussian Process Posteriors.
arXiv:2002.09309). What does not add up is noise to it, in proportion to what was measured, and a choice that all others
speak against is believed less; scale and noise are those of the greatest evidence, given what they usually are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from pennyweight.plan import Option
from pennyweight.problem import Choice, Table

Floats = NDArray[np.float64]

REACH = 0.15  # of all groups in their order, over which neighbours err together
SHARES = (0.25, 0.25, 0.25, 0.25)  # of the variance of factors: kind of site, step, neighbourhood, own
COMMON = 1.0  # standard deviation of what all factors have in common, beside the scale of the first measurement
SPREADS = (0.1, 0.2, 0.4, 0.8)  # standard deviations of factors that are tried
NOISES = (0.005, 0.01, 0.02, 0.04, 0.08)  # relative errors of a measured sum that are tried
USUAL, DOUBT = (0.4, 0.05), 0.7  # what both are before anything was measured, and how far off in logarithm
NOTHING = 1e-9  # nats; a measured KL is counted as at least this
FAR, PASSES = 3.0, 2  # standard deviations beyond which a measurement is doubted, and how often that is looked at
LEAST = 0.05  # of the common factor: a damage stays a damage


@dataclass(eq=False)
class Surrogate:
    """Damages of all options, learnt from choices.

    Args:
        table: of options with predicted damages.
        choices: measured.
        scores: their KL, nats per token.
    """

    table: Table
    choices: list[Choice] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._damages = np.array([option.damage for row in self.table for option in row])
        self._first = np.concatenate([[0], np.cumsum([len(row) for row in self.table])])
        self._shape = _correlations(self.table)
        self._root: Floats | None = None

    def learn(self, choices: Sequence[Choice], scores: Sequence[float]) -> None:
        """Take measured choices in; one measured twice counts once, with the last score."""
        for choice, score in zip(choices, scores, strict=True):
            if choice in self.choices:
                self.scores[self.choices.index(choice)] = score
            else:
                self.choices.append(choice)
                self.scores.append(score)
        self._fit()

    def _fit(self) -> None:
        y, phi = np.maximum(np.array(self.scores), NOTHING), self._features(self.choices)
        sums = phi.sum(1)
        told = sums > 0  # a choice without predicted damage says nothing of the scale
        self.scale = float(np.median(y[told] / sums[told])) if told.any() else 1.0
        self._phi, self._residual, self._root = phi, y / self.scale - phi.sum(1), None
        doubted = np.ones(len(y))
        self._choose(y / self.scale)
        for _ in range(PASSES):
            inverse = cho_solve(self._factor, np.eye(len(y)))
            # What the others say of each choice, against what was measured: far off, it does not add up, and says less.
            surprise = np.abs(cho_solve(self._factor, self._residual)) / np.sqrt(np.diag(inverse))
            doubted = np.where(surprise > FAR, doubted * surprise / FAR, doubted)
            self._choose(doubted * y / self.scale)

    def _choose(self, errors: Floats) -> None:
        """Spread and noise of the greatest evidence, for errors up to a factor."""
        best: tuple[float, float, float] | None = None
        for spread, noise in itertools.product(SPREADS, NOISES):
            signal = self._phi @ self._prior(spread) @ self._phi.T
            found = _evidence(signal, self._residual, noise * errors)
            found -= (np.log(spread / USUAL[0]) ** 2 + np.log(noise / USUAL[1]) ** 2) / (2 * DOUBT**2)
            if best is None or found > best[0]:
                best = (found, spread, noise)
        assert best is not None
        _, self.spread, self.noise = best
        self._covariance, self._errors = self._prior(self.spread), self.noise * errors
        self._gain = self._phi @ self._covariance
        gram = self._gain @ self._phi.T + np.diag(self._errors**2)
        self._factor = cho_factor(gram + 1e-12 * np.trace(gram) / len(gram) * np.eye(len(gram)))

    def predict(self, choice: Choice) -> tuple[float, float]:
        """Mean and standard deviation of the KL of a choice, what does not add up included."""
        phi = self._features([choice])
        across = self._gain @ phi[0]
        mean = float(phi.sum() + across @ cho_solve(self._factor, self._residual))
        variance = float(phi[0] @ self._covariance @ phi[0] - across @ cho_solve(self._factor, across))
        return self.scale * mean, self.scale * float(np.sqrt(max(variance, 0.0) + (self.noise * mean) ** 2))

    def mean(self) -> tuple[tuple[Option, ...], ...]:
        """The table with the damages now believed."""
        return self._table(self._gain.T @ cho_solve(self._factor, self._residual))

    def drawn(self, rng: np.random.Generator) -> tuple[tuple[Option, ...], ...]:
        """The table with damages drawn from what they may be."""
        if self._root is None:
            size = len(self._covariance)
            self._root = np.linalg.cholesky(self._covariance + 1e-9 * np.trace(self._covariance) / size * np.eye(size))
        prior = self._root @ rng.standard_normal(len(self._root))
        noise = self._errors * rng.standard_normal(len(self._errors))
        return self._table(prior + self._gain.T @ cho_solve(self._factor, self._residual - self._phi @ prior - noise))

    def _table(self, factors: Floats) -> tuple[tuple[Option, ...], ...]:
        damages = self.scale * self._damages * np.maximum(1 + factors, LEAST)
        return tuple(
            tuple(replace(option, damage=float(damages[self._first[g] + i])) for i, option in enumerate(row))
            for g, row in enumerate(self.table)
        )

    def _features(self, choices: Sequence[Choice]) -> Floats:
        """Predicted damages of the options chosen, `[choices, options]`."""
        phi = np.zeros((len(choices), len(self._damages)))
        for row, choice in zip(phi, choices, strict=True):
            places = self._first[:-1] + np.array(choice)
            row[places] = self._damages[places]
        return phi

    def _prior(self, spread: float) -> Floats:
        return spread**2 * self._shape + COMMON**2


def _evidence(signal: Floats, residual: Floats, noise: Floats) -> float:
    """Log density of the residuals."""
    gram = signal + np.diag(noise**2)
    factor = cho_factor(gram + 1e-12 * np.trace(gram) / len(gram) * np.eye(len(gram)))
    log_det = 2 * float(np.log(np.diag(factor[0])).sum())
    return -0.5 * (float(residual @ cho_solve(factor, residual)) + log_det)


def _correlations(table: Table) -> Floats:
    """How options err together, `[options, options]`, ones on the diagonal."""
    flat = [(g, option) for g, row in enumerate(table) for option in row]
    kinds = [tuple(name.rpartition(".")[2] for name in option.sites) for _, option in flat]
    steps = [option.step.label() for _, option in flat]
    place = np.array([g for g, _ in flat]) / max(1, len(table))
    same_kind = np.array([[a == b for b in kinds] for a in kinds], dtype=float)
    same_step = np.array([[a == b for b in steps] for a in steps], dtype=float)
    near = np.exp(-(((place[:, None] - place[None, :]) / REACH) ** 2))
    parts = (same_kind, same_step, near, np.eye(len(flat)))
    return sum((share * part for share, part in zip(SHARES, parts, strict=True)), np.zeros_like(near))
