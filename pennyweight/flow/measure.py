"""Score two models on the same windows: the same token ids, the same arithmetic, one block in memory.

A network whose weights we can read runs block by block in float32. One that only an engine can run (an ONNX file) is
run by that engine, in its own arithmetic: that is what its users get, so that is what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pennyweight import catalogue
from pennyweight.budget import Measurement
from pennyweight.corpus import Windows
from pennyweight.errors import InvalidMeasurement
from pennyweight.flow.journal import Journal
from pennyweight.flow.progress import QUIET, Advance, Progress
from pennyweight.network.network import Network
from pennyweight.network.running.onnx import LOGIT_TOKENS, OnnxRunner, OnnxSource
from pennyweight.network.running.stream import Stream

BATCH_TOKENS = 4096  # scored with each block's weights read once
ROWS = 64  # positions whose log-probabilities of the whole vocabulary are in memory at once


class Runner(Protocol):
    """Runs a network on token ids, in two halves: states are smaller than logits and may be kept."""

    @property
    def network(self) -> Network:
        """What is run."""
        ...

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids `[n, length]` to states `[n, length, size]`."""
        ...

    def end(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Yields states of single positions `[positions, size]` to logits `[positions, vocabulary]`."""
        ...


def runner_of(network: Network) -> Runner:
    """What runs a network: block by block where we hold its weights, otherwise the engine its file is for.

    Raises:
        MissingExtra: that engine is not installed.
        InvalidModel: the file is not a causal language model that can be fed token ids.
    """
    return OnnxRunner(network) if isinstance(network.source, OnnxSource) else Stream(network)


def tokens_at_once(network: Network) -> int:
    """Tokens scored in one go: few where the states are logits, which are a hundred times larger."""
    return LOGIT_TOKENS if isinstance(network.source, OnnxSource) else BATCH_TOKENS


def windows_at_once(network: Network, windows: Windows) -> int:
    """Windows scored in one go."""
    return max(1, tokens_at_once(network) // windows.ids.shape[1])


@dataclass(frozen=True, eq=False)
class ReferenceStates:
    """Last hidden states of the reference model, one file a batch, kept for every candidate.

    They take a thousandth of what its log-probabilities would, and give the very same numbers.

    Args:
        journal: where they lie.
        key: folder in it; contains the hashes of model and windows.
    """

    journal: Journal
    key: str
    _where: dict[int, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for path in sorted((self.journal.directory / self.key).glob("*.safetensors")):
            piece = f"{self.key}/{path.name}"
            for window in self.journal.facts(piece):
                self._where[int(window)] = piece

    def get(self, wanted: Sequence[int], windows: Windows, runner: Runner) -> Tensor:
        """States of some windows `[n, length, size]`; those nobody asked for before are computed in one batch."""
        # A batch is written at once or not at all, so a resumed run computes in the same batches, to the same bits.
        missing = [window for window in wanted if window not in self._where]
        if missing:
            states = runner.forward(windows.ids[missing])
            piece = f"{self.key}/{missing[0]:06d}.safetensors"
            tensors = {str(window): state for window, state in zip(missing, states, strict=True)}
            self.journal.save_tensors(piece, tensors, missing)
            self._where.update(dict.fromkeys(missing, piece))
        loaded = {piece: self.journal.load_tensors(piece) for piece in {self._where[window] for window in wanted}}
        return torch.stack([loaded[self._where[window]][str(window)] for window in wanted])


@dataclass(eq=False)
class Scorer:
    """Scores a compressed model against a reference.

    Args:
        reference: network before.
        compressed: network after, read from the files a user would ship.
        windows: text, as token ids.
        states: of the reference; shared between candidates.
        metrics: what to compute; by default every metric of the catalogue that reads tokens.
    """

    reference: Network
    compressed: Network
    windows: Windows
    states: ReferenceStates | None = None
    metrics: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        self._before, self._after = runner_of(self.reference), runner_of(self.compressed)
        if self.metrics is None:
            self.metrics = token_metrics()

    @property
    def batch(self) -> int:
        """Windows scored at once."""
        return windows_at_once(self.reference, self.windows)

    @torch.no_grad()
    def score(self, order: NDArray[np.int64], advance: Advance = lambda _=1: None) -> dict[str, Measurement]:
        """Every metric on some windows, in the order given.

        Raises:
            InvalidMeasurement: a model gives NaN or infinite scores.
        """
        metrics = self.metrics or ()
        scores: dict[str, list[tuple[float, float]]] = {metric.name: [] for metric in metrics}
        step = max(1, min(self.batch, tokens_at_once(self.compressed) // self.windows.ids.shape[1]))
        for start in range(0, len(order), self.batch):
            chosen = [int(i) for i in order[start : start + self.batch]]
            ids = self.windows.ids[chosen]
            before = (
                self._before.forward(ids)
                if self.states is None
                else self.states.get(chosen, self.windows, self._before)
            )
            for part in range(0, len(chosen), step):
                mine = slice(part, part + step)
                self._score(metrics, ids[mine], before[mine], self._after.forward(ids[mine]), scores, advance)
        return {
            metric.name: self._measurement(metric.name, metric.unit, scores[metric.name], order) for metric in metrics
        }

    def _score(
        self, metrics: Sequence[Any], ids: Tensor, before: Tensor, after: Tensor,
        scores: dict[str, list[tuple[float, float]]], advance: Advance,
    ) -> None:  # fmt: skip
        positions = ids.shape[1] - 1  # the last token has no successor
        with self._before.end() as finish_before, self._after.end() as finish_after:
            for window in range(len(ids)):
                sums = {metric.name: [0.0, 0.0] for metric in metrics}
                for row in range(0, positions, ROWS):
                    rows = slice(row, min(row + ROWS, positions))
                    labels = ids[window, rows.start + 1 : rows.stop + 1]
                    p = finish_before(before[window, rows]).log_softmax(-1)
                    q = finish_after(after[window, rows]).log_softmax(-1)
                    check_same_tokens(p, q, self.compressed)
                    for metric in metrics:
                        pair = metric.measure(p, q, labels)
                        for side in (0, 1):
                            sums[metric.name][side] += float(pair[side].double().sum())
                for name, (first, second) in sums.items():
                    scores[name].append((first / positions, second / positions))
                advance(1)

    def _measurement(
        self, name: str, unit: str, scores: list[tuple[float, float]], order: NDArray[np.int64]
    ) -> Measurement:
        columns = np.array(scores, dtype=np.float64).reshape(-1, 2)
        return Measurement(
            metric=name, unit=unit, reference=columns[:, 0], compressed=columns[:, 1],
            drawn=order.astype(np.int64), documents=np.asarray(self.windows.documents)[order],
            tokens=self.windows.ids.shape[1] - 1, fingerprint=self.windows.fingerprint,
        )  # fmt: skip


def token_metrics() -> list[Any]:
    """Every metric of the catalogue that is computed from log-probabilities of tokens."""
    return [kind() for kind in catalogue.classes("measurement") if kind.reads == "tokens"]


def check_same_tokens(reference: Tensor, compressed: Tensor, network: Network) -> None:
    """Refuse distributions over different vocabularies `[positions, vocabulary]`.

    Raises:
        InvalidMeasurement: they differ in size.
    """
    if reference.shape != compressed.shape:
        raise InvalidMeasurement(
            f"the reference scores {reference.shape[-1]} tokens and the compressed model {compressed.shape[-1]}",
            expected="two models that read the same tokens", mend="compare models of one family",
            site=str(network.source.path),
        )  # fmt: skip


def measure(
    reference: Network, compressed: Network, windows: Windows, *, progress: Progress = QUIET
) -> dict[str, Measurement]:
    """Score two models on every window of a text.

    Returns:
        One measurement a metric that reads tokens: `perplexity` (losses in nats), `kl`, `disagreement` and the others.
    """
    scorer = Scorer(reference, compressed, windows)
    with progress.stage("measuring", len(windows.ids)) as advance:
        return scorer.score(np.arange(len(windows.ids), dtype=np.int64), advance)
