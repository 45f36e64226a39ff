"""Budgets resolved: which metric each one means, on which units, and whether it makes sense, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pennyweight import catalogue
from pennyweight.budget import Budget
from pennyweight.errors import InvalidBudget
from pennyweight.promises import Metric
from pennyweight.task import Task

SCOPES = ("corpus", "source", "asymptotic")
USUAL_ENGINE = {"corpus": "planned-mixture", "source": "planned-mixture", "asymptotic": "clustered-t"}


@dataclass(frozen=True)
class Asked:
    """One limit on a loss, with the metric it is about.

    Args:
        budget: the limit; a size where nothing is claimed of the loss.
        metric: what is measured.
    """

    budget: Budget
    metric: Metric

    @property
    def on(self) -> str:
        """Path of the task; empty for the text."""
        return self.budget.on


def is_discrete(metric: Metric) -> bool:
    """Whether an output can lose everything at once, as with accuracy; other metrics of outputs are graded."""
    return metric.upper is not None and metric.lower is not None and metric.lower < 0


def resolve(budgets: Sequence[Budget], *, text: bool = True, outputs: bool = False) -> tuple[Asked, ...]:
    """Find the metric of every budget; a size is reported with the rise of the perplexity.

    Args:
        budgets: limits on losses, or sizes.
        text: whether there is a text: what became of it is then told in any case, though nothing is claimed of it.
        outputs: whether there are outputs of a module, for the metrics that read such.

    Raises:
        UnknownName: no metric has that name.
        InvalidBudget: no budgets, confidences that differ, the same claim twice, a unit that is not the metric's, a
            task metric without a task, or a text metric with one.
    """
    if not budgets:
        raise InvalidBudget("no budget was given", expected="a loss or a size", mend="--lose 2%", site="--lose")
    if len({budget.confidence for budget in budgets}) > 1:
        raise InvalidBudget(
            "the budgets ask for different confidences", expected="one confidence for all", mend="--confidence 0.95"
        )
    names = [(budget.metric, budget.on) for budget in budgets]
    twice = sorted({f"{metric}:{on}".rstrip(":") for metric, on in names if names.count((metric, on)) > 1})
    if twice:
        raise InvalidBudget(
            f"two limits on {', '.join(twice)}", expected="one limit each", mend="keep the tighter one", site="--lose"
        )  # fmt: skip
    asked = [_resolve(budget, outputs) for budget in budgets]
    kinds = [(claim.metric.name, claim.on) for claim in asked]
    if len(kinds) > len(set(kinds)):  # such as top-k with two values of k: their scores would share a name
        raise InvalidBudget("two limits on one metric", expected="one limit each", mend="leave one out", site="--lose")
    if text and not any(claim.metric.reads == "tokens" for claim in asked):
        size = Budget(metric="size", at_most=1e18, unit="bytes", confidence=budgets[0].confidence)
        asked.append(_resolve(size))
    return tuple(asked)


def _resolve(budget: Budget, outputs: bool = False) -> Asked:
    if not budget.is_claim:
        return Asked(budget, catalogue.find("perplexity", "measurement"))
    metric: Any = catalogue.find(budget.metric, "measurement")
    site = f"--lose {budget.label!r}"
    if metric.reads == "outputs" and not outputs:
        raise InvalidBudget(
            f"{metric.name} is computed from outputs that the command line does not have",
            expected="a metric of texts or of tasks", mend="use it from Python: pennyweight.compare", site=site,
        )  # fmt: skip
    if metric.reads not in ("tokens", "outputs") and not budget.on:
        raise InvalidBudget(
            f"{metric.name} needs the file of a task", expected="a .jsonl file of questions after a colon",
            mend=f"--lose '{metric.name}:quiz.jsonl 1pt'", site=site,
        )  # fmt: skip
    if metric.reads == "tokens" and budget.on:
        raise InvalidBudget(
            f"{metric.name} is measured on running text, not on {budget.on}", expected="no file after the metric",
            mend=f"--lose '{metric.name} …' --on text.txt", site=site,
        )  # fmt: skip
    if budget.unit == "share" and not metric.percent:
        raise InvalidBudget(
            f"{metric.name} is not a share: it is in {metric.unit}", expected=f"an amount in {metric.unit}",
            mend=f"--lose '{metric.name} {budget.at_most:g}'", site=site,
        )  # fmt: skip
    if metric.upper is not None and budget.margin >= metric.upper:
        raise InvalidBudget(
            f"every model meets {budget.label}", expected=f"an amount below {metric.upper:g}", mend="allow less",
            site=site,
        )  # fmt: skip
    return Asked(budget, metric)


def text_metrics(asked: Sequence[Asked]) -> list[Any]:
    """What is scored on the text: what is told in any case, and what is claimed; nothing else, for each costs time."""
    told = [catalogue.find(name, "measurement") for name in ("perplexity", "kl", "disagreement")]
    claimed = [one.metric for one in asked if one.metric.reads == "tokens"]
    return list({metric.name: metric for metric in [*told, *claimed]}.values())


def usual_engine(scope: str, engine: str | None) -> Any:
    """The bound of a scope, or the one asked for.

    Raises:
        UnknownName: no such bound.
        InvalidBudget: no such scope, or the bound does not hold in it.
    """
    if scope not in SCOPES:
        raise InvalidBudget(f"no scope is called {scope!r}", expected=f"one of {', '.join(SCOPES)}", site="--scope")
    found = catalogue.find(engine or USUAL_ENGINE[scope], "certification")
    if scope not in found.validity.scopes:
        raise InvalidBudget(
            f"{found.name} does not hold in the scope {scope}",
            expected=f"one of its scopes: {', '.join(sorted(found.validity.scopes))}",
            mend=f"--scope {min(found.validity.scopes)}, or --engine {USUAL_ENGINE[scope]}", site="--engine",
        )  # fmt: skip
    return found


def check_engine(asked: Sequence[Asked], engine: Any) -> None:
    """Refuse a bound for values that a metric does not have, before anything is scored.

    Raises:
        InvalidBudget: they do not fit.
    """
    values = engine.validity.values
    for one in asked:
        limits, steps = (one.metric.lower, one.metric.upper), one.metric.reads != "tokens"
        fits = {
            "bounded": one.metric.lower is not None, "binary": steps and limits == (0, 1),
            "ternary": steps and limits in ((0, 1), (-1, 1)),
        }  # fmt: skip
        if not fits.get(values, True):
            raise InvalidBudget(
                f"{engine.name} is a bound for {values} values, and those of {one.metric.name} are not",
                expected="a bound that fits every metric of the run",
                mend="--engine planned-mixture, which fits all, or leave --engine out", site="--engine",
            )  # fmt: skip


def check_reads(asked: Asked, task: Task) -> None:
    """Refuse a metric of choices on a task without choices, and the other way round.

    Raises:
        InvalidBudget: they do not fit.
    """
    wanted = {"choices": "choice", "text": "match"}[asked.metric.reads]
    if task.kind != wanted:
        has = "choices" if task.kind == "choice" else "no choices"
        raise InvalidBudget(
            f"{asked.metric.name} reads {asked.metric.reads} and the questions of {task.source} have {has}",
            expected="accuracy and its kin for questions with choices, exact_match for the others",
            mend=f"--lose '{'accuracy' if task.kind == 'choice' else 'exact_match'}:{asked.on} …'",
            site=f"--lose {asked.budget.label!r}",
        )  # fmt: skip
