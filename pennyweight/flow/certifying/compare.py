"""The Python door: compare and certify any two functions, classifiers, embedding models or anything else.

    measurement = compare(before, after, images, Classification(), targets=labels)
    certificate = certify_outputs(before, after, images, Classification(), 0.01, targets=labels, weights="small.pt")

Scoring, early stopping and judging are those of texts and tasks; only where the outputs come from differs.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pennyweight import catalogue
from pennyweight.budget import Budget, Certificate, Measurement, Opening
from pennyweight.errors import InvalidMeasurement, InvalidMethod
from pennyweight.flow.certifying.claims import Asked, is_discrete, usual_engine
from pennyweight.flow.certifying.judge import fingerprints_of, judge_evidence, judge_population
from pennyweight.flow.certifying.populations import PILOT_LEAST, PILOT_SHARE, check_units
from pennyweight.flow.certifying.rules import Rules
from pennyweight.flow.journal import Journal
from pennyweight.flow.progress import QUIET, Advance, Progress
from pennyweight.methods.measurement import PythonFunction
from pennyweight.numerics.hashing import of_bytes, of_value
from pennyweight.numerics.random import permutation

LOOK = 32  # items scored, at least, before the evidence is looked at again
SLACK = 1e-5  # by which float32 arithmetic may leave a metric's range

Model = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Items:
    """A finite set of inputs, with what is known of each.

    Args:
        items: inputs of the models.
        targets: what is right for each, or None where the metric compares the outputs alone.
        documents: cluster of each item `[n]`.
        fingerprint: hash of inputs and targets.
        metric: how outputs are scored.
        size: items a model is given at once; one item as it is, more as a list.
        on: as the budget names them, where claims of several metrics are made.
        counted: what an item is, in the plural.
    """

    items: Sequence[Any]
    targets: Sequence[Any] | None
    documents: NDArray[np.int64]
    fingerprint: str
    metric: Any
    size: int
    on: str = ""
    counted: str = "items"

    def __len__(self) -> int:
        return len(self.items)

    @property
    def words(self) -> str:
        """What they are, with a bracket left open."""
        return f"the {len(self)} {self.counted} (sha256 {self.fingerprint[:16]}…"

    @property
    def discrete(self) -> bool:
        """Whether one item can lose everything, as with accuracy: then nothing is capped."""
        return is_discrete(self.metric)

    @property
    def independent(self) -> NDArray[np.int64]:
        """Cluster of each item `[n]`."""
        return self.documents

    @property
    def opened(self) -> str:
        """Hash of the items; who certifies functions keeps the ledger."""
        return self.fingerprint

    def labels(self, key: str) -> tuple[str, ...]:
        """Group of each item: items have none.

        Raises:
            InvalidMethod: always.
        """
        raise InvalidMethod(f"items have no field {key!r}", expected="no groups", mend="certify each group by itself")

    def scorer(
        self, reference: Any, compressed: Any, journal: Journal | None = None, metrics: Sequence[Any] | None = None
    ) -> OutputScorer:
        """Score two functions on these items by their one metric; nothing is kept between candidates."""
        del journal, metrics
        return OutputScorer(reference, compressed, self)

    def take(self, chosen: NDArray[np.int64], purpose: str) -> Items:
        """Some of the items, as a population of their own."""
        return dataclasses.replace(
            self, items=[self.items[i] for i in chosen], documents=self.documents[chosen],
            targets=None if self.targets is None else [self.targets[i] for i in chosen],
            fingerprint=of_value([self.fingerprint, purpose, chosen.tolist()]),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class OutputScorer:
    """Scores one function against another on items.

    Args:
        reference: the model before: an item, or a list of them, to its output, or a list of them.
        compressed: the model after.
        population: the items.
    """

    reference: Model
    compressed: Model
    population: Items

    @property
    def batch(self) -> int:
        """Items between two looks at the evidence; whole batches of the models."""
        size = self.population.size
        return -(-LOOK // size) * size

    @torch.no_grad()
    def score(self, order: NDArray[np.int64], advance: Advance = lambda _=1: None) -> dict[str, Measurement]:
        """The metric on some items, in the order given.

        Raises:
            InvalidMeasurement: a model returns another number of outputs than it was given items, or a score is NaN,
                outside the metric's range, or cannot be computed; the message names the item.
        """
        population, metric = self.population, self.population.metric
        scores: list[tuple[float, float]] = []
        for start in range(0, len(order), population.size):
            chosen = order[start : start + population.size].tolist()
            before = _outputs(self.reference, [population.items[i] for i in chosen], population.size, "reference")
            after = _outputs(self.compressed, [population.items[i] for i in chosen], population.size, "compressed")
            for item, first, second in zip(chosen, before, after, strict=True):
                scores.append(_score(metric, first, second, population.targets, item))
                advance(1)
        columns = np.array(scores, dtype=np.float64).reshape(-1, 2)
        found = Measurement(
            metric=metric.name, unit=metric.unit, reference=columns[:, 0], compressed=columns[:, 1],
            drawn=np.asarray(order, dtype=np.int64), documents=population.documents[order], tokens=1,
            fingerprint=population.fingerprint,
        )  # fmt: skip
        return {metric.name: found}


def compare(
    reference: Model,
    compressed: Model,
    items: Sequence[Any],
    metric: Any,
    *,
    targets: Sequence[Any] | None = None,
    documents: Sequence[int] | None = None,
    fingerprint: str | None = None,
    batch: int = 1,
    progress: Progress = QUIET,
) -> Measurement:
    """Score two functions on every item.

    Args:
        reference: the model before: takes one item and returns its output; with a batch above 1, takes a list of items
            and returns as many outputs.
        compressed: the model after, called in the same way.
        items: inputs.
        metric: a metric that reads outputs, such as `Cosine()`, or its name.
        targets: what is right for each item, if the metric asks for it.
        documents: cluster of each item; by default each stands for itself.
        fingerprint: hash of the items and targets; needed where they have no canonical form.
        batch: items a model is given at once.
        progress: told about every item.

    Raises:
        InvalidMeasurement: no items, lengths that differ, or a score that is NaN or outside the metric's range.
        InvalidMethod: the metric does not read outputs, or a batch below 1.
        UnknownName: no metric has that name.
    """
    population = population_of(items, metric, targets, documents, fingerprint, batch)
    with progress.stage("comparing", len(population)) as advance:
        scorer = OutputScorer(reference, compressed, population)
        return scorer.score(np.arange(len(population)), advance)[population.metric.name]


def certify_outputs(
    reference: Model,
    compressed: Model,
    items: Sequence[Any],
    metric: Any,
    margin: float,
    *,
    weights: str,
    targets: Sequence[Any] | None = None,
    documents: Sequence[int] | None = None,
    fingerprint: str | None = None,
    confidence: float = 0.95,
    scope: str = "corpus",
    engine: str | None = None,
    opening: Opening | None = None,
    salt: str = "",
    pilot: Measurement | None = None,
    batch: int = 1,
    progress: Progress = QUIET,
) -> Certificate:
    """Certify that the mean degradation over the items is below a margin; stops as soon as that is sure, or hopeless.

    Items are drawn in a random order that follows from their hash, from `weights`, from the salt, and from all that the
    verdict depends on, such as the margin. Without a pilot, a share of the items plans the claim and is not part of it,
    if there are enough of them. No ledger of openings is kept: `opening` says how often these items were used.

    Args:
        reference: the model before; see `compare`.
        compressed: the model after, frozen before anything here is scored.
        items: inputs that nobody chose the compressed model by.
        metric: a metric that reads outputs, or its name.
        margin: the claim is `mean degradation < margin`, in the metric's unit.
        weights: hash or name of the compressed model: another model gets another order.
        targets: what is right for each item, if the metric asks for it.
        documents: cluster of each item; by default each stands for itself.
        fingerprint: hash of the items and targets; needed where they have no canonical form.
        confidence: of the certificate.
        scope: `corpus` (these items), `source` (what they were drawn from, one of each document) or `asymptotic`.
        engine: the bound, by name; None for the usual one of the scope.
        opening: which opening of these items it is, if they carried claims before; the first by default.
        salt: declared part of the order's seed.
        pilot: scores on other items, to plan with.
        batch: items a model is given at once.
        progress: told about every batch.

    Raises:
        InvalidMeasurement: as `compare`; or fewer than two items, or a pilot of another metric or of the same items.
        InvalidBudget: a margin, confidence, scope or bound that means nothing.
        InfeasibleBudget: there are too few items for the claim, in the scopes that need more.
    """
    whole = population_of(items, metric, targets, documents, fingerprint, batch)
    name, limits = whole.metric.name, whole.metric
    budget = Budget(metric=name, at_most=margin, unit="share" if limits.percent else "absolute", confidence=confidence)
    bound = usual_engine(scope, engine)
    check_units([whole], None)
    if pilot is not None and (pilot.metric != name or pilot.fingerprint == whole.fingerprint):
        raise InvalidMeasurement(
            f"the pilot measures {pilot.metric}" if pilot.metric != name else "the pilot is of the items themselves",
            expected=f"{name} on other items", mend="compare the models on items that carry no claim", site="pilot",
        )  # fmt: skip
    claimed = whole
    if pilot is None and len(whole) >= PILOT_LEAST:
        planning, claimed = set_aside(whole, scope)
        if planning is not None:
            pilot = OutputScorer(reference, compressed, planning).score(np.arange(len(planning)))[name]
    alpha = 1 - confidence
    rules = Rules(
        engine=bound, scope=scope, salt=salt, opening=opening or Opening(number=1, alpha=alpha, spent=alpha),
        ledgers={claimed.on: whole.opened},  # nothing is kept: but another margin or bound is drawn for anew
    )  # fmt: skip
    asked = (Asked(budget, limits),)
    scores = None if pilot is None else {name: pilot}
    # Populations are handed both models as they are; these of functions know what to do with functions.
    models: tuple[Any, Any] = (reference, compressed)
    with tempfile.TemporaryDirectory() as place:
        evidence = judge_population(
            "items", asked, claimed, scores, *models, Journal(Path(place)), rules, weights=weights, claims=1,
            progress=progress,
        )  # fmt: skip
    fingerprints = {"weights": weights, **fingerprints_of([evidence])}
    return judge_evidence(asked, [evidence], rules, fingerprints, weights)


def fingerprint_of(items: Sequence[Any], targets: Sequence[Any] | None = None) -> str:
    """Hash of items and targets: numbers, strings, bytes, tensors, arrays, and lists, dicts and dataclasses of them.

    Raises:
        InvalidMeasurement: an item of another kind; give the fingerprint then.
    """
    return of_value(
        [[_canonical(item) for item in items], None if targets is None else [_canonical(t) for t in targets]]
    )


def population_of(
    items: Sequence[Any], metric: Any, targets: Sequence[Any] | None, documents: Sequence[int] | None,
    fingerprint: str | None, batch: int,
) -> Items:  # fmt: skip
    """Items as a population; see `compare`.

    Raises:
        InvalidMeasurement: no items, or targets or documents that are not one an item.
        InvalidMethod: the metric does not read outputs, or a batch below 1.
    """
    metric = catalogue.find(metric, "measurement")
    if getattr(metric, "reads", None) != "outputs":
        raise InvalidMethod(
            f"{getattr(metric, 'name', metric)} does not read outputs of functions",
            expected="a metric such as cosine, ranking, classification or function",
            mend="certify language models on texts and tasks instead", site="metric",
        )  # fmt: skip
    if batch < 1:
        raise InvalidMethod(f"a batch of {batch}", expected="one item or more at once", mend="batch=1", site="batch")
    if len(items) == 0:
        raise InvalidMeasurement("there are no items", expected="inputs of the models", mend="give some", site="items")
    for what, given in (("targets", targets), ("documents", documents)):
        if given is not None and len(given) != len(items):
            raise InvalidMeasurement(
                f"{len(given)} {what} for {len(items)} items", expected="one for each item", mend="check both lists",
                site=what,
            )  # fmt: skip
    owners = np.arange(len(items)) if documents is None else np.asarray(documents)
    if not np.issubdtype(owners.dtype, np.integer):
        raise InvalidMeasurement(
            f"documents are {owners.dtype}", expected="whole numbers: items of one document share one",
            mend="number the documents", site="documents",
        )  # fmt: skip
    if owners.min() < 0:  # a negative number would leave the item out of the scope source without a word
        raise InvalidMeasurement(
            f"document {owners.min()} is negative", expected="whole numbers from 0",
            mend="give an item without a document a number of its own", site="documents",
        )  # fmt: skip
    return Items(items, targets, owners.astype(np.int64), fingerprint or fingerprint_of(items, targets), metric, batch)


def set_aside(whole: Items, scope: str) -> tuple[Items | None, Items]:
    """A share of the items to plan with, and the others; which ones follows from their hash.

    Whole documents are set aside: an item whose neighbour was seen is not new. Where that would take more than half of
    the items, only the scope corpus, which asks nothing of documents, plans with single items; in the others all are
    kept for the claim, and it is planned without a pilot.
    """
    order = permutation(len(whole), 0, "pilot items", whole.fingerprint)
    cut = round(PILOT_SHARE * len(whole))
    seen = np.isin(whole.documents, whole.documents[order[:cut]])
    if 2 * int(seen.sum()) > len(whole):
        if scope != "corpus":
            return None, whole
        seen = np.isin(np.arange(len(whole)), order[:cut])
    pilot, claimed = (whole.take(np.flatnonzero(part), name) for part, name in ((seen, "pilot"), (~seen, "claim")))
    return pilot, claimed


def _outputs(model: Model, items: list[Any], size: int, which: str) -> Sequence[Any]:
    if size == 1:
        return [model(items[0])]
    outputs: Sequence[Any] = model(items)
    if len(outputs) != len(items):
        raise InvalidMeasurement(
            f"the {which} model returns {len(outputs)} outputs for {len(items)} items",
            expected="one output an item, in their order", mend="return a list or a tensor, or set batch=1", site=which,
        )  # fmt: skip
    return outputs


def _score(metric: Any, before: Any, after: Any, targets: Sequence[Any] | None, item: int) -> tuple[float, float]:
    """Scores of one item under both models, checked against the metric's range."""
    plain = isinstance(metric, PythonFunction)  # a user's function gets what the user's models return
    target = targets[item] if targets is not None else item if plain else None
    try:
        pair = metric.measure(*((before, after) if plain else (_tensor(before), _tensor(after))), target)
        first, second = float(pair[0]), float(pair[1])
    except InvalidMeasurement as error:
        raise InvalidMeasurement(
            error.happened, expected=error.expected, mend=error.mend, site=f"{metric.name}, item {item}"
        ) from error
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        given = "no target" if targets is None else f"target {target!r}"
        why = str(error).splitlines()[0] if str(error) else repr(error)
        raise InvalidMeasurement(
            f"cannot be computed from these outputs and {given}: {why}",
            expected="outputs and targets as the metric's description says", mend="give targets, or another metric",
            site=f"{metric.name}, item {item}",
        ) from error  # fmt: skip
    change = second - first
    low = -np.inf if metric.lower is None else metric.lower - SLACK
    high = np.inf if metric.upper is None else metric.upper + SLACK
    if not (np.isfinite(change) and low <= change <= high):
        raise InvalidMeasurement(
            f"the degradation is {change:g}", expected=f"a finite number from {metric.lower} to {metric.upper}",
            mend="mend the metric, or declare the range it has: every bound rests on it",
            site=f"{metric.name}, item {item}",
        )  # fmt: skip
    return first, second


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else torch.as_tensor(np.asarray(output))


def _canonical(value: Any) -> Any:
    """A value that has JSON of its own; big ones by their hash."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return ["bytes", of_bytes(value)]
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        return [
            "tensor",
            str(flat.dtype),
            list(flat.shape),
            of_bytes(flat.reshape(-1).view(torch.uint8).numpy().tobytes()),
        ]
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        return ["array", str(value.dtype), list(value.shape), of_bytes(value.tobytes())]
    if isinstance(value, list | tuple):
        return ["list", *(_canonical(part) for part in value)]
    if isinstance(value, Mapping):
        return ["dict", sorted(([str(key), _canonical(part)] for key, part in value.items()), key=lambda pair: pair[0])]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, _canonical({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})]
    raise InvalidMeasurement(
        f"items of type {type(value).__name__} have no canonical form to hash",
        expected="numbers, strings, bytes, tensors, arrays, or lists and dicts of them",
        mend="give fingerprint=, a hash of the items that you made", site="items",
    )  # fmt: skip
