"""Reading budgets, and the values a certificate is made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.budget import Budget, Measurement
from pennyweight.errors import InvalidBudget, InvalidMeasurement


@pytest.mark.parametrize(
    ("text", "value"),
    [("2%", 0.02), ("2 %", 0.02), (" 2% ", 0.02), ("0.02", 0.02), ("perplexity 2%", 0.02), ("perplexity  0.5", 0.5),
     ("1e-3", 0.001), ("+2%", 0.02), ("150%", 1.5), (".5%", 0.005), ("1E1%", 0.1)],
)  # fmt: skip
def test_losses(text: str, value: float) -> None:
    budget = Budget.lose(text, confidence=0.9)
    assert (budget.metric, budget.unit, budget.confidence) == ("perplexity", "ratio", 0.9)
    assert budget.at_most == pytest.approx(value, rel=1e-12)
    assert budget.margin == pytest.approx(math.log(1 + value), rel=1e-9)


@pytest.mark.parametrize(
    "text",
    ["-1%", "0", "0%", "-0.0", "nan", "inf", "-inf", "abc", "", "%", "2%%", "% 2", "1..2", "1.2.3", "two", "2 percent",
     "1e400", "2%3", "size 2%", "2,5%", "0x10"],
)  # fmt: skip
def test_losses_that_mean_nothing(text: str) -> None:
    with pytest.raises(InvalidBudget) as error:
        Budget.lose(text)
    assert error.value.mend


@pytest.mark.parametrize(
    ("text", "value"),
    [("120MB", 120_000_000), ("1KB", 1000), ("1kb", 1000), ("1.5GiB", 1.5 * 2**30), (" 2 MiB ", 2 * 2**20),
     ("1024", 1024), ("1024B", 1024), ("1e3KB", 1_000_000), ("0.5KB", 500), ("1.0009KB", 1000)],
)  # fmt: skip
def test_sizes(text: str, value: float) -> None:
    budget = Budget.fit(text)
    assert (budget.metric, budget.unit, budget.at_most) == ("size", "bytes", value)


@pytest.mark.parametrize(
    "text", ["-1MB", "0", "0MB", "nan", "inf", "abc", "", "MB", "12XB", "1 2MB", "120M", "0.5B", "1..5GB", "12%", "1TB"]
)
def test_sizes_that_mean_nothing(text: str) -> None:
    with pytest.raises(InvalidBudget) as error:
        Budget.fit(text)
    assert error.value.mend


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.1, 1.5, 95.0, math.nan, math.inf])
def test_confidences_outside_the_open_interval(confidence: float) -> None:
    for read, text in ((Budget.lose, "2%"), (Budget.fit, "1MB")):
        with pytest.raises(InvalidBudget, match="confidence"):
            read(text, confidence=confidence)


@pytest.mark.parametrize("at_most", [0.0, -1.0, math.nan, math.inf])
def test_limits_that_are_none(at_most: float) -> None:
    with pytest.raises(InvalidBudget):
        Budget(metric="bits", at_most=at_most, unit="bits per weight")


def test_only_a_perplexity_budget_has_a_margin() -> None:
    with pytest.raises(InvalidBudget, match="size"):
        _ = Budget.fit("1MB").margin


@given(st.text(max_size=12))
def test_no_text_ends_in_a_foreign_error(text: str) -> None:
    for read in (Budget.lose, Budget.fit):
        try:
            assert read(text).at_most > 0
        except InvalidBudget as error:
            assert error.site  # noqa: PT017


@given(st.floats(1e-6, 1e6))
def test_a_loss_survives_being_printed(value: float) -> None:
    assert Budget.lose(repr(value)).at_most == value


def measurement(reference: list[float], compressed: list[float], windows: list[int] | None = None) -> Measurement:
    return Measurement(
        metric="perplexity", unit="nats per token", reference=np.array(reference), compressed=np.array(compressed),
        drawn=np.array(windows if windows is not None else range(len(reference))),
        documents=np.arange(len(reference)) // 2, tokens=7, fingerprint="f",
    )  # fmt: skip


def test_degradation_is_after_minus_before() -> None:
    np.testing.assert_allclose(measurement([1.0, 2.0], [1.5, 1.0]).degradation, [0.5, -1.0])


def test_take_keeps_pairs_together() -> None:
    taken = measurement([1.0, 2.0, 3.0], [1.5, 2.5, 4.0], [9, 8, 7]).take(np.array([2, 0]))
    assert taken.drawn.tolist() == [7, 9]
    assert taken.documents.tolist() == [1, 0]
    np.testing.assert_allclose(taken.degradation, [1.0, 0.5])
    assert (taken.tokens, taken.fingerprint) == (7, "f")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_must_be_finite(bad: float) -> None:
    with pytest.raises(InvalidMeasurement, match="NaN or infinite"):
        measurement([1.0, bad], [1.0, 1.0])
    with pytest.raises(InvalidMeasurement, match="NaN or infinite"):
        measurement([1.0, 1.0], [1.0, bad])


def test_lengths_must_agree() -> None:
    with pytest.raises(InvalidMeasurement, match="unequal lengths"):
        measurement([1.0, 2.0], [1.0])
    with pytest.raises(InvalidMeasurement, match="unequal lengths"):
        measurement([1.0, 2.0], [1.0, 2.0], [1])


@pytest.mark.parametrize(
    ("text", "metric", "on", "at_most", "unit"),
    [("kl 0.02", "kl", "", 0.02, "absolute"), ("agreement 3%", "disagreement", "", 0.03, "share"),
     ("top-5 4%", "top-k(k=5)", "", 0.04, "share"),
     ("accuracy:quiz.jsonl 1pt", "accuracy", "quiz.jsonl", 0.01, "share"),
     ("flips:a b/c d.jsonl 2 points", "flips", "a b/c d.jsonl", 0.02, "share"),
     ("ppl 1%", "perplexity", "", 0.01, "ratio")],
)  # fmt: skip
def test_losses_of_any_metric(text: str, metric: str, on: str, at_most: float, unit: str) -> None:
    budget = Budget.lose(text)
    assert (budget.metric, budget.on, budget.unit, budget.is_claim) == (metric, on, unit, True)
    assert budget.at_most == pytest.approx(at_most, rel=1e-12)
    again = Budget.lose(budget.label)
    assert (again.metric, again.on, again.margin) == (metric, on, pytest.approx(budget.margin, rel=1e-11))


@pytest.mark.parametrize("text", ["perplexity:quiz.jsonl 1%", "perplexity 1pt", "3pt", "bits 4", "accuracy: 1pt", "kl"])
def test_losses_that_do_not_fit_their_metric(text: str) -> None:
    with pytest.raises(InvalidBudget):
        Budget.lose(text)
