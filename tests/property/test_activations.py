"""Rounded activations and products of codes, for numbers nobody would expect."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.formats.passing import PASSING, Dynamic, Integers
from pennyweight.numerics.integer import Operand, linear

DYNAMIC = [format for kind in PASSING for format in kind.examples() if format.over.kind == "token"]
numbers = st.floats(-(2.0**123), 2.0**123, width=32)
tokens = st.lists(st.lists(numbers, min_size=6, max_size=6), min_size=1, max_size=4).map(torch.tensor)


@pytest.mark.parametrize("format", DYNAMIC, ids=lambda format: format.label())
@given(x=tokens)
def test_codes_in_range_and_values_finite(format, x) -> None:
    codes = Dynamic(format).codes(x)
    whole = codes.codes.double()
    assert format.limits[0] <= float(whole.min()) <= float(whole.max()) <= format.limits[1]
    assert torch.isfinite(codes.values()).all()


@pytest.mark.parametrize("symmetric", [True, False])
@given(x=tokens, bits=st.integers(2, 8))
def test_no_number_moves_by_more_than_half_a_step(symmetric, x, bits) -> None:
    """A step at the ends where there is a zero point: it is a whole number itself."""
    codes = Dynamic(Integers(bits=bits, symmetric=symmetric)).codes(x)
    step = codes.scale.double()
    off = (codes.values(torch.float64) - x.double()).abs()
    most = (0.5 if symmetric else 1.0) * step
    assert (off <= most * (1 + 1e-5) + 1e-5 * x.double().abs().amax(-1, keepdim=True) + 1e-37).all()


codes_of = st.lists(st.integers(-128, 127), min_size=12, max_size=12)


@given(
    x=st.lists(codes_of, min_size=1, max_size=3),
    w=st.lists(codes_of, min_size=1, max_size=3),
    runs=st.sampled_from([(1, 1), (1, 3), (2, 4), (3, 2), (6, 1)]),
    zeros=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 100),
)
def test_products_of_codes_are_products_of_numbers(x, w, runs, zeros, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for codes, count, shifted in zip((x, w), runs, zeros, strict=True):
        scale = torch.rand(len(codes), count, generator=generator) + 0.01
        zero = torch.randint(-128, 128, scale.shape, generator=generator, dtype=torch.int8) if shifted else None
        sides.append(Operand(torch.tensor(codes, dtype=torch.int8), scale, zero))
    a, b = (side.values(torch.float64) for side in sides)
    size = a.abs() @ b.abs().T + 1e-9
    assert (((linear(*sides) - a @ b.T) / size).abs() < 1e-6).all()
