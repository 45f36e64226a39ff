"""Claims about outputs of a module: which metrics are meant, and every rung of a ladder judged in its order.

Nothing statistical is new here: terms, orders, bounds and verdicts are those of texts, tasks and functions.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pennyweight import catalogue
from pennyweight.budget import Budget
from pennyweight.errors import InfeasibleBudget, InvalidBudget
from pennyweight.flow.certifying.claims import Asked, check_engine, resolve
from pennyweight.flow.certifying.compare import Items
from pennyweight.flow.certifying.judge import Judged, fingerprints_of, judge_evidence, judge_population, verdict_of
from pennyweight.flow.certifying.rules import Rules, check_feasible
from pennyweight.flow.journal import Journal
from pennyweight.flow.modules.build import Builder, Candidate
from pennyweight.methods.measurement import PythonFunction
from pennyweight.methods.multiplicity import FixedSequence
from pennyweight.numerics.hashing import of_value


def asked_of(budgets: Sequence[Budget], metrics: Sequence[Any], engine: Any) -> tuple[Asked, ...]:
    """The claims, with the metric each of them means.

    Args:
        budgets: limits on losses of outputs.
        metrics: objects that a budget means by their name, such as a user's function; all others are looked up.
        engine: the bound.

    Raises:
        InvalidBudget: a limit on a size, a metric of texts or tasks, or a claim that makes no sense.
        UnknownName: no metric has that name.
    """
    given = {metric.name: metric for metric in metrics}
    named = []
    for budget in budgets:
        metric = given.get(budget.metric) or (catalogue.find(budget.metric, "measurement") if budget.is_claim else None)
        if metric is None or metric.reads != "outputs":
            raise InvalidBudget(
                f"{budget.metric} is not measured on outputs", site="budget", mend="Budget.lose('cosine 0.02')",
                expected="a limit on a metric that reads outputs: cosine, ranking, classification, or a function",
            )  # fmt: skip
        on = "outputs" if len(budgets) == 1 else metric.name
        named.append(
            dataclasses.replace(budget, metric=_spec(metric) if budget.metric in given else budget.metric, on=on)
        )
    found = resolve(named, text=False, outputs=True)
    asked = tuple(Asked(one.budget, given.get(one.metric.name, one.metric)) for one in found)
    check_engine(asked, engine)
    return asked


def _spec(metric: Any) -> str:
    """How a certificate names a metric, so that whoever checks it knows its limits; a function is named, not run."""
    values = {f.name: getattr(metric, f.name) for f in dataclasses.fields(metric)}
    if isinstance(metric, PythonFunction) and callable(metric.function):
        function = metric.function
        kind = type(function)
        values["function"] = (
            f"{getattr(function, '__module__', kind.__module__)}:{getattr(function, '__qualname__', kind.__qualname__)}"
        )
    return f"{metric.name}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def climb(
    ladder: Sequence[Candidate], builder: Builder, claimed: Sequence[Items], rules: Rules,
    fingerprints: Mapping[str, str],
) -> tuple[Candidate, Judged, list[dict[str, Any]]]:  # fmt: skip
    """Walk up the ladder until a rung is not certified; the last one that was is the answer.

    Args:
        ladder: candidates from safe to small, frozen.
        builder: reads their outputs.
        claimed: items that carry each claim.
        rules: how claims are judged.
        fingerprints: hashes of what is the same for all candidates.

    Raises:
        InfeasibleBudget: the items cannot carry the claim even for the first rung.
    """
    judged: dict[str, Judged] = {}
    check_feasible(builder.claims, claimed, ladder[0].scores, rules, rules.opening.alpha)

    def certified(candidate: Candidate) -> bool:
        try:
            judged[candidate.key] = _judge(candidate, builder, claimed, rules, fingerprints)
        except InfeasibleBudget:  # a rung that the items cannot carry ends the climb; the first one is refused
            if not judged:
                raise
            return False
        return judged[candidate.key].certificate.holds

    best = FixedSequence().last_pass(ladder, certified) or ladder[0]
    return best, judged[best.key], [_rung(one, judged.get(one.key), one is best) for one in ladder]


def _judge(
    candidate: Candidate, builder: Builder, claimed: Sequence[Items], rules: Rules, fingerprints: Mapping[str, str]
) -> Judged:  # fmt: skip
    # Populations are handed both models as they are; these of functions know what to do with functions.
    models: tuple[Any, Any] = (builder.before, builder.read(candidate))
    parts = []
    with tempfile.TemporaryDirectory() as place:
        for one, items in zip(builder.claims, claimed, strict=True):
            parts.append(
                judge_population(
                    one.on, [one], items, candidate.scores[one.on], *models, Journal(Path(place)), rules,
                    weights=candidate.weights, claims=len(claimed), progress=builder.progress,
                )
            )  # fmt: skip
    every = {
        **fingerprints, "artifact": candidate.hash, "weights": candidate.weights,
        "plan": of_value(candidate.plan.to_toml()), **fingerprints_of(parts),
    }  # fmt: skip
    certificate = judge_evidence(builder.claims, parts, rules, every, candidate.weights)
    return Judged(certificate, tuple(parts))


def _rung(candidate: Candidate, judged: Judged | None, chosen: bool) -> dict[str, Any]:
    first = judged.certificate.claims[0] if judged else None
    means = {name: float(m.degradation.mean()) for one in candidate.scores.values() for name, m in one.items()}
    return {
        "plan": of_value(candidate.plan.to_toml()), "bytes": candidate.size, "chosen": chosen,
        "predicted_damage": candidate.damage, "selection": means,
        "verdict": verdict_of(judged.certificate) if judged else "not reached",
        "holds": bool(judged and judged.certificate.holds), "bound": first.bound if first else None,
        "estimate": first.estimate if first else None, "scored": first.scored if first else 0,
    }  # fmt: skip
