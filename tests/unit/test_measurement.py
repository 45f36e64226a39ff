"""Metrics and the scorer against their definitions, computed one position at a time in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import measures as slow
from torch import Tensor, nn

from pennyweight.corpus import Windows
from pennyweight.errors import InvalidMeasurement, InvalidMethod, PennyweightError
from pennyweight.flow.journal import Journal
from pennyweight.flow.measure import ReferenceStates, Scorer, measure
from pennyweight.methods.measurement import (
    Accuracy,
    AccuracyBytes,
    AccuracyNormalised,
    Agreement,
    AnswerChanges,
    ChoiceBrier,
    Classification,
    Cosine,
    ExactMatch,
    Flips,
    Hellinger,
    JensenShannon,
    KullbackLeibler,
    Perplexity,
    PythonFunction,
    Ranking,
    TopAgreement,
    TotalVariation,
)
from pennyweight.network.finding.trace import load_network
from pennyweight.network.network import Network
from pennyweight.network.sources.opening import open_source
from pennyweight.task import Answers, Question


def logits(seed: int, positions: int = 30, vocabulary: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = 3 * torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64)
    q = p + torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64)
    return p, q, torch.randint(0, vocabulary, (positions,), generator=generator)


def test_metrics_equal_their_definitions() -> None:
    p, q, labels = logits(0)
    given = (p.log_softmax(-1), q.log_softmax(-1), labels)
    before, after = Perplexity().measure(*given)
    _, divergence = KullbackLeibler().measure(*given)
    _, differs = Agreement().measure(*given)
    for i, (a, b, label) in enumerate(zip(p.tolist(), q.tolist(), labels.tolist(), strict=True)):
        assert float(before[i]) == pytest.approx(slow.loss(a, label), rel=1e-9)
        assert float(after[i]) == pytest.approx(slow.loss(b, label), rel=1e-9)
        assert float(divergence[i]) == pytest.approx(slow.kl(a, b), rel=1e-9)
        assert float(differs[i]) == slow.disagrees(a, b)
    assert 0 < float(differs.mean()) < 1


def test_ties_go_to_the_lowest_token() -> None:
    tie = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]).log_softmax(-1)
    clear = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]).log_softmax(-1)
    assert Agreement().measure(tie, clear, torch.zeros(2, dtype=torch.long))[1].tolist() == [0, 1]


def test_divergence_from_what_is_impossible() -> None:
    """A token the reference gives no chance costs nothing: 0 · log 0 is 0, not NaN."""
    p = torch.tensor([[0.0, -200.0]]).log_softmax(-1)
    q = torch.tensor([[0.0, 0.0]]).log_softmax(-1)
    _, divergence = KullbackLeibler().measure(p, q, torch.zeros(1, dtype=torch.long))
    assert float(divergence) == pytest.approx(math.log(2), rel=1e-6)


def none(positions: int) -> Tensor:
    return torch.zeros(positions, dtype=torch.long)


def test_distances_equal_their_definitions() -> None:
    p, q, labels = logits(1)
    given = (p.log_softmax(-1), q.log_softmax(-1), labels)
    found = {
        kind.name: kind().measure(*given)[1]
        for kind in (TotalVariation, JensenShannon, Hellinger, TopAgreement, KullbackLeibler)
    }
    for i, (a, b) in enumerate(zip(p.tolist(), q.tolist(), strict=True)):
        first, second = slow.distribution(a), slow.distribution(b)
        middle = [(x + y) / 2 for x, y in zip(first, second, strict=True)]
        halves = [sum(x * math.log(x / m) for x, m in zip(side, middle, strict=True)) for side in (first, second)]
        assert float(found["js"][i]) == pytest.approx(sum(halves) / 2, rel=1e-9)
        moved = sum(abs(x - y) for x, y in zip(first, second, strict=True)) / 2
        assert float(found["tv"][i]) == pytest.approx(moved, rel=1e-9)
        affinity = sum(math.sqrt(x * y) for x, y in zip(first, second, strict=True))
        assert float(found["hellinger"][i]) == pytest.approx(math.sqrt(1 - affinity), rel=1e-6)
        tops = [{*sorted(range(12), key=lambda j, s=s: (-s[j], j))[:5]} for s in (a, b)]
        assert float(found["top-k"][i]) == pytest.approx(1 - len(tops[0] & tops[1]) / 5)
    tv, kl, hellinger = found["tv"], found["kl"], found["hellinger"]
    assert (tv.square() <= kl / 2).all(), "Pinsker"
    assert (hellinger.square() <= tv).all()
    assert (tv <= math.sqrt(2) * hellinger).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounded_distances_of_models_that_share_nothing(dtype: torch.dtype) -> None:
    """Log-probabilities of -inf, in one model or in both, give the upper limit and no NaN."""
    inf = math.inf
    p = torch.tensor([[0.0, -inf, -inf], [math.log(0.5), math.log(0.5), -inf]], dtype=dtype)
    q = torch.tensor([[-inf, 0.0, -inf], [math.log(0.5), math.log(0.5), -inf]], dtype=dtype)
    for metric, most in ((JensenShannon(), math.log(2)), (TotalVariation(), 1.0), (Hellinger(), 1.0)):
        _, found = metric.measure(p, q, none(2))
        assert found.tolist() == [pytest.approx(most, rel=1e-5), 0.0]
        assert found.max() <= metric.upper
    assert KullbackLeibler().measure(p, q, none(2))[1].tolist() == [inf, 0.0]


def test_jensen_shannon_of_close_models_is_not_lost_in_rounding() -> None:
    p, _, _ = logits(2, vocabulary=5000)
    q = p + 1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, exact = JensenShannon().measure(p.log_softmax(-1), q.log_softmax(-1), none(30))
    _, single = JensenShannon().measure(p.log_softmax(-1).float(), q.log_softmax(-1).float(), none(30))
    np.testing.assert_allclose(single.numpy(), exact.numpy(), rtol=0.02)
    assert exact.max() < 1e-6


def test_top_k_ties_go_to_the_lowest_tokens() -> None:
    tie = torch.tensor([[0.0, 1.0, 1.0, 1.0, 2.0]]).log_softmax(-1)
    low = torch.tensor([[0.0, 1.5, 1.4, 0.2, 2.0]]).log_softmax(-1)  # 4, 1, 2
    high = torch.tensor([[0.0, 0.1, 1.4, 1.5, 2.0]]).log_softmax(-1)  # 4, 3, 2
    assert TopAgreement(k=3).measure(tie, low, none(1))[1].tolist() == [0]
    assert TopAgreement(k=3).measure(tie, high, none(1))[1].tolist() == [pytest.approx(1 / 3)]
    assert TopAgreement(k=5).measure(tie, high, none(1))[1].tolist() == [0]
    assert TopAgreement(k=1).measure(low, tie, none(1))[1].tolist() == [0]
    flat = torch.zeros(3, 2000).log_softmax(-1)
    first = flat.clone()
    first[:, :7] += 1
    assert TopAgreement(k=7).measure(flat, first, none(3))[1].tolist() == [0, 0, 0]


def test_top_k_refuses_what_cannot_be() -> None:
    p = torch.zeros(2, 4).log_softmax(-1)
    with pytest.raises(InvalidMethod, match="5 most likely of 4 tokens"):
        TopAgreement().measure(p, p, none(2))
    for k in (0, -1, True):
        with pytest.raises(InvalidMethod):
            TopAgreement(k=k)


QUESTION = Question(question="?", choices=("a", "bcd", "üüüü"), answer=1)


def said(*log_likelihoods: float) -> Answers:
    return Answers.of_choices(log_likelihoods, QUESTION.choices)


def test_choices_are_counted_by_hand() -> None:
    right, wrong = said(-3, -2, -9), said(-2, -3, -9)
    assert Accuracy().measure(right, wrong, QUESTION) == (0, 1)
    assert Accuracy().measure(wrong, right, QUESTION) == (1, 0)
    assert Accuracy().measure(said(-2, -2, -9), right, QUESTION) == (1, 0), "the first of equals"
    # per character -3, -1, -1.25; per byte -3, -1, -0.625: the umlauts take two bytes each
    assert AccuracyNormalised().measure(said(-3, -3, -5), said(-3, -6, -5), QUESTION) == (0, 1)
    assert AccuracyBytes().measure(said(-3, -3, -5), said(-3, -1.5, -5), QUESTION) == (1, 0)
    assert Flips().measure(right, wrong, QUESTION) == Flips().measure(wrong, right, QUESTION) == (0, 1)
    other = said(-9, -3, -2)
    assert Flips().measure(wrong, other, QUESTION) == (0, 0)
    assert AnswerChanges().measure(wrong, other, QUESTION) == (0, 1)
    assert AnswerChanges().measure(wrong, said(-20, -30, -90), QUESTION) == (0, 0)


def test_brier_score_by_hand() -> None:
    half = said(math.log(0.25), math.log(0.5), math.log(0.25))
    sure = said(0, -math.inf, -math.inf)
    first, second = ChoiceBrier().measure(half, sure, QUESTION)
    assert first == pytest.approx((0.25**2 + 0.5**2 + 0.25**2) / 2)
    assert second == 1
    assert ChoiceBrier().measure(said(-1000, 0, -1000), said(-5000, -4000, -5000), QUESTION) == (0, 0)


@pytest.mark.parametrize("values", [(math.nan, 0.0), (math.inf, 0.0), (-math.inf, -math.inf)])
def test_log_likelihoods_that_are_none(values: tuple[float, float]) -> None:
    with pytest.raises(InvalidMeasurement):
        Answers(log_likelihoods=values)


@pytest.mark.parametrize(
    ("options", "text", "matches"),
    [
        ({}, " 1,234.", False),
        ({}, " 1,234 ", True),
        ({"strip": False}, " 1,234", False),
        ({"strip": False}, "1,234", True),
        ({"ignore_punctuation": True}, "1 234", False),
        ({"ignore_punctuation": True}, "(1234)", True),
        ({"ignore": (",", r"\.$")}, "1234.", True),
        ({"ignore": ","}, "12,34", True),
        ({"extract": r"#### (-?[0-9.,]+)"}, "so 5 #### 1,234 done #### 7", True),
        ({"extract": r"#### (-?[0-9.,]+)"}, "1,234", False),
        ({"extract": r"is (\d+$)|([0-9,]+) it is"}, "1,234 it is", True),
        ({"extract": r"[0-9,]+"}, "it is 1,234, I say", False),
        ({"ignore_numbers": True}, "9,9", True),
    ],
)
def test_exact_match_options(options: dict[str, Any], text: str, matches: bool) -> None:
    question = Question(question="?", answer="1,234")
    pair = ExactMatch(**options).measure(Answers(text="never"), Answers(text=text), question)
    assert pair == (1, float(not matches))


def test_exact_match_ignores_case_on_request() -> None:
    question = Question(question="?", answer="Paris")
    given = (Answers(text="PARIS"), Answers(text="Paris"), question)
    assert ExactMatch().measure(*given) == (1, 0)
    assert ExactMatch(ignore_case=True).measure(*given) == (0, 0)
    with pytest.raises(InvalidMethod, match="not a regular expression"):
        ExactMatch(extract="(")


def test_cosine_by_hand() -> None:
    x, y = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.5])
    assert Cosine().measure(x, y, None) == (0, 1)
    assert Cosine().measure(x, -x, None) == (0, 2)
    assert Cosine().measure(x, 7 * x, None) == (0, 0)
    assert Cosine().measure(x, x + 6 * y, None)[1] == pytest.approx(1 - 1 / math.sqrt(2))
    for bad in (torch.zeros(2), torch.tensor([math.nan, 1.0]), torch.tensor([math.inf, 1.0])):
        with pytest.raises(InvalidMeasurement):
            Cosine().measure(x, bad, None)


def test_reciprocal_rank_by_hand() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    second = torch.tensor([[0.0, 1.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    assert Ranking().measure(first, second, 0) == (0, pytest.approx(2 / 3))
    assert Ranking().measure(first, second, 2) == (pytest.approx(2 / 3), 0)
    same = torch.ones(4, 2)
    assert Ranking().measure(same, same, 2) == (pytest.approx(2 / 3), pytest.approx(2 / 3)), "the earlier of equals"
    with pytest.raises(InvalidMeasurement, match="candidate 3"):
        Ranking().measure(first, second, 3)


def test_classification_by_hand() -> None:
    first, second = torch.tensor([0.1, 0.9, 0.0]), torch.tensor([0.9, 0.9, 0.0])
    assert Classification().measure(first, second, 1) == (0, 1)
    with pytest.raises(InvalidMeasurement, match="class 3"):
        Classification().measure(first, second, 3)
    with pytest.raises(InvalidMeasurement, match="NaN"):
        Classification().measure(first, torch.tensor([math.nan, 1.0, 0.0]), 1)


def test_any_function_within_its_limits() -> None:
    metric = PythonFunction(function=lambda a, b: a - b, lower=-1.0, upper=1.0)
    assert metric.measure(0.5, 0.25, "x") == (0, 0.25)
    assert PythonFunction().measure([0.0, 0.0], [3.0, 4.0], 0) == (0, 5)
    assert PythonFunction(function="operator:sub", lower=None).measure(1, 3, 0) == (0, -2)


@pytest.mark.parametrize("value", [1.5, -1.5, math.nan, math.inf, "much", None])
def test_a_function_outside_its_limits_names_unit_and_value(value: Any) -> None:
    metric = PythonFunction(function=lambda a, b: b, lower=-1.0, upper=1.0)
    with pytest.raises(InvalidMeasurement, match="unit 17") as error:
        metric.measure(0, value, 17)
    if isinstance(value, float):
        assert repr(value) in error.value.happened


@pytest.mark.parametrize(
    "arguments",
    [{"lower": 1.0, "upper": 1.0}, {"lower": math.nan}, {"upper": math.inf}],
)
def test_limits_that_are_none(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidMethod, match="no range"):
        PythonFunction(**arguments)


@pytest.mark.parametrize("name", ["no_such_module_here:f", "math:no_such", "math", "math:pi", ":x"])
def test_a_function_that_is_not_there(name: str) -> None:
    with pytest.raises(InvalidMethod):
        PythonFunction(function=name).measure([0.0], [0.0], 0)


@pytest.fixture(scope="module")
def pair(
    network_of: Callable[[str], Network],
    model_of: Callable[[str], nn.Module],
    save_model: Callable[[dict[str, Any], Path], nn.Module],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Network, nn.Module, Network, nn.Module]:
    """A llama, and one whose weights are off by a little."""
    directory = tmp_path_factory.mktemp("pair") / "changed"
    changed = save_model(model_of("llama").config.to_dict(), directory)  # type: ignore[union-attr,operator]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(changed.named_parameters()):
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    changed.save_pretrained(directory)  # type: ignore[operator]
    return network_of("llama"), model_of("llama"), load_network(open_source(directory)), changed


def by_definition(before: nn.Module, after: nn.Module, ids: Tensor) -> dict[str, tuple[float, float]]:
    with torch.no_grad():
        p, q = (m(input_ids=ids[None], use_cache=False).logits[0].double().tolist() for m in (before, after))
    rows = list(zip(p[:-1], q[:-1], ids[1:].tolist(), strict=True))
    count = len(rows)
    return {
        "perplexity": (
            sum(slow.loss(a, y) for a, _, y in rows) / count,
            sum(slow.loss(b, y) for _, b, y in rows) / count,
        ),
        "kl": (0.0, sum(slow.kl(a, b) for a, b, _ in rows) / count),
        "disagreement": (0.0, sum(slow.disagrees(a, b) for a, b, _ in rows) / count),
    }


def test_the_scorer_computes_the_definition(
    pair: tuple[Network, nn.Module, Network, nn.Module], windows_of: Callable[..., Windows]
) -> None:
    before, model, after, changed = pair
    windows = windows_of(4, 20)
    order = np.array([2, 0, 3])
    found = Scorer(before, after, windows).score(order)
    assert {"perplexity", "kl", "disagreement"} <= set(found)
    for name, measurement in found.items():
        assert measurement.metric == name
        assert measurement.drawn.tolist() == [2, 0, 3]
        assert measurement.documents.tolist() == [0, 0, 1]
        assert measurement.tokens == 19
        assert measurement.fingerprint == windows.fingerprint
    for i, window in enumerate(order):
        for name, (first, second) in by_definition(model, changed, windows.ids[window]).items():
            assert found[name].reference[i] == pytest.approx(first, rel=1e-4, abs=1e-9)
            assert found[name].compressed[i] == pytest.approx(second, rel=1e-3, abs=1e-6)
    assert found["kl"].degradation.min() > 0


def test_long_windows_are_scored_in_pieces_without_a_seam(
    pair: tuple[Network, nn.Module, Network, nn.Module], windows_of: Callable[..., Windows]
) -> None:
    before, model, after, changed = pair
    windows = windows_of(1, 200, seed=6)
    found = measure(before, after, windows)
    expected = by_definition(model, changed, windows.ids[0])
    for name, (_, second) in expected.items():
        assert found[name].compressed[0] == pytest.approx(second, rel=1e-3, abs=1e-6)


def test_a_model_against_itself(network_of: Callable[[str], Network], windows_of: Callable[..., Windows]) -> None:
    found = measure(network_of("qwen2"), network_of("qwen2"), windows_of(3, 12))
    for measurement in found.values():
        assert measurement.degradation.tolist() == [0, 0, 0]


def test_scores_do_not_depend_on_the_batch_or_on_stored_states(
    pair: tuple[Network, nn.Module, Network, nn.Module],
    windows_of: Callable[..., Windows],
    tmp_path: Path,
) -> None:
    before, _, after, _ = pair
    windows = windows_of(6, 16)
    whole = Scorer(before, after, windows).score(np.arange(6))
    scorer = Scorer(before, after, windows, ReferenceStates(Journal(tmp_path), "states"))
    first, second = scorer.score(np.array([4, 1])), scorer.score(np.array([1, 0, 5]))
    again = Scorer(before, after, windows, ReferenceStates(Journal(tmp_path), "states")).score(np.array([5, 4]))
    for name, expected in whole.items():
        for found in (first, second, again):
            at = found[name].drawn
            np.testing.assert_allclose(found[name].reference, expected.reference[at], rtol=1e-5)
            np.testing.assert_allclose(found[name].compressed, expected.compressed[at], rtol=1e-4, atol=1e-7)


def test_a_model_that_overflows_is_refused(
    pair: tuple[Network, nn.Module, Network, nn.Module], windows_of: Callable[..., Windows], tmp_path: Path
) -> None:
    before, model, _, _ = pair
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_parameter("lm_head.weight").fill_(3e38)
    broken.save_pretrained(tmp_path / "broken")  # type: ignore[operator]
    with pytest.raises(PennyweightError, match=r"NaN|infinite"):
        measure(before, load_network(open_source(tmp_path / "broken")), windows_of(1, 8))
