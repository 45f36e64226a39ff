"""Shapes of generalized Gaussians from samples, their quantiles, and what codes of them cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pennyweight.errors import InvalidWeights
from pennyweight.numerics.generalized_gaussian import (
    entropy_bits,
    exp_golomb_bits,
    matched,
    moment_ratio,
    quantiles,
    shape_of,
)


def drawn(shape: float, count: int = 200_000) -> torch.Tensor:
    """|x|^shape is a gamma variable; of unit variance."""
    rng = np.random.default_rng(11)
    size = rng.gamma(1 / shape, size=count) ** (1 / shape) * rng.choice([-1, 1], count)
    return torch.from_numpy(size / math.sqrt(math.gamma(3 / shape) / math.gamma(1 / shape)))


def test_ratios_of_moments_by_hand() -> None:
    assert moment_ratio(2) == pytest.approx(math.pi / 2)
    assert moment_ratio(1) == pytest.approx(2)
    assert moment_ratio(0.5) == pytest.approx(10 / 3)
    assert moment_ratio(200) == pytest.approx(4 / 3, rel=1e-3)


@pytest.mark.parametrize("shape", [2.0, 1.0, 0.5])
def test_the_shape_of_a_sample_is_found(shape: float) -> None:
    assert shape_of(drawn(shape)) == pytest.approx(shape, rel=0.02)
    assert shape_of(1e-3 * drawn(shape).float()) == pytest.approx(shape, rel=0.02)


def test_even_numbers_are_very_wide_and_nothing_has_no_shape() -> None:
    assert shape_of(torch.linspace(-1, 1, 10_001)) == pytest.approx(16, rel=1e-3)
    for values in (torch.zeros(10), torch.tensor([1.0, torch.inf])):
        with pytest.raises(InvalidWeights, match="without a shape"):
            shape_of(values)


def test_quantiles_are_those_of_normal_and_laplace() -> None:
    share = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    torch.testing.assert_close(quantiles(2, 1000), torch.special.ndtri(share), rtol=1e-9, atol=1e-12)
    laplace = -(share - 0.5).sign() * (1 - 2 * (share - 0.5).abs()).log() / math.sqrt(2)
    torch.testing.assert_close(quantiles(1, 1000), laplace, rtol=1e-9, atol=1e-12)


def test_matched_values_keep_ranks_mean_and_size_and_get_the_shape() -> None:
    x = drawn(2.0, 50_000).reshape(100, 500) * 0.02 + 0.001
    y = matched(x, 1.0)
    assert torch.equal(x.flatten().argsort(stable=True), y.flatten().argsort(stable=True))
    assert float(y.double().mean()) == pytest.approx(float(x.mean()), abs=1e-7)
    assert float(y.std()) == pytest.approx(float(x.std()), rel=1e-5)
    assert shape_of(y - y.mean()) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize(("shape", "entropy"), [(2.0, 5.37), (1.0, 5.27), (0.5, 4.76), (0.3, 3.90)])
def test_codes_cost_what_their_shape_says(shape: float, entropy: float) -> None:
    """Steps of a tenth of the deviation: entropies known, and Exp-Golomb words .2 to 2 bits above."""
    codes = (drawn(shape) / 0.1).round().long()
    found = entropy_bits(codes) / len(codes)
    assert found == pytest.approx(entropy, abs=0.02)
    assert 0.1 < exp_golomb_bits(codes) / len(codes) - found < 2.1


def test_words_by_hand() -> None:
    codes = torch.tensor([7, 7, 7, 7, -2, -2, 5, 9])  # ranks 0, 1, 2 and 3 of 4, 2, 1 and 1 codes
    assert exp_golomb_bits(codes) == 4 * 1 + 2 * 3 + 1 * 3 + 1 * 5
    assert entropy_bits(codes) == pytest.approx(4 * 1 + 2 * 2 + 1 * 3 + 1 * 3)
    assert entropy_bits(torch.zeros(5, dtype=torch.long)) == 0
