"""Grids and dense storage: the arithmetic of a format, the ends of its range, and the published errors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from reference.layers import heavy_weight
from reference.quantizers import dequantize, min_max, round_to_nearest

from pennyweight import formats
from pennyweight.errors import InvalidFormat, UnknownName
from pennyweight.formats import Compressed, Dense, Format, Grid, Part

ALL_BITS = range(2, 9)


def rounded(weight: torch.Tensor, grid: Grid, *, search: bool = False) -> torch.Tensor:
    scales = grid.fit(weight, search=search)
    return grid.decode(scales.part(scales.round(weight)).tensors, tuple(weight.shape))


def relative_error(weight: torch.Tensor, grid: Grid, *, search: bool = False) -> float:
    change = (rounded(weight, grid, search=search) - weight).double()
    return float(change.square().sum() / weight.double().square().sum())


@pytest.mark.parametrize("label", ["int4 g64 asym", "int8 row sym", "int3 g96 sym bfloat16", "int2 g32 asym float32"])
def test_labels_of_grids_are_read_back(label: str) -> None:
    assert formats.parse(label).label() == label
    assert isinstance(formats.parse(f" {label} "), Grid)


def test_labels_say_what_they_mean() -> None:
    assert formats.parse("int4 g64 asym") == Grid(bits=4, group_size=64, symmetric=False)
    assert formats.parse("int8 row sym bfloat16") == Grid(bits=8, scale_dtype="bfloat16")
    assert formats.parse("bfloat16") == Dense(dtype="bfloat16")


@pytest.mark.parametrize(
    "label", ["int4", "int4 g64", "int4 64 asym", "int4 g64 asymmetric", "float8", "", "int10 row sym"]
)
def test_labels_nobody_knows(label: str) -> None:
    with pytest.raises(UnknownName, match=re.escape(repr(label))):
        formats.parse(label)


@pytest.mark.parametrize("label", ["int1 row sym", "int9 g64 asym", "int4 g0 sym", "int4 g64 sym float8"])
def test_labels_of_impossible_grids(label: str) -> None:
    with pytest.raises(InvalidFormat):
        formats.parse(label)


def test_formats_keep_the_protocol() -> None:
    assert isinstance(Grid(bits=4), Format)
    assert isinstance(Dense(), Format)


def test_bits_per_weight_count_everything() -> None:
    """Asymmetric 4 bit with float16 scales: 4.16 at g128, 4.31 at g64, 4.63 at g32."""
    for group, expected in ((128, 4.16), (64, 4.31), (32, 4.63)):
        grid = Grid(bits=4, group_size=group, symmetric=False)
        assert grid.stored_bits((512, 1024)) / (512 * 1024) == pytest.approx(expected, abs=0.006)
    assert Grid(bits=3, scale_dtype="float32").stored_bits((5, 7)) == 5 * (7 * 3 + 32)
    assert Dense(dtype="float32").stored_bits((2, 3, 4)) == 32 * 24


def test_576_inputs_do_not_split_into_128() -> None:
    with pytest.raises(InvalidFormat) as error:
        Grid(bits=4, group_size=128).groups(576)
    assert error.value.happened == "576 inputs do not split into groups of 128 (4 groups, 64 left over)"
    offered = [int(n) for n in re.findall(r"\d+", error.value.expected.partition("such as")[2])]
    assert offered
    assert all(576 % size == 0 for size in offered)
    nearest = re.search(r"group_size=(\d+)", error.value.mend)
    assert nearest is not None
    assert int(nearest[1]) in offered
    assert abs(int(nearest[1]) - 128) == min(abs(size - 128) for size in offered)


def test_a_group_wider_than_the_row_is_refused() -> None:
    with pytest.raises(InvalidFormat, match=r"64 inputs do not split into groups of 128 \(0 groups, 64 left over\)"):
        Grid(bits=4, group_size=128).stored_bits((8, 64))


@pytest.mark.parametrize(
    ("bits", "symmetric", "normal", "student"),
    [(4, False, 0.0101, 0.0177), (3, False, 0.0462, 0.080), (2, False, 0.252, 0.356),
     (4, True, 0.0122, 0.0262), (3, True, 0.0560, 0.114), (2, True, 0.301, 0.444)],
)  # fmt: skip
def test_min_max_has_the_known_error(bits: int, symmetric: bool, normal: float, student: float) -> None:
    """Relative squared errors at g128: asymmetric min-max, and the symmetric convention of GPTQ's code."""
    rng = np.random.default_rng(11)
    grid = Grid(bits=bits, group_size=128, symmetric=symmetric)
    weight = torch.from_numpy(rng.standard_normal((1024, 1024))).float()
    assert relative_error(weight, grid) == pytest.approx(normal, rel=0.03)
    weight = torch.from_numpy(rng.standard_t(5, (1024, 1024))).float()
    assert relative_error(weight, grid) == pytest.approx(student, rel=0.04)  # heavy tails: the error itself is noisy


@pytest.mark.parametrize(("bits", "expected"), [(4, 0.0090), (3, 0.0347), (2, 0.136)])
def test_the_range_search_has_the_known_error(bits: int, expected: float) -> None:
    weight = torch.from_numpy(np.random.default_rng(12).standard_normal((1024, 1024))).float()
    assert relative_error(weight, Grid(bits=bits, group_size=128, symmetric=False), search=True) <= expected * 1.03
    row = Grid(bits=bits, symmetric=False)
    best = {4: 0.01154, 3: 0.0374, 2: 0.1188}[bits]  # no uniform grid does better on normal data, in the limit of a row
    worst = {4: 1.06, 3: 1.06, 2: 1.25}[bits]  # at 2 bits, a zero on the grid leaves the two sides unequal
    assert best * 0.93 < relative_error(weight, row, search=True) < best * worst


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_is_never_worse_than_the_whole_range(bits: int, symmetric: bool) -> None:
    weight = heavy_weight(64, 128, seed=bits)
    grid = Grid(bits=bits, group_size=32, symmetric=symmetric)
    groups = (64, 4, 32)
    searched = (rounded(weight, grid, search=True) - weight).reshape(groups).square().sum(-1)
    whole = (rounded(weight, grid) - weight).reshape(groups).square().sum(-1)
    if symmetric:  # the whole range has a positive scale, the search one of either sign: better in sum, not one by one
        assert searched.sum() < whole.sum()
    else:
        assert (searched <= whole * (1 + 1e-5)).all()


def test_the_search_minds_importance() -> None:
    weight = heavy_weight(64, 128, seed=3)
    importance = torch.logspace(-3, 3, 128)
    grid = Grid(bits=3, group_size=32, symmetric=False)
    errors = []
    for given in (importance, None):
        scales = grid.fit(weight, importance=given)
        change = grid.decode(scales.part(scales.round(weight)).tensors, (64, 128)) - weight
        errors.append(float((change.square() * importance).sum()))
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_equal_those_of_the_slow_twin(bits: int, symmetric: bool) -> None:
    weight = heavy_weight(6, 48, seed=bits)
    grid = Grid(bits=bits, group_size=16, symmetric=symmetric)
    scales = grid.fit(weight, search=False)
    twin = min_max(weight.double().numpy(), bits, 16, symmetric)
    assert np.array_equal(scales.scale.double().numpy(), twin.scale)
    assert np.array_equal(scales.zero_point.double().numpy(), twin.zero)
    codes = round_to_nearest(weight.double().numpy(), twin)
    assert np.array_equal(scales.round(weight).numpy(), codes)
    result = grid.decode(scales.part(scales.round(weight)).tensors, (6, 48))
    np.testing.assert_allclose(result.numpy(), dequantize(codes, twin), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_are_rounded_with_the_scale_that_is_stored(dtype: str, symmetric: bool) -> None:
    """Rounding with the scale before it is stored would miss the nearest code at 8 bits, most of all in bfloat16."""
    weight = heavy_weight(32, 256, seed=1)
    grid = Grid(bits=8, symmetric=symmetric, scale_dtype=dtype)
    for search in (True, False):
        scales = grid.fit(weight, search=search)
        assert scales.scale.dtype == getattr(torch, dtype)
        stored, zero = scales.scale.double(), scales.zero_point.double()
        values = (torch.arange(256, dtype=torch.float64) - zero[:, :1]) * stored[:, :1]  # [rows, codes]
        nearest = (weight.double()[:, :, None] - values[:, None, :]).abs().amin(-1)
        chosen = (weight.double() - rounded(weight, grid, search=search).double()).abs()
        assert (chosen <= nearest + stored.abs() * 1e-5).all()


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("search", [True, False])
def test_zero_is_on_every_grid(bits: int, symmetric: bool, search: bool) -> None:
    weight = heavy_weight(8, 64, seed=bits)
    weight[:2] = weight[:2].abs() + 1  # a group far from zero on one side
    weight[:, ::5] = 0
    result = rounded(weight, Grid(bits=bits, group_size=16, symmetric=symmetric), search=search)
    assert (result[:, ::5] == 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_groups_of_zeros_and_of_nearly_zeros(symmetric: bool, dtype: str) -> None:
    weight = heavy_weight(4, 64, seed=0)
    weight[:, :32] = 0
    weight[1, 32:] = 0
    weight[2, 32:] *= 1e-30  # far below what float16 can scale
    grid = Grid(bits=4, group_size=32, symmetric=symmetric, scale_dtype=dtype)
    for search in (True, False):
        result = rounded(weight, grid, search=search)
        assert torch.isfinite(result).all()
        assert (result[:, :32] == 0).all()
        assert (result[1] == 0).all()
        assert (result[2].abs() <= 1e-28).all()


def test_scales_among_the_smallest_numbers_of_their_type() -> None:
    """An 8-bit scale of 1e-5 is 4e-8, and float16 knows 6e-8 and its multiples: zero points stay codes all the same."""
    weight = -heavy_weight(64, 32, seed=9).abs() * torch.logspace(-5, -4, 64)[:, None]
    for search in (True, False):
        result = rounded(weight, Grid(bits=8, symmetric=False), search=search)
        assert (result <= 0).all()
        assert ((result - weight).abs() <= weight.abs().amax(1, keepdim=True) / 3 + 6e-8).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("search", [True, False])
def test_a_scale_that_overflows_says_what_to_do(symmetric: bool, search: bool) -> None:
    weight = heavy_weight(4, 64, seed=0) * 1e7
    with pytest.raises(InvalidFormat, match="bfloat16"):
        Grid(bits=4, symmetric=symmetric).fit(weight, search=search)
    grid = Grid(bits=4, symmetric=symmetric, scale_dtype="bfloat16")
    assert relative_error(weight, grid, search=search) < 0.1


@pytest.mark.parametrize("symmetric", [True, False])
def test_scaling_a_weight_by_a_power_of_two_scales_the_result(symmetric: bool) -> None:
    weight = heavy_weight(16, 64, seed=4)
    grid = Grid(bits=4, group_size=32, symmetric=symmetric)
    assert torch.equal(rounded(weight * 8, grid, search=True), rounded(weight, grid, search=True) * 8)


def test_columns_encode_as_the_whole_does() -> None:
    weight = heavy_weight(16, 96, seed=5)
    for grid in (Grid(bits=3, group_size=24, symmetric=False), Grid(bits=5, group_size=None)):
        scales = grid.fit(weight)
        codes, columns = scales.round(weight), scales.columns((16, 96))
        values = grid.decode(scales.part(codes).tensors, (16, 96))
        for j in range(96):
            encoded = columns.encode(weight[:, j].contiguous(), j)
            assert torch.equal(encoded.to(torch.uint8), codes[:, j])
            torch.testing.assert_close(columns.decode(encoded, j), values[:, j], rtol=1e-6, atol=0)


def test_many_rows_are_fitted_in_chunks_without_a_seam() -> None:
    weight = heavy_weight(2100, 256, seed=6)
    grid = Grid(bits=4, group_size=64, symmetric=False)
    whole = grid.fit(weight)
    alone = grid.fit(weight[1015:1035].contiguous())
    assert torch.equal(whole.scale[1015:1035], alone.scale)
    assert torch.equal(whole.zero_point[1015:1035], alone.zero_point)


def test_dense_rounds_and_refuses_overflow() -> None:
    weight = heavy_weight(4, 8, seed=7)
    for dtype in ("float32", "float16", "bfloat16"):
        part = Dense(dtype=dtype).store(weight)
        assert torch.equal(part.format.decode(part.tensors, (4, 8)), weight.to(getattr(torch, dtype)).float())
    with pytest.raises(InvalidFormat, match="bfloat16"):
        Dense(dtype="float16").store(weight * 1e6)
    with pytest.raises(InvalidFormat, match="float8"):
        Dense(dtype="float8")


def test_parts_add_up_and_rows_are_cut() -> None:
    weight = heavy_weight(6, 32, seed=8)
    grid = Grid(bits=3, group_size=16, symmetric=False)
    scales = grid.fit(weight)
    first = scales.part(scales.round(weight))
    rest = weight - grid.decode(first.tensors, (6, 32))
    second: Part = Dense(dtype="float32").store(rest)
    both = Compressed((first, second), (6, 32), {"why": "test"})
    torch.testing.assert_close(both.dequantize(), weight)
    assert both.bits == grid.stored_bits((6, 32)) + 32 * 6 * 32
    cut = both.rows(2, 5)
    assert cut.shape == (3, 32)
    assert torch.equal(cut.dequantize(), both.dequantize()[2:5])
    assert cut.record == both.record
