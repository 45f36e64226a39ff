"""Profiles: intervals and bounds against brute force, flips against published vectors, calibration against autograd."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from conftest import random_windows
from scipy.stats import binom
from torch import nn

from pennyweight.budget import Measurement
from pennyweight.errors import InvalidBudget, InvalidText, UnknownName
from pennyweight.flow.certifying.populations import Questions, Text
from pennyweight.flow.profiling.bounds import clustered, corpus_bound, grouped, labels_of, worst_windows
from pennyweight.flow.profiling.calibration import calibration
from pennyweight.flow.profiling.profile import is_task, profile
from pennyweight.flow.profiling.tasks import _by_margin, _margin, _pairs, mcnemar
from pennyweight.formats import Grid
from pennyweight.methods.measurement import Accuracy, Agreement, Perplexity
from pennyweight.methods.probability import Brier
from pennyweight.network.changing.rounded import rounded
from pennyweight.network.network import Network
from pennyweight.network.running.stream import Stream
from pennyweight.task import Answers, Question, make_task

NetworkOf = Callable[[str], Network]


def measured(x: np.ndarray, documents: np.ndarray | None = None, drawn: np.ndarray | None = None) -> Measurement:
    n = len(x)
    return Measurement(
        metric="m", unit="nats", reference=np.zeros(n), compressed=np.asarray(x, dtype=np.float64),
        drawn=np.arange(n) if drawn is None else drawn, documents=np.arange(n) if documents is None else documents,
        tokens=1, fingerprint="",
    )  # fmt: skip


def pairs(lost: int, gained: int, right: int, wrong: int) -> Measurement:
    before = [0.0] * lost + [1.0] * gained + [0.0] * right + [1.0] * wrong
    after = [1.0] * lost + [0.0] * gained + [0.0] * right + [1.0] * wrong
    n = len(before)
    return Measurement(
        metric="accuracy", unit="", reference=np.array(before), compressed=np.array(after), drawn=np.arange(n),
        documents=np.arange(n), tokens=1, fingerprint="",
    )  # fmt: skip


def test_flips_against_published_vectors() -> None:
    """McNemar, Tango and Clopper-Pearson as the reference vectors have them; one-sided 95 % is two-sided 90 %."""
    assert mcnemar(12, 9) == pytest.approx(0.331812, abs=1e-6)
    assert mcnemar(30, 18) == pytest.approx(0.055701, abs=1e-6)
    assert mcnemar(0, 4) == 1
    for (lost, gained, n), bound in {(12, 9, 400): 0.027718, (30, 18, 1319): 0.018157, (0, 0, 300): 0.008938}.items():
        found = _pairs(pairs(lost, gained, n // 2, n - n // 2 - lost - gained), 0.9)
        assert found["drop_interval"].high == pytest.approx(bound, abs=1e-6)
        turned = _pairs(pairs(gained, lost, n // 2, n - n // 2 - lost - gained), 0.9)
        assert turned["drop_interval"].low == pytest.approx(-bound, abs=1e-6)
    assert _pairs(pairs(3, 0, 400, 97), 0.9)["lost_interval"].high == pytest.approx(0.015434, abs=1e-6)


def test_retention_and_repair() -> None:
    found = _pairs(pairs(4, 6, 76, 114), 0.95)
    assert found["retention"] == pytest.approx(76 / 80)
    assert found["repair"] == pytest.approx(6 / 120)
    first = found["accuracy_before"]
    assert found["accuracy_after"] == pytest.approx(
        first * found["retention"] + (1 - first) * found["repair"], abs=1e-12
    )
    # exact one-sided bound: with a retention this low, 76 or more of 80 have probability 5 %
    assert binom.sf(75, 80, found["retention_bound"]) == pytest.approx(0.05, rel=1e-9)
    nothing = _pairs(pairs(0, 3, 0, 9), 0.95)
    assert nothing["retention"] is None
    assert nothing["retention_bound"] is None


def test_margins_find_where_flips_are() -> None:
    answers = Answers.of_choices([-1.0, -1.0 - np.log(3), -np.inf], ["a", "b", "c"])
    assert _margin(answers) == pytest.approx(0.5)
    margins = np.arange(100) / 100
    before, after = np.zeros(100), (margins < 0.1).astype(float)  # only the closest calls flip
    found = _by_margin(
        Measurement(
            metric="accuracy", unit="", reference=before, compressed=after, drawn=np.arange(100),
            documents=np.arange(100), tokens=1, fingerprint="",
        ),
        margins, 0.95,
    )  # fmt: skip
    assert [group.degradation for group in found.groups] == [0.5, 0, 0, 0, 0]
    assert found.worst == "smallest fifth"
    assert found.groups[1].bound == pytest.approx(1 - (0.05 / 5) ** (1 / 20))
    assert all(group.few for group in found.groups)


def test_clustered_intervals_need_documents() -> None:
    generator = np.random.default_rng(3)
    x = generator.normal(size=60)
    found = clustered(x, np.arange(60) // 3, 0.95)
    assert found.interval is not None
    assert found.interval.low < x.mean() < found.interval.high
    assert found.upper < found.interval.high
    few = clustered(x, np.arange(60) // 5, 0.95)
    assert few.interval is None
    assert "12 documents" in few.note
    assert clustered(x, np.zeros(60, dtype=int), 0.95).error is None


@pytest.mark.parametrize("shape", ["narrow", "skewed", "flips"])
def test_corpus_bounds_miss_rarely(shape: str) -> None:
    """Over many orders of one finite set, the bound is below its capped mean in at most 5 %, and it is not vacuous."""
    generator = np.random.default_rng(11)
    population = {
        "narrow": 0.02 + 0.004 * generator.normal(size=400), "skewed": 0.01 * generator.exponential(size=400) ** 2,
        "flips": (generator.random(400) < 0.1).astype(float) - (generator.random(400) < 0.05).astype(float),
    }[shape]  # fmt: skip
    metric, discrete = (Accuracy(), True) if shape == "flips" else (Perplexity(), False)
    misses, bounds, runs = 0, [], 200
    for _ in range(runs):
        x = generator.permutation(population)[:150]
        plan = corpus_bound(x, 400, metric, 0.05, discrete=discrete)
        bound = plan.mean(np.ones(150, dtype=bool), 400, 0.05)
        misses += bound < np.minimum(population, plan.cap).mean()
        bounds.append(bound)
    assert misses <= 18, "5 % of 200 is 10, and a fair coin of that kind shows more than 18 once in two hundred times"
    assert np.mean(bounds) < population.mean() + {"narrow": 0.004, "skewed": 0.03, "flips": 0.12}[shape]


def test_groups_of_a_sample_and_of_everything() -> None:
    generator = np.random.default_rng(5)
    labels = ["a", "b", "b", "c"] * 100
    population = 0.02 + 0.004 * generator.normal(size=400) + 0.02 * (np.array(labels) == "c")
    order = generator.permutation(400)
    whole = grouped(measured(population[order], drawn=order), Perplexity(), labels, "kind", 0.95, discrete=False)
    assert whole.rule == "exact"
    assert whole.worst == "c"
    for group in whole.groups:
        mine = population[np.array(labels) == group.name]
        assert group.bound == group.alone == pytest.approx(mine.mean(), abs=1e-15)
    assert whole.worst_bound == max(group.bound for group in whole.groups if group.bound is not None)
    some = order[:240]
    part = grouped(measured(population[some], drawn=some), Perplexity(), labels, "kind", 0.95, discrete=False)
    assert part.groups[0].name == part.worst == "c"
    for group in part.groups:
        assert group.units == labels.count(group.name)
        assert population[np.array(labels) == group.name].mean() < group.alone < group.bound < 0.1
    few = grouped(measured(population[some[:8]], drawn=some[:8]), Perplexity(), labels, "kind", 0.95, discrete=False)
    assert few.worst is None
    assert few.worst_bound is None
    assert "too few" in few.note


def test_accuracy_of_groups_and_equity() -> None:
    labels = ["a"] * 40 + ["b"] * 40
    found = grouped(
        Measurement(
            metric="accuracy", unit="", reference=np.repeat([0.0, 1.0], 40), compressed=np.ones(80),
            drawn=np.arange(80), documents=np.arange(80), tokens=1, fingerprint="",
        ),
        Accuracy(), labels, "kind", 0.95, discrete=True,
    )  # fmt: skip
    assert [(group.name, group.before, group.after) for group in found.groups] == [("a", 1, 0), ("b", 0, 0)]
    assert found.equity_before == pytest.approx(0.5 / (1 + 0.5 + 0.5))
    assert found.equity_after == 0
    assert found.spread == 1


def test_worst_windows() -> None:
    x = np.arange(100) / 100
    whole = worst_windows(measured(x), Agreement(), 100, 0.95)
    assert whole.estimate == pytest.approx(np.mean([0.95, 0.96, 0.97, 0.98, 0.99]))
    assert "exact" in whole.note
    assert worst_windows(measured(x), Agreement(), 500, 0.95).bound == pytest.approx(1, abs=0.02)
    shared = worst_windows(measured(x, np.arange(100) // 2), Agreement(), 500, 0.95)
    assert shared.bound is None
    assert "depend" in shared.note
    assert "limits" in worst_windows(measured(x), Perplexity(), 500, 0.95).note
    assert worst_windows(measured(np.zeros(9)), Perplexity(), 9, 0.95).estimate == pytest.approx(0, abs=1e-12)


def test_labels_that_only_some_have() -> None:
    task = make_task(
        [Question(question=f"q {i}", choices=("a", "b"), answer=0, labels={"language": "ka"}) for i in range(3)], "quiz"
    )
    populations = [Text(random_windows(4, 8)), Questions(task, "quiz.jsonl", "certification")]
    assert labels_of(populations, "language") == [None, ("ka",) * 3]
    assert labels_of(populations, None) == [None, None]
    with pytest.raises(UnknownName, match="continent"):
        labels_of(populations, "continent")


def test_what_is_a_task(tmp_path: Path) -> None:
    contents: dict[str, Any] = {
        "quiz.jsonl": '\n{"question": "q", "choices": ["a", "b"], "answer": 0}\n', "text.jsonl": '{"text": "a"}',
        "broken.jsonl": "{", "quiz.txt": '{"question": "q"}', "list.jsonl": "[1]",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    assert [name for name in contents if is_task(tmp_path / name)] == ["quiz.jsonl"]
    assert not is_task(None)
    assert not is_task(tmp_path / "missing.jsonl")


def test_calibration_against_all_logits_at_once(network_of: NetworkOf, model_of: Callable[[str], nn.Module]) -> None:
    """Streamed sums equal those of transformers' logits; the temperature is where autograd finds no slope."""
    network, windows = network_of("llama"), random_windows(12, 80)
    found = calibration(network, network, windows, np.arange(12), 0.95, 0)
    assert found is not None
    assert (found.windows, found.fitted_windows, found.positions) == (9, 3, 9 * 79)
    assert found.brier == 0
    assert found.before == found.after
    with torch.no_grad():
        logits = model_of("llama")(input_ids=windows.ids, use_cache=False).logits[:, :-1].double()
    labels = windows.ids[:, 1:]
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").reshape(12, 79)
    # which windows were fitted on is the method's business; of 12 any 9 with this mean are the right ones
    means = {c: float(losses[list(c)].mean()) for c in combinations(range(12), 9)}
    report = min(means, key=lambda c: abs(means[c] - found.loss_before))
    assert means[report] == pytest.approx(found.loss_before, abs=1e-6)
    fit = [i for i in range(12) if i not in report]
    assert found.temperature is not None
    inverse = torch.tensor(1 / found.temperature, dtype=torch.float64, requires_grad=True)
    loss = nn.functional.cross_entropy((inverse * logits[fit]).flatten(0, 1), labels[fit].flatten())
    (slope,) = torch.autograd.grad(loss, inverse)
    assert abs(float(slope)) < 1e-4
    top = logits[list(report)].softmax(-1).max(-1)
    right = (top.indices == labels[list(report)]).double().mean()
    curve = found.before.curve
    assert sum(b.count * b.accuracy for b in curve) / found.positions == pytest.approx(float(right))
    assert sum(b.count * b.confidence for b in curve) / found.positions == pytest.approx(
        float(top.values.mean()), abs=1e-5
    )


def test_brier_difference_is_that_of_the_method(network_of: NetworkOf, model_of: Callable[[str], nn.Module]) -> None:
    network, windows = network_of("llama"), random_windows(8, 70)
    coarse = rounded(network, Grid(bits=3, group_size=32))
    found = calibration(network, coarse, windows, np.arange(8), 0.95, 0)
    assert found is not None
    assert found.loss_after != found.loss_before

    def probabilities(of: Network) -> np.ndarray:
        runner = Stream(of)
        with torch.no_grad(), runner.end() as finish:
            return torch.stack([finish(h[:-1]).softmax(-1) for h in runner.forward(windows.ids)]).double().numpy()

    first, second = probabilities(network), probabilities(coarse)
    means = np.array([Brier().measure(first[i], second[i], windows.ids[i, 1:].numpy()).mean() for i in range(8)])
    # 6 of 8 windows were reported on: the difference is the mean of some 6 of them
    assert min(abs(means[list(c)].mean() - found.brier) for c in combinations(range(8), 6)) < 1e-7
    assert calibration(network, coarse, windows, np.arange(1), 0.95, 0) is None


def test_a_profile_is_plain_json(network_of: NetworkOf, tmp_path: Path) -> None:
    network = network_of("llama")
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text(
        "".join(
            json.dumps({"question": f"{i} is", "choices": ["even", "odd"], "answer": i % 2}) + "\n" for i in range(20)
        )
    )
    text = tmp_path / "text.txt"
    text.write_text("\f".join(f"{i} bottles of milk on the wall, and not one more of them. " * 4 for i in range(20)))
    found = profile(network, rounded(network, Grid(bits=3, group_size=32)), [text, quiz], most=18, length=32)
    value = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(found)))
    assert value["tasks"][0]["questions"] == 18
    assert value["texts"][0]["metrics"][0]["unit"]
    assert "null" not in json.dumps(value["texts"][0]["calibration"]["before"])
    again = profile(network, rounded(network, Grid(bits=3, group_size=32)), [text, quiz], most=18, length=32)
    assert again == found
    other = profile(network, rounded(network, Grid(bits=3, group_size=32)), [quiz], most=18, seed=1)
    assert other.texts == ()
    assert other.tasks != found.tasks


def test_bad_input(network_of: NetworkOf, tmp_path: Path) -> None:
    network = network_of("llama")
    with pytest.raises(InvalidBudget, match="confidence"):
        profile(network, network, confidence=1.0)
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(InvalidText):
        profile(network, network, [short])
