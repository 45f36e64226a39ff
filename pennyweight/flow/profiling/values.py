"""What a comparison of two models found: plain values that go to JSON as they are."""

from __future__ import annotations

from dataclasses import dataclass

from pennyweight.methods.probability import CalibrationError

FEW = 30  # units below which a group's figures say little


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where a quantity lies.

    Args:
        low: lower end.
        high: upper end.
        confidence: that both ends hold, for this quantity alone.
        rule: name of the method.
        exact: whether the confidence holds at every sample size, and not only in the limit.
    """

    low: float
    high: float
    confidence: float
    rule: str
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric on one text or task.

    Args:
        metric: its name.
        unit: of its scores.
        percent: whether it is shown in per cent.
        before: mean score of the reference; None where the metric compares the two models themselves.
        after: mean score of the compressed model, or None.
        degradation: mean over the units scored.
        standard_error: of it, with documents as clusters; None with fewer than two documents.
        upper_approximate: one-sided upper bound from it, by Student's t; None with fewer than two documents.
        interval: of the mean in the source that the text stands for; None where there are too few documents.
        complete: whether all units were scored: the degradation is then that of the text itself, without error.
        bound: exact upper bound of the text's own mean, each unit counted up to the cap; its mean itself if complete;
            None where too few units were scored to plan the bound.
        cap: largest degradation of a unit that is counted in full by the bound; None where it is not needed.
        above_cap: units scored that exceed it.
        largest: largest degradation of a unit.
        largest_unit: number of that unit, from 0 in the order of the text.
        noise: how far the reference is from itself in other batches, threads and dtype; None where unknown.
        note: what is missing and why.
    """

    metric: str
    unit: str
    percent: bool
    before: float | None
    after: float | None
    degradation: float
    standard_error: float | None
    upper_approximate: float | None
    interval: Interval | None
    complete: bool
    bound: float | None
    cap: float | None
    above_cap: int
    largest: float
    largest_unit: int
    noise: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group of units.

    Args:
        name: its label.
        scored: units of it that were scored.
        units: units of it there are; None where the group is known only for units that were scored.
        before: mean score of the reference: accuracy for a task, None where the metric has none.
        after: mean score of the compressed model.
        degradation: mean over the units scored; None if none was.
        bound: upper bound of the group's mean; the bounds of all groups hold together. None says nothing is claimed.
        alone: upper bound of this group's mean, holding alone.
        few: whether so few units were scored that the figures say little.
    """

    name: str
    scored: int
    units: int | None
    before: float | None
    after: float | None
    degradation: float | None
    bound: float | None
    alone: float | None
    few: bool


@dataclass(frozen=True, kw_only=True)
class Groups:
    """One metric, group by group.

    Args:
        field: what the groups are made by.
        metric: its name.
        unit: of its scores.
        percent: whether it is shown in per cent.
        groups: the one with the largest bound first.
        worst: the group whose bound is the largest; None where there are no bounds.
        worst_bound: upper bound of the largest mean among the groups.
        confidence: of all `bound` together, and of `worst_bound`.
        rule: name of the bound; `exact` where all units were scored.
        scope: what the bounds are about: `corpus` or `source`.
        cap: degradation up to which a unit is counted in the bounds; None where all is counted.
        spread: largest less smallest mean of the groups.
        equity_before: accuracy lowered by differences between groups, for the reference; tasks only.
        equity_after: the same for the compressed model.
        note: what a reader has to know.
    """

    field: str
    metric: str
    unit: str
    percent: bool
    groups: tuple[Group, ...]
    worst: str | None
    worst_bound: float | None
    confidence: float
    rule: str
    scope: str
    cap: float | None
    spread: float
    equity_before: float | None = None
    equity_after: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Tail:
    """Mean of the worst windows: no group of that share or more, known or not, loses more on average.

    Args:
        metric: its name.
        unit: of its scores.
        percent: whether it is shown in per cent.
        share: of the windows that count as the worst.
        estimate: mean degradation of the worst; of the text itself where all windows were scored.
        bound: exact upper bound in the source; None where it cannot be had.
        note: why not.
    """

    metric: str
    unit: str
    percent: bool
    share: float
    estimate: float
    bound: float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Whether the probabilities of the most likely tokens are right, before, after, and after a repair.

    Args:
        windows: windows reported on; none of them was fitted on.
        fitted_windows: windows the temperature was fitted on.
        positions: reported on.
        before: calibration of the reference.
        after: calibration of the compressed model.
        repaired: calibration of the compressed model at the temperature; None if there is none.
        brier: mean Brier score of the compressed model less that of the reference.
        brier_interval: of that difference; None with too few documents.
        temperature: divides the logits of the compressed model; fitted to the true next tokens.
        loss_before: mean negative log-likelihood of the reference, nats per token.
        loss_after: of the compressed model.
        loss_repaired: of the compressed model at the temperature.
        note: what is missing and why.
    """

    windows: int
    fitted_windows: int
    positions: int
    before: CalibrationError
    after: CalibrationError
    repaired: CalibrationError | None
    brier: float
    brier_interval: Interval | None
    temperature: float | None
    loss_before: float
    loss_after: float
    loss_repaired: float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class TextProfile:
    """What became of a text.

    Args:
        on: its path; empty for the text every Python carries.
        source: what it is, in words.
        fingerprint: hash of its windows.
        windows: scored.
        of: windows there are.
        length: tokens in a window.
        documents: that the windows scored begin in.
        metrics: by the order of the catalogue.
        groups: by the field asked for; empty if none was.
        tails: mean of the worst windows.
        calibration: of the probabilities; None with too few windows.
        noise_floor: by metric, how far the reference is from itself.
        notes: what is missing and why.
    """

    on: str
    source: str
    fingerprint: str
    windows: int
    of: int
    length: int
    documents: int
    metrics: tuple[Change, ...]
    groups: tuple[Groups, ...]
    tails: tuple[Tail, ...]
    calibration: Calibration | None
    noise_floor: dict[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskProfile:
    """What became of a task.

    Args:
        on: its path.
        source: its name.
        fingerprint: hash of its questions.
        questions: scored.
        of: questions there are.
        clusters: independent groups of questions among those scored.
        metric: what counts as right: `accuracy`, or `exact_match` for answers in writing.
        accuracy_before: share of right answers of the reference.
        accuracy_after: of the compressed model.
        drop: the difference.
        drop_interval: of the difference in the source; approximate.
        lost: questions only the reference answers rightly, and their share with its interval.
        lost_interval: of the share.
        gained: questions only the compressed model answers rightly.
        gained_interval: of their share.
        mcnemar: chance of at least so many losses among the flips if losses and gains were equally likely.
        retention: share of what the reference got right that stays right; None if it got nothing right.
        retention_bound: lower bound of it.
        repair: share of what the reference got wrong that becomes right; None if it got nothing wrong.
        metrics: every metric of the task.
        groups: by the field asked for.
        margins: flips by fifths of the reference's margin, the smallest margins first; None without choices.
        notes: what a reader has to know.
    """

    on: str
    source: str
    fingerprint: str
    questions: int
    of: int
    clusters: int
    metric: str
    accuracy_before: float
    accuracy_after: float
    drop: float
    drop_interval: Interval
    lost: int
    lost_interval: Interval
    gained: int
    gained_interval: Interval
    mcnemar: float
    retention: float | None
    retention_bound: float | None
    repair: float | None
    metrics: tuple[Change, ...]
    groups: tuple[Groups, ...]
    margins: Groups | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything that a comparison of two models found.

    Args:
        reference: name of the model before.
        compressed: name of the model after.
        bytes_before: size of the weights before.
        bytes_after: size of the weights after.
        confidence: of every interval by itself, and of the bounds of one table of groups together.
        texts: in the order they were named.
        tasks: in the order they were named.
    """

    reference: str
    compressed: str
    bytes_before: int
    bytes_after: int
    confidence: float
    texts: tuple[TextProfile, ...]
    tasks: tuple[TaskProfile, ...]
