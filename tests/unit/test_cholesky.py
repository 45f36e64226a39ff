"""The factor of the inverse: against its definition, with damping, with dead inputs, and when there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference.cholesky import upper_factor_of_inverse
from reference.layers import correlated_gram
from reference.quantizers import damped

from pennyweight.errors import NotPositiveDefinite
from pennyweight.numerics.cholesky import inverse_cholesky


@pytest.mark.parametrize("damping", [0.001, 0.01, 0.3])
@pytest.mark.parametrize("size", [1, 2, 7, 24])
def test_it_equals_the_definition(size: int, damping: float) -> None:
    gram = correlated_gram(size, seed=size)
    factor = inverse_cholesky(gram, damping)
    expected = upper_factor_of_inverse(damped(gram.double().numpy(), damping))
    np.testing.assert_allclose(factor.upper.numpy(), expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())
    assert (factor.damping, factor.attempts) == (damping, 1)
    assert factor.upper.dtype == torch.float32


def test_it_inverts_the_damped_matrix() -> None:
    gram = correlated_gram(64, seed=0)
    upper = inverse_cholesky(gram, 0.01).upper.double()
    product = upper.T @ upper @ torch.from_numpy(damped(gram.double().numpy(), 0.01))
    torch.testing.assert_close(product, torch.eye(64, dtype=torch.float64), rtol=0, atol=1e-3)
    assert torch.equal(upper, upper.triu())
    assert (upper.diagonal() > 0).all()


def test_the_argument_is_not_written_to() -> None:
    gram = correlated_gram(8, seed=1)
    before = gram.clone()
    inverse_cholesky(gram, 0.01)
    inverse_cholesky(gram, 0.01, order=torch.arange(7, -1, -1))
    assert torch.equal(gram, before)


def test_an_order_is_that_of_a_reordered_matrix() -> None:
    gram = correlated_gram(20, seed=8)
    gram[4], gram[:, 4] = 0, 0
    order = torch.randperm(20, generator=torch.Generator().manual_seed(9))
    ordered = inverse_cholesky(gram, 0.01, order=order).upper
    torch.testing.assert_close(ordered, inverse_cholesky(gram[order][:, order].contiguous(), 0.01).upper)


def test_dead_inputs_stay_apart() -> None:
    gram = correlated_gram(12, seed=2)
    gram[[3, 7]] = 0
    gram[:, [3, 7]] = 0
    upper = inverse_cholesky(gram, 0.01).upper
    for dead in (3, 7):
        others = torch.arange(12) != dead
        assert (upper[dead, others] == 0).all()
        assert (upper[others, dead] == 0).all()
    expected = upper_factor_of_inverse(damped(gram.double().numpy(), 0.01))
    np.testing.assert_allclose(upper.numpy(), expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


def test_nothing_but_dead_inputs() -> None:
    upper = inverse_cholesky(torch.zeros(5, 5), 0.01).upper
    torch.testing.assert_close(upper, torch.eye(5) * 1.01**-0.5)


def test_a_rank_deficient_matrix_needs_no_more_than_damping() -> None:
    gram = correlated_gram(64, seed=3, tokens=4)
    factor = inverse_cholesky(gram, 0.01)
    assert factor.damping == 0.01
    assert torch.isfinite(factor.upper).all()


def test_damping_escalates_tenfold_and_is_reported() -> None:
    """An eigenvalue of minus three hundredths of the mean: 0.01 is too little, 0.1 is enough."""
    values = torch.linspace(0.5, 1.5, 16)
    values[0] = -0.03 * values[1:].sum() / (16 + 0.03)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(4)))[0]
    factor = inverse_cholesky(rotation * values @ rotation.T, 0.01)
    assert factor.damping == pytest.approx(0.1)
    assert factor.attempts == 3  # float32, float64, and float64 with ten times the damping


def test_float64_comes_before_more_damping() -> None:
    """A matrix so ill-conditioned that float32 finds no factor and float64 does."""
    values = torch.logspace(0, -13, 64, dtype=torch.float64)
    rotation = torch.linalg.qr(
        torch.randn(64, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    )[0]  # fmt: skip
    gram = (rotation * values @ rotation.T).float()
    factor = inverse_cholesky(gram, 1e-6)
    assert factor.damping == pytest.approx(1e-6)
    assert torch.isfinite(factor.upper).all()


def test_no_factor_at_all() -> None:
    gram = correlated_gram(8, seed=6)
    gram -= 3 * gram.diagonal().mean() * torch.ones(8, 8)
    gram.diagonal().clamp_(min=0.1)
    with pytest.raises(NotPositiveDefinite, match="damping up to 1"):
        inverse_cholesky(gram, 0.01)


@pytest.mark.parametrize("place", [(2, 2), (1, 3)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite(place: tuple[int, int], value: float) -> None:
    gram = correlated_gram(8, seed=7)
    gram[place] = gram[place[::-1]] = value
    with pytest.raises(NotPositiveDefinite):
        inverse_cholesky(gram, 0.01)
