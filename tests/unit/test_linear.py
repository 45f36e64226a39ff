"""The fast linear product: the same numbers as the definition, in every shape, and gradients where they are wanted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pennyweight.numerics.linear import add_second_moment, linear


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_it_is_x_w_transposed_plus_b(batch: tuple[int, ...], with_bias: bool, grad: bool) -> None:
    x, weight, bias = values(*batch, 33), values(17, 33, seed=1), values(17, seed=2) if with_bias else None
    with torch.set_grad_enabled(grad):
        result = linear(x, weight, bias)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert result.shape == (*batch, 17)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_other_types_work_too() -> None:
    x, weight = values(3, 8), values(4, 8, seed=1)
    with torch.no_grad():
        assert linear(x.double(), weight.double()).dtype == torch.float64
        assert linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16


def test_lower_precision_is_had_where_it_is_asked_for() -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(values(3, 8), values(4, 8, seed=1)).dtype == torch.bfloat16


def test_gradients_flow_through() -> None:
    x = values(3, 8).requires_grad_()
    weight = values(4, 8, seed=1)
    (gradient,) = torch.autograd.grad(linear(x, weight).sum(), x)
    torch.testing.assert_close(gradient, weight.sum(0).expand(3, 8))


def test_strided_arguments() -> None:
    x, weight = values(8, 6).T, values(8, 5, seed=1).T
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight), x.contiguous() @ weight.T.contiguous(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_second_moment_is_the_sum_of_outer_products(tokens: int) -> None:
    x = values(tokens, 12)
    with torch.no_grad():
        result = torch.ones(12, 12)
        add_second_moment(result, x)
    expected = 1 + sum(torch.outer(row, row) for row in x.double())
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-4)
