"""Calibration of the next-token probabilities before and after, and the temperature that repairs it.

Source: Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. ICML 2017. arXiv:1706.04599.
The most likely token at every position and how often it is right; 16 rows of the whole vocabulary are in memory at
once, and the states of the few windows that the temperature is fitted on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pennyweight.corpus import Windows
from pennyweight.errors import InvalidMeasurement
from pennyweight.flow.journal import Journal
from pennyweight.flow.measure import Runner, check_same_tokens, runner_of, tokens_at_once
from pennyweight.flow.profiling.bounds import clustered
from pennyweight.flow.profiling.values import Calibration
from pennyweight.flow.progress import Advance, Progress
from pennyweight.methods.probability import CalibrationError, ExpectedCalibrationError, TemperatureScaling
from pennyweight.network.network import Network
from pennyweight.numerics.random import permutation

MOST = 8192  # tokens at most, those for the temperature included
ROWS = 16  # positions whose probabilities of the whole vocabulary are in memory at once, in float64 and several times
FIT = 2048  # of them for the temperature at most; a quarter where there are few


@dataclass(eq=False)
class _Seen:
    """What one model said at the positions reported on; grows as windows are scored."""

    confidence: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)
    loss: float = 0.0
    brier: list[float] = field(default_factory=list)  # one number a window

    def add(self, logits: Tensor, labels: Tensor) -> float:
        """Take rows of logits `[rows, vocabulary]` with the true next tokens `[rows]`; return their Brier sum."""
        scores = logits.float().log_softmax(-1)
        best = scores.max(-1)
        own = scores.gather(1, labels[:, None])[:, 0]
        self.confidence.append(best.values.exp().clamp(max=1))
        self.right.append(best.indices == labels)
        self.loss -= float(own.double().sum())
        # half the sum of squares over the vocabulary, as Brier().score, without its float64 copies of every row
        return float((scores.exp().square().sum(-1) - 2 * own.exp() + 1).double().sum() / 2)

    @property
    def positions(self) -> int:
        """Positions seen so far."""
        return sum(map(len, self.right))

    def error(self, seed: int) -> CalibrationError:
        """Expected calibration error with its reliability curve."""
        confidence, right = torch.cat(self.confidence).double().numpy(), torch.cat(self.right).double().numpy()
        return ExpectedCalibrationError().measure(confidence, right, seed=seed)


@torch.no_grad()
def calibration(
    reference: Network, compressed: Network, windows: Windows, order: NDArray[np.int64], confidence: float, seed: int,
    advance: Advance = lambda _=1: None,
) -> Calibration | None:  # fmt: skip
    """Compare how far both models' confidence is from their accuracy, on some of the windows.

    Args:
        reference: network before.
        compressed: network after.
        windows: the text.
        order: windows that may be used.
        confidence: of the interval of the Brier difference.
        seed: of the choice of windows.
        advance: told about every window.

    Returns:
        None with fewer than two windows, or windows of a single token: one must be fitted on, another reported on.
    """
    chosen = order[permutation(len(order), seed, "calibration", windows.fingerprint)[: most(windows)]]
    if len(chosen) < 2 or windows.length < 2:
        return None
    fit = max(1, min(FIT // windows.length, len(chosen) // 4))
    before, after = runner_of(reference), runner_of(compressed)
    temperature, note = _temperature(after, windows.ids[np.sort(chosen[:fit])])
    advance(fit)
    report = np.sort(chosen[fit:])
    seen = {"before": _Seen(), "after": _Seen(), "repaired": _Seen()}
    step = max(1, min(tokens_at_once(reference), tokens_at_once(compressed)) // windows.length)
    for start in range(0, len(report), step):
        ids = windows.ids[report[start : start + step]]
        states = before.forward(ids), after.forward(ids)
        with before.end() as finish_before, after.end() as finish_after:
            for window in range(len(ids)):
                sums = dict.fromkeys(seen, 0.0)
                for rows, labels in _rows(ids[window]):
                    p, q = finish_before(states[0][window, rows]), finish_after(states[1][window, rows])
                    check_same_tokens(p, q, compressed)
                    sums["before"] += seen["before"].add(p, labels)
                    sums["after"] += seen["after"].add(q, labels)
                    if temperature is not None:
                        sums["repaired"] += seen["repaired"].add(q / temperature, labels)
                for name, total in sums.items():
                    seen[name].brier.append(total / (windows.length - 1))
                advance(1)
    brier = np.array(seen["after"].brier) - np.array(seen["before"].brier)
    documents = clustered(brier, windows.documents.numpy()[report], confidence)
    count = seen["before"].positions
    return Calibration(
        windows=len(report), fitted_windows=fit, positions=count, before=seen["before"].error(seed),
        after=seen["after"].error(seed), repaired=None if temperature is None else seen["repaired"].error(seed),
        brier=float(brier.mean()), brier_interval=documents.interval, temperature=temperature,
        loss_before=seen["before"].loss / count, loss_after=seen["after"].loss / count,
        loss_repaired=None if temperature is None else seen["repaired"].loss / count,
        note="; ".join(filter(None, (note, documents.note))),
    )  # fmt: skip


def most(windows: Windows) -> int:
    """Windows that are looked at, if there are as many."""
    return max(2, MOST // windows.length)


def calibrate(
    reference: Network, compressed: Network, windows: Windows, confidence: float, seed: int, journal: Journal,
    piece: str, progress: Progress,
) -> Calibration | None:  # fmt: skip
    """The calibration on a whole selection split, kept in the journal of a run; see `calibration`."""
    if not journal.has(piece):
        order = np.arange(len(windows), dtype=np.int64)
        with progress.stage("checking probabilities", min(len(windows), most(windows))) as advance:
            journal.save(piece, calibration(reference, compressed, windows, order, confidence, seed, advance))
    return msgspec.convert(journal.load(piece), Calibration | None)


def _temperature(runner: Runner, ids: Tensor) -> tuple[float | None, str]:
    """The temperature that fits the true next tokens of some windows best, or why there is none.

    The states of these windows are kept; their logits are made again for every step of Newton's method.
    """
    states = runner.forward(ids)

    def chunks() -> Iterator[tuple[Any, Any]]:
        with runner.end() as finish:
            for window in range(len(ids)):
                for rows, labels in _rows(ids[window]):
                    yield finish(states[window, rows]), labels

    try:
        return TemperatureScaling(tolerance=1e-6).fit_streaming(chunks), ""
    except InvalidMeasurement as error:
        return None, f"no temperature: {error.happened}"


def _rows(ids: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Positions of one window, a few at a time, with the tokens that follow them; the last token has none."""
    for row in range(0, len(ids) - 1, ROWS):
        rows = slice(row, min(row + ROWS, len(ids) - 1))
        yield rows, ids[rows.start + 1 : rows.stop + 1]
