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
from pennyweight.errors import PennyweightError
from pennyweight.flow.journal import Journal
from pennyweight.flow.measure import ReferenceStates, Scorer, measure
from pennyweight.methods.measurement import Agreement, KullbackLeibler, Perplexity
from pennyweight.network.network import Network
from pennyweight.network.opening import open_source
from pennyweight.network.trace import load_network


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
    assert set(found) == {"perplexity", "kl", "disagreement"}
    for name, measurement in found.items():
        assert measurement.metric == name
        assert measurement.windows.tolist() == [2, 0, 3]
        assert measurement.documents.tolist() == [0, 0, 1]
        assert measurement.tokens == 19
        assert measurement.fingerprint == windows.fingerprint
        for i, window in enumerate(order):
            first, second = by_definition(model, changed, windows.ids[window])[name]
            assert measurement.reference[i] == pytest.approx(first, rel=1e-4, abs=1e-9)
            assert measurement.compressed[i] == pytest.approx(second, rel=1e-3, abs=1e-6)
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
            at = found[name].windows
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
