"""What became of a task: accuracy before and after, who flipped which way, and where the flips are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

from pennyweight import catalogue
from pennyweight.budget import Measurement, Terms
from pennyweight.flow.certifying.answers import AnswerScorer
from pennyweight.flow.certifying.populations import Questions
from pennyweight.flow.profiling.bounds import change, grouped
from pennyweight.flow.profiling.values import FEW, Group, Groups, Interval, TaskProfile
from pennyweight.flow.progress import Progress
from pennyweight.methods.certification import Tango
from pennyweight.methods.multiplicity import WorstGroup, spread
from pennyweight.methods.probability import clopper_pearson, upper_bound
from pennyweight.network.network import Network
from pennyweight.task import Answers, Question

Array = NDArray[np.float64]

FIFTHS = ("smallest fifth", "second fifth", "middle fifth", "fourth fifth", "largest fifth")


@dataclass(frozen=True, kw_only=True)
class _Margin:
    """Probability of the choice a model picks less that of its second: how close it came to another answer."""

    name: ClassVar[str] = "margin"
    unit: ClassVar[str] = "probability"

    def measure(self, reference: Answers, compressed: Answers, question: Question) -> tuple[float, float]:
        """Under each model, in [0, 1]; choices a model rules out have probability zero."""
        del question
        return _margin(reference), _margin(compressed)


def task_profile(
    before: Network, after: Network, population: Questions, order: NDArray[np.int64], labels: Sequence[str] | None,
    field: str | None, confidence: float, progress: Progress,
) -> TaskProfile:  # fmt: skip
    """Score two models on some questions and say everything about them.

    Args:
        before: network before.
        after: network after.
        population: all questions of the task.
        order: questions to score, in random order `[n]`.
        labels: group of every question there is, or None.
        field: what the labels are.
        confidence: of every interval, and of the bounds of one table together.
        progress: told about every question.

    Raises:
        InvalidMeasurement, InvalidText, InvalidModel: what scoring raises.
    """
    task, choices = population.task, population.task.kind == "choice"
    kinds = [kind() for kind in catalogue.classes("measurement") if kind.reads == ("choices" if choices else "text")]
    extra: list[Any] = [_Margin()] if choices else []
    scorer = AnswerScorer(before, after, task, metrics=[*kinds, *extra])
    with progress.stage(f"measuring {task.source}", len(order)) as advance:
        scores = scorer.score(order, advance)
    name = "accuracy" if choices else "exact_match"
    main = scores[name]
    metric = next(kind for kind in kinds if kind.name == name)
    tables = () if labels is None else (grouped(main, metric, labels, field or "", confidence, discrete=True),)
    notes = [] if labels is not None or field is None else [f"no question has a field {field!r}"]
    clusters = len(np.unique(main.documents))
    if clusters < len(order):
        notes.append(
            f"{len(order)} questions form {clusters} clusters: intervals of flips, drop and retention take questions "
            "for independent and are too narrow; those of the metrics go by clusters"
        )
    return TaskProfile(
        on=population.on, source=task.source, fingerprint=task.fingerprint, questions=len(order), of=len(task),
        clusters=clusters, metric=name, **_pairs(main, confidence),
        metrics=tuple(change(scores[kind.name], kind, len(task), confidence, discrete=True) for kind in kinds),
        groups=tables, margins=_by_margin(main, scores["margin"].reference, confidence) if choices else None,
        notes=tuple(notes),
    )  # fmt: skip


def _pairs(measured: Measurement, confidence: float) -> dict[str, Any]:
    """Accuracy, flips, drop and retention from 1 where a model is wrong, else 0."""
    x, right = measured.degradation, measured.reference == 0
    n, lost, gained = len(x), int((x > 0).sum()), int((x < 0).sum())
    kept = right.sum()
    # one side of a two-sided interval has half the level
    alpha, tango = (1 - confidence) / 2, Tango()
    terms = Terms(
        margin=0.0, cap=1.0, pilot_mean=0.0, pilot_sd=1.0, alpha=alpha, tail_alpha=0.0, population=None, n_max=n,
        scope="source",
    )  # fmt: skip
    drop = Interval(
        low=-tango.bound(-x, terms), high=tango.bound(x, terms), confidence=confidence, rule=tango.name, exact=False
    )
    return {
        "accuracy_before": float(right.mean()), "accuracy_after": float((measured.compressed == 0).mean()),
        "drop": float(x.mean()), "drop_interval": drop,
        "lost": lost, "lost_interval": share(lost, n, confidence),
        "gained": gained, "gained_interval": share(gained, n, confidence),
        "mcnemar": mcnemar(lost, gained),
        "retention": float(1 - lost / kept) if kept else None,
        "retention_bound": 1 - upper_bound((x[right] > 0).astype(np.float64), confidence)[0] if kept else None,
        "repair": gained / (n - int(kept)) if kept < n else None,
    }  # fmt: skip


def share(count: int, of: int, confidence: float) -> Interval:
    """Clopper-Pearson's interval of a share, two-sided."""
    low, high = clopper_pearson(count, of, confidence)
    return Interval(low=low, high=high, confidence=confidence, rule="clopper-pearson", exact=True)


def mcnemar(lost: int, gained: int) -> float:
    """Exact one-sided McNemar test: P(Bin(lost + gained, 1/2) >= lost); 1 if nothing flipped.

    Source: McNemar. Note on the sampling error of the difference between correlated proportions. Psychometrika 1947. It
    reports a change; that there is none does not follow from a large value.
    """
    return 1.0 if lost == 0 else float(bdtrc(lost - 1, lost + gained, 0.5))


def _by_margin(measured: Measurement, margins: Array, confidence: float) -> Groups:
    """Flips by fifths of the reference's margin; groups that the reference alone makes, so no result chose them."""
    flipped = (measured.degradation != 0).astype(np.float64)
    place = np.empty(len(margins), dtype=np.int64)
    place[np.argsort(margins, kind="stable")] = np.arange(len(margins)) * len(FIFTHS) // len(margins)
    numbers = sorted(set(place.tolist()))
    names = [FIFTHS[i] for i in numbers]
    of = dict(zip(names, (flipped[place == i] for i in numbers), strict=True))
    bounds = WorstGroup().bounds(names, lambda name, level: upper_bound(of[name], 1 - level)[0], 1 - confidence)
    groups = tuple(
        Group(
            name=name, scored=int((place == i).sum()), units=None,
            before=1 - float(measured.reference[place == i].mean()),
            after=1 - float(measured.compressed[place == i].mean()), degradation=float(of[name].mean()),
            bound=float(bounds.simultaneous[at]), alone=float(bounds.single[at]), few=int((place == i).sum()) < FEW,
        )
        for at, (i, name) in enumerate(zip(numbers, names, strict=True))
    )  # fmt: skip
    return Groups(
        field="margin of the reference", metric="flips", unit="share of questions", percent=True, groups=groups,
        worst=bounds.worst, worst_bound=bounds.worst_bound, confidence=confidence, rule="clopper-pearson",
        scope="source", cap=None, spread=spread(np.array([group.degradation for group in groups])),
        note="margin: probability of the chosen answer less that of the next",
    )  # fmt: skip


def _margin(answers: Answers) -> float:
    likelihoods = np.array(answers.log_likelihoods, dtype=np.float64)
    weights = np.sort(np.exp(likelihoods - likelihoods.max()))
    return float((weights[-1] - weights[-2]) / math.fsum(weights))
