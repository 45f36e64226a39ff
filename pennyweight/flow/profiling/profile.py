"""Everything about two models on texts and tasks, with intervals: what `pennyweight measure` shows.

Nothing here is a certificate: intervals hold one by one, and nobody fixed beforehand what would be looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pennyweight import catalogue
from pennyweight.corpus import Windows, cut, describe_source, read_documents, require_windows
from pennyweight.errors import InvalidBudget
from pennyweight.flow.certifying.noise import noise_floor
from pennyweight.flow.certifying.populations import Questions, Text
from pennyweight.flow.load import check_pair
from pennyweight.flow.profiling.bounds import change, grouped, labels_of, worst_windows
from pennyweight.flow.profiling.calibration import calibration, most
from pennyweight.flow.profiling.tasks import task_profile
from pennyweight.flow.profiling.values import Profile, TextProfile
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.text import check_vocabulary
from pennyweight.network.network import Network
from pennyweight.network.sources.tokenizer import load_tokenizer, separator_id
from pennyweight.numerics.random import permutation
from pennyweight.promises import Metric
from pennyweight.task import read_task

BY_GROUP = ("perplexity", "disagreement")  # what groups of a text are compared by
TAILS = ("perplexity", "disagreement")  # what the worst windows are looked for by


def profile(
    reference: Network,
    compressed: Network,
    on: Sequence[str | Path | None] = (None,),
    *,
    groups: str | None = None,
    most: int | None = None,
    confidence: float = 0.95,
    length: int = 256,
    seed: int = 0,
    progress: Progress = QUIET,
) -> Profile:
    """Compare two models on texts and tasks.

    Args:
        reference: network before; its tokenizer is used for both.
        compressed: network after.
        on: paths; a .jsonl file of records with `question` is a task, everything else a text. None is the text every
            Python carries.
        groups: field of documents or questions to group by; also `document` and `folder` for a text.
        most: windows or questions scored at most of each, drawn at random; None for all.
        confidence: of every interval, and of the bounds of one table of groups together; in (0, 1).
        length: tokens in a window, at least 2.
        seed: of the choice of units.
        progress: told about every stage.

    Raises:
        InvalidBudget: a confidence that means nothing.
        InvalidText: a text or task that cannot be read, is too short, or is named twice.
        InvalidMeasurement: the models do not read the same tokens, or give NaN or infinite scores.
        UnknownName: no text or task has the field to group by.
    """
    if not 0 < confidence < 1:
        raise InvalidBudget(
            f"a confidence of {confidence:g} means nothing", expected="a number between 0 and 1, such as 0.95",
            mend="--confidence 0.95", site="measure",
        )  # fmt: skip
    check_pair(reference, compressed)
    populations = [_population(reference, path, length) for path in dict.fromkeys(on)]
    labels = labels_of(populations, groups)
    texts, tasks = [], []
    for population, own in zip(populations, labels, strict=True):
        order = permutation(len(population), seed, "measure", population.fingerprint)
        order = order if most is None else order[:most]
        if isinstance(population, Questions):
            tasks.append(task_profile(reference, compressed, population, order, own, groups, confidence, progress))
        else:
            texts.append(_text(reference, compressed, population, order, own, groups, confidence, seed, progress))
    return Profile(
        reference=reference.source.path.name, compressed=compressed.source.path.name,
        bytes_before=reference.source.stored_bytes, bytes_after=compressed.source.stored_bytes, confidence=confidence,
        texts=tuple(texts), tasks=tuple(tasks),
    )  # fmt: skip


def is_task(path: str | Path | None) -> bool:
    """Whether a file holds questions: .jsonl with a field `question` in its first record."""
    place = Path(path or "")
    if place.suffix.lower() != ".jsonl" or not place.is_file():
        return False
    with place.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        record = json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False  # whoever reads it says what is wrong, and in which line
    return isinstance(record, Mapping) and "question" in record


def _population(network: Network, path: str | Path | None, length: int) -> Text | Questions:
    if path is not None and is_task(path):
        return Questions(read_task(path), str(path), "certification")
    return Text(_windows(network, path, length), on="" if path is None else str(path))


def _windows(network: Network, path: str | Path | None, length: int) -> Windows:
    tokenizer = load_tokenizer(network.source)
    windows = cut(
        read_documents(path), tokenizer, length=length, split="measurement", source=describe_source(path),
        separator=separator_id(network.source, tokenizer),
    )  # fmt: skip
    require_windows(windows, 1, "measuring")
    check_vocabulary(windows, network)
    return windows


def _text(
    before: Network, after: Network, population: Text, order: NDArray[np.int64], labels: Sequence[str] | None,
    field: str | None, confidence: float, seed: int, progress: Progress,
) -> TextProfile:  # fmt: skip
    windows = population.windows
    metrics: dict[str, Metric] = {
        kind.name: kind() for kind in catalogue.classes("measurement") if kind.reads == "tokens"
    }
    with progress.stage(f"measuring {windows.source}", len(order)) as advance:
        scores = population.scorer(before, after).score(order, advance)
    with progress.stage("calibration of probabilities", min(len(order), most(windows))) as advance:
        calibrated = calibration(before, after, windows, order, confidence, seed, advance)
    floor = noise_floor(before, windows, progress=progress)
    notes = [] if labels is not None or field is None else [f"no document has a field {field!r}"]
    if calibrated is None:
        notes.append("no calibration of probabilities: it takes two windows")
    tables = [] if labels is None else [
        grouped(scores[name], metrics[name], labels, field or "", confidence, discrete=False) for name in BY_GROUP
    ]  # fmt: skip
    return TextProfile(
        on=population.on, source=windows.source, fingerprint=windows.fingerprint, windows=len(order), of=len(windows),
        length=windows.length, documents=len(np.unique(scores["perplexity"].documents)),
        metrics=tuple(
            change(scores[name], metric, len(windows), confidence, discrete=False, noise=floor.get(name))
            for name, metric in metrics.items()
        ),
        groups=tuple(tables),
        tails=tuple(worst_windows(scores[name], metrics[name], len(windows), confidence) for name in TAILS),
        calibration=calibrated, noise_floor=dict(floor), notes=tuple(notes),
    )  # fmt: skip
