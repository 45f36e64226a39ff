"""What units are drawn from: the windows of a text, or the questions of a task; one way to score either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Measurement
from pennyweight.corpus import Windows
from pennyweight.errors import InvalidMeasurement, UnknownName
from pennyweight.flow.certifying.answers import AnswerScorer, ReferenceAnswers
from pennyweight.flow.certifying.claims import Asked, check_reads
from pennyweight.flow.journal import Journal
from pennyweight.flow.measure import ReferenceStates, Scorer
from pennyweight.flow.progress import Advance
from pennyweight.network.identity import identity_of
from pennyweight.network.network import Network
from pennyweight.numerics.hashing import of_value
from pennyweight.numerics.random import permutation
from pennyweight.task import Task, make_task, read_task

MIXED = "(mixed)"  # a window that begins in one group and ends in another
UNLABELLED = "(none)"
PILOT_SHARE = 0.15  # of the questions of a task, for planning alone
PILOT_LEAST = 200  # questions below which all of them are kept for the claim


class Scores(Protocol):
    """Scores two models on some units of a population."""

    @property
    def batch(self) -> int:
        """Units scored at once."""
        ...

    def score(self, order: NDArray[np.int64], advance: Advance = ...) -> dict[str, Measurement]:
        """Every metric on some units, in the order given."""
        ...


class Population(Protocol):
    """Units with an index, a hash and labels."""

    @property
    def on(self) -> str:
        """Path of the task as the budget names it; empty for the text."""
        ...

    @property
    def counted(self) -> str:
        """What a unit is, in the plural."""
        ...

    @property
    def discrete(self) -> bool:
        """Whether a unit is one question, worth a few values only."""
        ...

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Hash of all units, in their order."""
        ...

    @property
    def documents(self) -> NDArray[np.int64]:
        """Document of each unit `[n]`."""
        ...

    @property
    def independent(self) -> NDArray[np.int64]:
        """Document of each unit `[n]`; negative where a unit shares text with another document."""
        ...

    @property
    def opened(self) -> str:
        """Hash of the whole that these units were cut from: what the ledger of openings counts by."""
        ...

    @property
    def words(self) -> str:
        """What it is, in words."""
        ...

    def labels(self, key: str) -> tuple[str, ...]:
        """Group of each unit `[n]`."""
        ...

    def scorer(
        self,
        reference: Network,
        compressed: Network,
        journal: Journal | None = None,
        metrics: Sequence[Any] | None = None,
    ) -> Scores:
        """Something that scores two models on these units.

        Args:
            reference: before.
            compressed: after.
            journal: where reference scores are kept, if anywhere.
            metrics: what to score of a text; None for every metric. Questions are always scored by all of theirs.
        """
        ...


@dataclass(frozen=True, eq=False)
class Text:
    """The windows of a text.

    Args:
        windows: equal runs of token ids.
        whole: hash of the text that the windows were cut from, all splits of it.
        keep: states of the reference by journal folder, shared between candidates.
    """

    windows: Windows
    whole: str = ""
    keep: dict[str, ReferenceStates] = field(default_factory=dict)
    on: str = ""
    counted: str = "windows"
    discrete: bool = False

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def fingerprint(self) -> str:
        """Hash of ids, length and split."""
        return self.windows.fingerprint

    @property
    def documents(self) -> NDArray[np.int64]:
        """Document each window begins in `[n]`."""
        return self.windows.documents.numpy()

    @property
    def independent(self) -> NDArray[np.int64]:
        """Document of each window `[n]`; -1 where a window ends in another than it begins in."""
        ends = self.windows.documents if self.windows.ends is None else self.windows.ends
        return np.where(ends.numpy() == self.documents, self.documents, -1)

    @property
    def opened(self) -> str:
        """Hash of the whole text."""
        return self.whole or self.fingerprint

    @property
    def words(self) -> str:
        """Split, source, and size."""
        windows = self.windows
        return (
            f"the {windows.split} split of {windows.source} ({len(windows)} windows of {windows.length} tokens, "
            f"sha256 {windows.fingerprint[:16]}…"
        )

    def labels(self, key: str) -> tuple[str, ...]:
        """Group of each window `[n]`: a field of its document, `document` or `folder`.

        Raises:
            UnknownName: no document has such a field.
        """
        windows = self.windows
        fields = windows.labels or tuple({} for _ in windows.names)
        known = sorted({name for labels in fields for name in labels} | {"document", "folder"})
        if key not in known:
            raise UnknownName(
                f"no document has a field {key!r}", expected=f"one of {', '.join(known)}",
                mend="give the text as .jsonl with that field beside `text`", site="--groups",
            )  # fmt: skip
        of = [_label(key, name, labels) for name, labels in zip(windows.names, fields, strict=True)]
        ends = windows.documents if windows.ends is None else windows.ends
        pairs = zip(windows.documents.tolist(), ends.tolist(), strict=True)
        return tuple(of[a] if len({*of[a : b + 1]}) == 1 else MIXED for a, b in pairs)

    def scorer(
        self,
        reference: Network,
        compressed: Network,
        journal: Journal | None = None,
        metrics: Sequence[Any] | None = None,
    ) -> Scorer:
        """Score two models on these windows."""
        states = None
        if journal is not None:
            key = f"reference/{reference.source.fingerprint[:16]}-{self.fingerprint[:16]}"
            states = self.keep.setdefault(f"{journal.directory}/{key}", ReferenceStates(journal, key))
        return Scorer(reference, compressed, self.windows, states, metrics)


@dataclass(frozen=True, eq=False)
class Questions:
    """The questions of a task.

    Args:
        task: what is asked.
        on: its path, as the budget names it.
        split: `selection` or `certification`.
        whole: hash of the task that the questions were taken from.
    """

    task: Task
    on: str
    split: str
    whole: str = ""
    counted: str = "questions"
    discrete: bool = True

    def __len__(self) -> int:
        return len(self.task.questions)

    @property
    def fingerprint(self) -> str:
        """Hash of all questions, in their order."""
        return self.task.fingerprint

    @property
    def documents(self) -> NDArray[np.int64]:
        """Cluster of each question `[n]`; a question without one stands for itself."""
        return self.task.documents

    @property
    def independent(self) -> NDArray[np.int64]:
        """Cluster of each question `[n]`."""
        return self.documents

    @property
    def opened(self) -> str:
        """Hash of the whole task."""
        return self.whole or self.fingerprint

    @property
    def words(self) -> str:
        """Source and size."""
        task = self.task
        split = "" if self.split == "certification" else f"the {self.split} split of "
        return f"{split}{task.source} ({len(self)} questions, sha256 {task.fingerprint[:16]}…"

    def labels(self, key: str) -> tuple[str, ...]:
        """Group of each question `[n]`: one of its fields.

        Raises:
            UnknownName: no question has such a field.
        """
        known = sorted({name for question in self.task.questions for name in question.labels})
        if key not in known:
            raise UnknownName(
                f"no question of {self.task.source} has a field {key!r}",
                expected=f"one of {', '.join(known)}" if known else "a field beside question, choices and answer",
                mend="add the field to every line of the file", site="--groups",
            )  # fmt: skip
        return tuple(str(question.labels.get(key, UNLABELLED)) for question in self.task.questions)

    def scorer(
        self,
        reference: Network,
        compressed: Network,
        journal: Journal | None = None,
        metrics: Sequence[Any] | None = None,
    ) -> Scores:
        """Score two models on these questions."""
        del metrics
        kept = None
        if journal is not None:
            kept = ReferenceAnswers(journal, f"reference/{reference.source.fingerprint[:16]}-{self.fingerprint[:16]}")
        return AnswerScorer(reference, compressed, self.task, kept)


def split_task(task: Task, on: str) -> tuple[Questions | None, Questions]:
    """Questions for planning, and questions for the claim alone; a small task is kept whole for the claim.

    The choice follows from the questions' own hash: nobody can draw another. Questions of one cluster stay together: a
    question whose neighbour was seen is not new.
    """
    count, clusters = len(task.questions), task.documents
    order = permutation(count, 0, "pilot questions", task.fingerprint)
    planning = np.isin(clusters, clusters[order[: round(PILOT_SHARE * count)]])
    if count < PILOT_LEAST or 2 * int(planning.sum()) > count:
        return None, Questions(task, on, "certification", task.fingerprint)
    chosen = {"selection": np.flatnonzero(planning), "certification": np.flatnonzero(~planning)}
    parts = {
        split: make_task([task.questions[i] for i in which.tolist()], task.source) for split, which in chosen.items()
    }
    planned, claimed = (Questions(part, on, split, task.fingerprint) for split, part in parts.items())
    return planned, claimed


def tasks_of(asked: Sequence[Asked]) -> dict[str, tuple[Questions | None, Questions]]:
    """Planning questions and claimed questions of every task that claims are about, by its path.

    Raises:
        InvalidText: a file that is not a task.
        InvalidBudget: a metric that its questions have nothing for.
    """
    found: dict[str, tuple[Questions | None, Questions]] = {}
    for one in asked:
        if one.on:
            if one.on not in found:
                found[one.on] = split_task(read_task(one.on), one.on)
            check_reads(one, found[one.on][1].task)
    return found


def ledgers_of(populations: Sequence[Population], reference: Network) -> dict[str, str]:
    """What the ledger of openings counts each population by: the whole text or task, and the reference's values."""
    identity = identity_of(reference)
    return {population.on: of_value([population.opened, identity]) for population in populations}


def check_units(populations: Sequence[Population], groups: str | None) -> Mapping[str, tuple[str, ...]]:
    """Labels of every population under one key, or nothing; refuses groups that nobody has, and a single unit.

    Raises:
        InvalidMeasurement: a population of fewer than two units.
        UnknownName: no population has such labels.
    """
    for population in populations:
        if len(population) < 2:
            raise InvalidMeasurement(
                f"{len(population)} {population.counted} cannot carry a claim", expected="two or more, better hundreds",
                mend="give more", site=population.on or "text",
            )  # fmt: skip
    if groups is None:
        return {}
    return {population.on: population.labels(groups) for population in populations}


def _label(key: str, name: str, fields: Mapping[str, str]) -> str:
    if key in fields:
        return fields[key]
    if key == "document":
        return name
    if key == "folder":
        return name.rpartition("/")[0] or UNLABELLED
    return UNLABELLED
