"""What must hold for every grid and every weight."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pennyweight import formats
from pennyweight.formats import Dense, Grid
from pennyweight.formats.grid import Scales
from pennyweight.numerics.packing import pack_int32

grids = st.builds(
    Grid,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([None, 1, 8, 16, 32]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)
seeds = st.integers(0, 2**32)
COLUMNS = 32


def uniform(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@given(st.one_of(grids, st.builds(Dense, dtype=st.sampled_from(["float16", "bfloat16", "float32"]))))
def test_labels_are_read_back(format: Grid | Dense) -> None:
    assert formats.parse(format.label()) == format


@given(grids, st.integers(1, 5), seeds)
def test_encoding_what_was_decoded_gives_the_codes_again(grid: Grid, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = grid.groups(COLUMNS)
    dtype = getattr(torch, grid.scale_dtype)
    sign = torch.where(torch.rand(rows, groups, generator=generator) < 0.5, -1.0, 1.0)
    scale = (sign * (torch.rand(rows, groups, generator=generator) + 0.01)).to(dtype)
    zero = torch.randint(0, grid.levels, (rows, groups), generator=generator).to(torch.uint8)
    zero = torch.full_like(zero, grid.levels // 2) if grid.symmetric else zero
    codes = torch.randint(0, grid.levels, (rows, COLUMNS), generator=generator).to(torch.uint8)
    scales = Scales(grid, scale, zero)
    assert torch.equal(scales.round(grid.decode(scales.part(codes).tensors, (rows, COLUMNS))), codes)


@given(grids, st.integers(1, 5), seeds, st.floats(-5, 4), st.booleans())
def test_rounding_stays_within_half_a_step_inside_the_range(
    grid: Grid, rows: int, seed: int, magnitude: float, shifted: bool
) -> None:
    weight = (uniform((rows, COLUMNS), seed) + (1.5 if shifted else 0)) * 10**magnitude
    scales = grid.fit(weight, search=False)
    codes = scales.round(weight)
    error = (grid.decode(scales.part(codes).tensors, (rows, COLUMNS)) - weight).reshape(rows, grid.groups(COLUMNS), -1)
    inside = ((codes > 0) & (codes < grid.levels - 1)).reshape(error.shape)
    limit = scales.scale.float().abs()[..., None] * 0.501
    assert (error.abs() <= limit)[inside].all()


@given(grids, st.integers(1, 4), seeds)
def test_zeros_stay_zeros(grid: Grid, rows: int, seed: int) -> None:
    weight = uniform((rows, COLUMNS), seed)
    weight[uniform((rows, COLUMNS), seed + 1) < 0] = 0
    for search in (True, False):
        scales = grid.fit(weight, search=search)
        result = grid.decode(scales.part(scales.round(weight)).tensors, (rows, COLUMNS))
        assert (result[weight == 0] == 0).all()


@given(grids, st.sampled_from([32, 64]), seeds)
@settings(max_examples=50)
def test_stored_bits_are_what_the_tensors_take_on_disk(grid: Grid, rows: int, seed: int) -> None:
    weight = uniform((rows, COLUMNS), seed)
    scales = grid.fit(weight)
    tensors = scales.part(scales.round(weight)).tensors
    size = pack_int32(tensors["codes"], grid.bits).nbytes + tensors["scale"].nbytes
    if not grid.symmetric:  # packed along the rows, of which there is a multiple of 32
        size += pack_int32(tensors["zero_point"].T.contiguous(), grid.bits).nbytes
    assert ("zero_point" in tensors) is not grid.symmetric
    assert 8 * size == grid.stored_bits((rows, COLUMNS))


@given(grids, seeds)
@settings(max_examples=50)
def test_rows_do_not_know_each_other(grid: Grid, seed: int) -> None:
    weight = uniform((6, COLUMNS), seed)
    scales, flipped = grid.fit(weight), grid.fit(weight.flip(0))
    assert torch.equal(scales.scale.flip(0), flipped.scale)
    assert torch.equal(scales.round(weight).flip(0), flipped.round(weight.flip(0)))
