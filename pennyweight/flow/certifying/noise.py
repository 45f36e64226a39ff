"""How far a model is from itself: what another batch shape, thread count or dtype does to its scores.

Sums of floats depend on how the work was cut, and engines round where we do not. A difference that any of these makes
is no loss of a compressed model, so nobody can claim to lose less: margins below it are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pennyweight.corpus import Windows
from pennyweight.errors import InvalidMeasurement, InvalidWeights
from pennyweight.flow.journal import Journal
from pennyweight.flow.measure import ROWS, runner_of, token_metrics
from pennyweight.flow.progress import QUIET, Advance, Progress
from pennyweight.network.network import Network
from pennyweight.network.running.stream import CHUNK_TOKENS, Stream

PIECE = "noise-floor.json"
WINDOWS = 4  # a thousand tokens: a floor to one digit, for a few seconds

Finish = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NoiseFloor:
    """Mean degradation of a model against itself, by what was changed.

    Args:
        by_variant: `batch`, `threads` and the name of a 16-bit dtype, each with the mean degradation of every metric.
        windows: on how many it was measured.
    """

    by_variant: Mapping[str, Mapping[str, float]]
    windows: int

    @property
    def floor(self) -> dict[str, float]:
        """The largest size of any of them, by metric."""
        names = {name for scores in self.by_variant.values() for name in scores}
        return {name: max(abs(scores[name]) for scores in self.by_variant.values()) for name in sorted(names)}


def noise_floor(
    reference: Network,
    windows: Windows,
    journal: Journal | None = None,
    progress: Progress = QUIET,
    *,
    count: int = WINDOWS,
    metrics: Sequence[Any] | None = None,
) -> dict[str, float]:
    """By metric, the largest degradation that another way to compute the same model shows; see `measure_noise`."""
    return measure_noise(reference, windows, journal, progress, count=count, metrics=metrics).floor


def measure_noise(
    reference: Network,
    windows: Windows,
    journal: Journal | None = None,
    progress: Progress = QUIET,
    *,
    count: int = WINDOWS,
    metrics: Sequence[Any] | None = None,
) -> NoiseFloor:
    """Score a model against itself: one window at a time, with another number of threads, and in a 16-bit dtype.

    The 16-bit dtype is float16 if most weights of the file are, else bfloat16; and bfloat16 where float16 overflows.
    Weights and activations are in it, the log-probabilities in float32. A model that only an engine can run has no
    variant but the batch.

    Args:
        reference: the model.
        windows: the first `count` are used.
        journal: where the result is kept for a run that goes on; None to keep nothing.
        progress: told about every variant.
        count: windows, >= 1.
        metrics: to score with; by default every metric that reads tokens.

    Raises:
        InvalidMeasurement: no window, windows of one token, or a model that gives NaN.
    """
    if journal is not None and journal.has(PIECE):
        kept = journal.load(PIECE)
        return NoiseFloor(kept["by_variant"], kept["windows"])
    ids = windows.ids[:count]
    if len(ids) == 0 or ids.shape[1] < 2:
        raise InvalidMeasurement(
            f"{len(ids)} windows of {windows.length} tokens show no noise", expected="windows of two tokens or more",
            mend="give more text", site="noise floor",
        )  # fmt: skip
    with progress.stage("measuring the noise floor", 4) as advance, torch.no_grad():
        found = _measure(reference, ids, metrics or token_metrics(), advance)
    if journal is not None:
        journal.save(PIECE, asdict(found))
    return found


def _measure(reference: Network, ids: Tensor, metrics: Sequence[Any], advance: Advance) -> NoiseFloor:
    runner = runner_of(reference)
    usual = runner.forward(ids)
    advance(1)
    threads = torch.get_num_threads()
    other = 1 if threads > 1 else 2
    states: dict[str, Tensor] = {}
    rounded: Stream | None = None
    if isinstance(runner, Stream):
        # One window at a time; where windows are so long that this is the usual way, two.
        alone = ids.shape[1] if ids.shape[1] <= CHUNK_TOKENS // 2 else 2 * ids.shape[1]
        states["batch"] = Stream(reference, chunk_tokens=alone).forward(ids)
        advance(1)
        with _threads(other):
            states["threads"] = runner.forward(ids)
        advance(1)
        rounded, states["dtype"] = _rounded(reference, ids)
        advance(1)
    else:
        states["batch"] = torch.cat([runner.forward(window) for window in torch.split(ids, 1)])
    sums = {variant: dict.fromkeys([metric.name for metric in metrics], 0.0) for variant in states}
    with ExitStack() as stack:
        finish = stack.enter_context(runner.end())
        ends: dict[str, Finish] = {"batch": _in_halves(finish), "threads": _with_threads(finish, other)}
        if rounded is not None:
            ends["dtype"] = stack.enter_context(rounded.end())
        for window in range(len(ids)):
            for row in range(0, ids.shape[1] - 1, ROWS):
                rows = slice(row, min(row + ROWS, ids.shape[1] - 1))
                labels = ids[window, rows.start + 1 : rows.stop + 1]
                p = finish(usual[window, rows]).log_softmax(-1)
                for variant, hidden in states.items():
                    q = ends[variant](hidden[window, rows]).float().log_softmax(-1)
                    if torch.equal(p, q):
                        continue  # often so for batch and threads; metrics cost as much as a forward pass
                    for metric in metrics:
                        before, after = metric.measure(p, q, labels)
                        sums[variant][metric.name] += float((after - before).double().sum())
    positions = len(ids) * (ids.shape[1] - 1)
    names = {"dtype": "" if rounded is None else str(rounded.dtype).removeprefix("torch.")}
    means = {
        names.get(variant, variant): {name: total / positions for name, total in scores.items()}
        for variant, scores in sums.items()
    }
    _check_finite(means, reference)
    return NoiseFloor(means, len(ids))


def _rounded(reference: Network, ids: Tensor) -> tuple[Stream, Tensor]:
    """The model in 16 bits, and its states in it `[n, length, size]`."""
    counts = {"float16": 0, "bfloat16": 0}
    for info in reference.source.tensors.values():
        counts[info.dtype] = counts.get(info.dtype, 0) + info.bytes
    if max(counts, key=lambda dtype: counts[dtype]) == "float16":
        runner = Stream(reference, dtype=torch.float16)
        try:
            states = runner.forward(ids)
        except InvalidWeights:  # a weight beyond 65504
            states = torch.tensor(torch.nan)
        if bool(torch.isfinite(states).all()):
            return runner, states
    # Everything else, and models whose activations leave the range of float16: bfloat16 has that of float32.
    runner = Stream(reference, dtype=torch.bfloat16)
    return runner, runner.forward(ids)


def _check_finite(means: Mapping[str, Mapping[str, float]], reference: Network) -> None:
    for variant, scores in means.items():
        bad = [name for name, value in scores.items() if not abs(value) < torch.inf]
        if bad:
            raise InvalidMeasurement(
                f"{bad[0]} of the model against itself ({variant}) is NaN or infinite", expected="finite scores",
                mend="look at the first windows of the text: the model overflows on them",
                site=str(reference.source.path),
            )  # fmt: skip


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _with_threads(finish: Finish, count: int) -> Finish:
    def run(states: Tensor) -> Tensor:
        with _threads(count):
            return finish(states)

    return run


def _in_halves(finish: Finish) -> Finish:
    """The same logits from two products with half the positions each."""

    def run(states: Tensor) -> Tensor:
        return torch.cat([finish(part) for part in states.tensor_split(2) if len(part)])

    return run
