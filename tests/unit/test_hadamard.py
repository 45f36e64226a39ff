"""Hadamard matrices in exact integers; the fast product against the dense one; what rotations do to distributions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.numerics.hadamard import hadamard, order, random_hadamard, random_orthogonal, transform
from pennyweight.numerics.random import stream

# Orders up to 256 that are no power of two times a smaller one; 52, 100, 180 and 244 come from fields of p² elements.
PALEY = (
    12, 20, 28, 36, 44, 52, 60, 68, 76, 84, 100, 108, 124, 132, 140, 148, 164, 180, 196, 204, 212, 220, 228, 244, 252,
)  # fmt: skip
UNKNOWN = (92, 116, 156, 172, 184, 188, 232, 236)
SIZES = {  # of models
    192: (12, 16), 384: (12, 32), 576: (36, 16), 768: (12, 64), 896: (28, 32), 960: (60, 16), 1152: (36, 32),
    1280: (20, 64), 1536: (12, 128), 1920: (60, 32), 2304: (36, 64), 2560: (20, 128), 3072: (12, 256), 3584: (28, 128),
    4096: (1, 4096), 4608: (36, 128), 4864: (76, 64), 5120: (20, 256), 5504: (344, 16), 5632: (44, 128),
    6912: (108, 64), 8960: (140, 64), 11008: (344, 32), 13824: (108, 128), 14336: (28, 512), 18944: (148, 128),
}  # fmt: skip
LARGE_FIELDS = (312, 344, 368, 464, 688, 752)  # q = 311, 7³, 367, 463, and 751; 688 doubles 344
PRODUCTS = (1904,)  # 28 · 68: no field has 1903 or 951 elements
KNOWN = [n for n in range(1, 401) if order(n)]


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, generator=stream(0, "test_hadamard", str(shape)), dtype=torch.float64)


@pytest.mark.parametrize("n", range(4, 257, 4))
def test_orders_up_to_256_in_exact_integers(n: int) -> None:
    if n in UNKNOWN:
        assert order(n) is None
        return
    matrix = hadamard(n)
    assert matrix.dtype == torch.int8
    assert matrix.shape == (n, n)
    assert bool((matrix.abs() == 1).all())
    wide = matrix.int()
    assert torch.equal(wide @ wide.T, n * torch.eye(n, dtype=torch.int32))


@pytest.mark.parametrize("n", [1, 2, *LARGE_FIELDS, *PRODUCTS, 576, 896, 1536])
def test_other_orders_in_exact_integers(n: int) -> None:
    """Sums of up to 2²⁴ ones are exact in float32."""
    matrix = hadamard(n).float()
    assert bool((matrix.abs() == 1).all())
    assert torch.equal(matrix @ matrix.T, n * torch.eye(n))


@pytest.mark.parametrize(("n", "expected"), SIZES.items())
def test_sizes_of_models(n: int, expected: tuple[int, int]) -> None:
    """Some rows of H, from the fast product: the Kronecker product of two matrices that are tested above."""
    assert order(n) == expected
    core, power = expected
    chosen = torch.randperm(n, generator=stream(n, "rows"))[:16]
    fast = transform(torch.nn.functional.one_hot(chosen, n).double()) * n**0.5
    sylvester = torch.from_numpy(scipy.linalg.hadamard(power, dtype=np.int8))
    outer = hadamard(core)[chosen // power][:, :, None] * sylvester[chosen % power][:, None, :]
    torch.testing.assert_close(fast, outer.reshape(16, n).double(), rtol=0, atol=1e-12)
    exact = fast.round()
    assert torch.equal(exact @ exact.T, n * torch.eye(16, dtype=torch.float64))


def test_the_smallest_core() -> None:
    assert [n for n in range(1, 257) if order(n) == (n, 1) and n > 1] == list(PALEY)
    assert [order(n) for n in (1, 2, 4, 24, 344, 752, 1104, 1904)] == [
        (1, 1), (1, 2), (1, 4), (12, 2), (344, 1), (752, 1), (276, 4), (1904, 1),
    ]  # fmt: skip


@given(st.integers(1, 4000))
def test_an_order_is_a_core_times_a_power_of_two(n: int) -> None:
    found = order(n)
    if found is None:
        assert n > 2
        assert n % 4 != 0 or order(n // 2) is None
        return
    core, power = found
    assert core * power == n
    assert power.bit_count() == 1
    assert order(2 * n) == (core, 2 * power)


@pytest.mark.parametrize("n", [2, 4, 64])
def test_powers_of_two_are_sylvesters(n: int) -> None:
    np.testing.assert_array_equal(hadamard(n).numpy(), scipy.linalg.hadamard(n))


def test_paley_by_hand() -> None:
    """Type I over 11 elements, and type II over 17."""
    first = bordered(11)
    first[1:, 0] = -1
    np.testing.assert_array_equal(hadamard(12).numpy(), first + np.eye(12, dtype=int))
    second = np.kron(bordered(17), [[1, 1], [1, -1]]) + np.kron(np.eye(18, dtype=int), [[1, -1], [-1, -1]])
    np.testing.assert_array_equal(hadamard(36).numpy(), second)


def bordered(p: int) -> NDArray[np.int64]:
    """Legendre's symbols of the differences, by Euler's criterion, and ones around them."""
    matrix = np.ones((p + 1, p + 1), dtype=np.int64)
    matrix[0, 0] = 0
    for a in range(p):
        for b in range(p):
            matrix[1 + a, 1 + b] = 0 if a == b else 1 if pow(a - b, (p - 1) // 2, p) == 1 else -1
    return matrix


def test_a_matrix_belongs_to_the_caller() -> None:
    hadamard(12).zero_()
    transform(torch.ones(12))
    hadamard(12).zero_()
    assert bool((hadamard(12) != 0).all())
    torch.testing.assert_close(transform(torch.ones(12)).norm(), torch.tensor(12.0).sqrt())


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("n", [*KNOWN[::3], 464, 576, 688, 752, 1376, 1536, 1904, 2048, 3584, 3952])
def test_the_fast_product_is_the_dense_one(n: int, transpose: bool) -> None:
    x, matrix = rows(3, n), hadamard(n).double() / n**0.5
    expected = x @ (matrix.T if transpose else matrix)
    torch.testing.assert_close(transform(x, transpose=transpose), expected, rtol=0, atol=1e-12)


def test_the_fast_product_is_the_dense_one_where_that_is_slow() -> None:
    x = rows(2, 11008)
    columns = hadamard(11008)[:, ::97].double() / 11008**0.5
    torch.testing.assert_close(transform(x)[:, ::97], x @ columns, rtol=0, atol=1e-12)


@given(st.sampled_from(KNOWN), st.lists(st.integers(0, 3), max_size=3), st.booleans())
def test_the_transpose_inverts_rows_of_any_shape(n: int, batch: list[int], transpose: bool) -> None:
    x = rows(*batch, n)
    before = x.clone()
    there = transform(x, transpose=transpose)
    assert there.shape == x.shape
    torch.testing.assert_close(there.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(transform(there, transpose=not transpose), x, rtol=0, atol=1e-12)
    assert torch.equal(x, before)


@pytest.mark.parametrize("n", [12, 76, 576, 3584])
def test_rows_that_are_not_contiguous(n: int) -> None:
    x = rows(n, 4, 2)
    torch.testing.assert_close(transform(x.permute(2, 1, 0)), transform(x.permute(2, 1, 0).contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_the_dtype_stays_and_the_arithmetic_is_wider(dtype: torch.dtype) -> None:
    """What is lost is float32's error and one rounding at the end."""
    x = rows(5, 576).to(dtype)
    y = transform(x)
    assert y.dtype == dtype
    exact, limits = transform(x.double()), torch.finfo(dtype)
    allowed = 1e-6 + limits.eps / 2 * exact.abs().clamp_min(limits.smallest_normal)
    assert bool(((y.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("n", [12, 152, 160, 256])
def test_gradients(n: int, transpose: bool) -> None:
    x = rows(2, n).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: transform(x, transpose=transpose), x)
    weight = rows(2, n + 1)[:, :n]
    (gradient,) = torch.autograd.grad((transform(x, transpose=transpose) * weight).sum(), x)
    torch.testing.assert_close(gradient, transform(weight, transpose=not transpose), rtol=0, atol=1e-12)


def test_inference_mode_leaves_nothing_behind() -> None:
    """What is kept between calls can be used with gradients afterwards."""
    with torch.inference_mode():
        transform(torch.ones(2, 44 * 16))
    x = torch.ones(2, 44 * 16, requires_grad=True)
    transform(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("n", "named"), [(92, "88 and 96"), (3, "2 and 4"), (18, "16 and 20"), (0, "is 1"), (-4, "is 1")]
)
def test_unknown_orders_are_refused(n: int, named: str) -> None:
    assert order(n) is None
    for build in (hadamard, lambda n: random_hadamard(n, torch.Generator())):
        with pytest.raises(InvalidMethod, match=f"(?s)order {n} can.*{named}\n.*random orthogonal"):
            build(n)
    if n >= 0:
        with pytest.raises(InvalidMethod, match=named):
            transform(torch.ones(2, n))


def kurtosis(x: Tensor) -> float:
    centred = x - x.mean()
    return float(centred.pow(4).mean() / centred.square().mean().square())


@pytest.mark.parametrize("n", [576, 1536])
def test_laplace_data_become_normal(n: int) -> None:
    uniform = torch.rand(512, n, generator=stream(0, "laplace", str(n)), dtype=torch.float64) - 0.5
    x = -uniform.sign() * (1 - 2 * uniform.abs()).log()
    assert kurtosis(x) == pytest.approx(6, abs=0.3)
    assert kurtosis(transform(x)) == pytest.approx(3, abs=0.05)


def test_an_outlier_is_spread_over_all() -> None:
    x = torch.zeros(896)
    x[123] = 30
    torch.testing.assert_close(transform(x).abs(), torch.full((896,), 30 / 896**0.5))


@pytest.mark.parametrize("n", [1, 2, 12, 36, 192])
def test_random_signs_come_first(n: int) -> None:
    rotation = random_hadamard(n, stream(0, "signs"))
    again, other = random_hadamard(n, stream(0, "signs")), random_hadamard(n, stream(1, "signs"))
    assert rotation.dtype == torch.float64
    assert torch.equal(rotation, again)
    assert n < 12 or not torch.equal(rotation, other)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-13)
    signs = (rotation / hadamard(n))[0] * n**0.5
    torch.testing.assert_close(signs.abs(), torch.ones(n, dtype=torch.float64))
    v = rows(n)
    torch.testing.assert_close(rotation @ v, transform(signs * v, transpose=True), rtol=0, atol=1e-12)


def test_random_signs_are_fair() -> None:
    positive = (
        sum(float((random_hadamard(12, stream(seed, "fair"))[0] > 0).double().mean()) for seed in range(500)) / 500
    )
    assert positive == pytest.approx(0.5, abs=0.03)  # four standard deviations


def test_random_orthogonal_matrices_are_uniform() -> None:
    """LAPACK's Q alone has one determinant for all draws, and a mean of -0.42 at its first entry."""
    generator, draws = stream(0, "haar"), 2000
    drawn = torch.stack([random_orthogonal(4, generator) for _ in range(draws)])
    torch.testing.assert_close(drawn @ drawn.mT, torch.eye(4).double().expand(draws, 4, 4), rtol=0, atol=1e-13)
    assert float(drawn.mean(0).abs().max()) < 4.5 * (1 / 4 / draws) ** 0.5
    positive = float((torch.linalg.det(drawn) > 0).double().mean())
    assert positive == pytest.approx(0.5, abs=0.05)
    traces = drawn.diagonal(dim1=1, dim2=2).sum(1)
    assert float(traces.square().mean()) == pytest.approx(1, abs=0.15)  # exactly 1 for the Haar measure
    assert float(traces.pow(4).mean()) == pytest.approx(3, abs=0.6)  # exactly 3


def test_random_orthogonal_matrices_of_any_order() -> None:
    for n in (1, 3, 92):
        rotation = random_orthogonal(n, stream(0, "any"))
        assert rotation.dtype == torch.float64
        assert torch.equal(rotation, random_orthogonal(n, stream(0, "any")))
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)
    with pytest.raises(InvalidMethod, match="order 0"):
        random_orthogonal(0, torch.Generator())
