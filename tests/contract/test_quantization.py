"""Every quantizer against the contract of its room and its own promises, on several grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from reference.layers import correlated_gram, heavy_weight

from pennyweight import catalogue
from pennyweight.errors import InvalidFormat, MissingStatistics
from pennyweight.formats import Compressed, Grid
from pennyweight.numerics.random import stream
from pennyweight.promises import BetterOnAverage, Deterministic, Idempotent, Promise, RowEquivariant
from pennyweight.statistics import Statistics

METHODS = catalogue.classes("quantization")
GRIDS = [
    Grid(bits=2, group_size=32, symmetric=False),
    Grid(bits=3, group_size=24, symmetric=True),
    Grid(bits=4, group_size=96, symmetric=False, scale_dtype="bfloat16"),
    Grid(bits=4, group_size=None, symmetric=True),
    Grid(bits=5, group_size=32, symmetric=True, scale_dtype="float32"),
    Grid(bits=6, group_size=48, symmetric=False),
    Grid(bits=7, group_size=16, symmetric=True),
    Grid(bits=8, group_size=None, symmetric=False),
]
ROWS, COLUMNS = 24, 96
every_method = pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.label())


def layer(seed: int = 0, rows: int = ROWS) -> tuple[torch.Tensor, Statistics]:
    return heavy_weight(rows, COLUMNS, seed), seen(seed)


def seen(seed: int = 0) -> Statistics:
    gram = correlated_gram(COLUMNS, seed + 1000)
    root = gram.diagonal().sqrt()
    ones = torch.ones(COLUMNS)
    return Statistics(edge="edge", count=768, gram=gram, mean=0 * ones, abs_max=4 * root, fisher=ones, fisher_count=8)


def run(method: Any, weight: torch.Tensor, statistics: Statistics, grid: Grid) -> Compressed:
    result = method.compress(weight, statistics, grid, generator=stream(7, "site", method.name))
    assert isinstance(result, Compressed)
    return result


def output_error(result: Compressed, weight: torch.Tensor, statistics: Statistics) -> float:
    change = (result.dequantize() - weight).double()
    return float((change @ statistics.require_gram().double() * change).sum())


def same(a: Compressed, b: Compressed) -> bool:
    assert len(a.parts) == len(b.parts)
    pairs = [(p.tensors, q.tensors) for p, q in zip(a.parts, b.parts, strict=True)]
    return all(p.keys() == q.keys() and all(torch.equal(p[k], q[k]) for k in p) for p, q in pairs)


@every_grid
@every_method
def test_result_has_the_shape_and_stays_on_the_grid(kind: type[Any], grid: Grid) -> None:
    weight, statistics = layer()
    result = run(kind(), weight, statistics, grid)
    dequantized = result.dequantize()
    assert dequantized.shape == weight.shape == result.shape
    assert dequantized.dtype == torch.float32
    assert torch.isfinite(dequantized).all()
    assert result.bits == sum(part.format.stored_bits(result.shape) for part in result.parts)
    codes = [part.tensors["codes"] for part in result.parts if "codes" in part.tensors]
    assert codes
    assert all(c.dtype == torch.uint8 and int(c.max()) < grid.levels for c in codes)
    groups = grid.groups(COLUMNS)
    reach = weight.reshape(ROWS, groups, -1).abs().amax(-1, keepdim=True) * grid.levels / (grid.levels - 1) * 1.01
    assert (dequantized.reshape(ROWS, groups, -1).abs() <= reach).all()
    energy = float((weight @ statistics.require_gram() * weight).sum())
    assert output_error(result, weight, statistics) < energy * 4.0 ** (3 - grid.bits)


@every_grid
@every_method
def test_arguments_are_never_written_to(kind: type[Any], grid: Grid) -> None:
    weight, statistics = layer()
    before = [t.clone() for t in (weight, statistics.require_gram(), statistics.require_fisher())]
    run(kind(), weight, statistics, grid)
    if hasattr(kind, "predict"):
        kind().predict(weight, statistics, [grid])
    for tensor, copy in zip((weight, statistics.require_gram(), statistics.require_fisher()), before, strict=True):
        assert torch.equal(tensor, copy)


@every_method
def test_half_precision_weights_are_taken_as_they_are(kind: type[Any]) -> None:
    weight, statistics = layer()
    half = weight.bfloat16()
    assert same(run(kind(), half, statistics, GRIDS[2]), run(kind(), half.float(), statistics, GRIDS[2]))


@every_method
def test_groups_that_do_not_divide_are_refused(kind: type[Any]) -> None:
    weight, statistics = layer()
    with pytest.raises(InvalidFormat, match="96 inputs do not split into groups of 36 \\(2 groups, 24 left over\\)"):
        run(kind(), weight, statistics, Grid(bits=4, group_size=36))


@every_method
def test_what_it_needs_it_asks_for(kind: type[Any]) -> None:
    weight, _ = layer()
    nothing = Statistics(edge="the.edge:output", count=0)
    if kind.needs:
        with pytest.raises(MissingStatistics, match=r"the\.edge:output"):
            run(kind(), weight, nothing, GRIDS[2])
    else:
        assert torch.isfinite(run(kind(), weight, nothing, GRIDS[2]).dequantize()).all()


@every_grid
@every_method
def test_a_layer_of_zeros_stays_one(kind: type[Any], grid: Grid) -> None:
    _, statistics = layer()
    result = run(kind(), torch.zeros(ROWS, COLUMNS), statistics, grid)
    assert torch.equal(result.dequantize(), torch.zeros(ROWS, COLUMNS))


@every_method
def test_prediction_has_one_row_a_format_and_one_number_an_output(kind: type[Any]) -> None:
    if not hasattr(kind, "predict"):
        pytest.skip("this method predicts nothing")
    weight, statistics = layer()
    predicted = kind().predict(weight, statistics, GRIDS)
    assert predicted.shape == (len(GRIDS), ROWS)
    assert (predicted >= 0).all()
    alone = torch.cat([kind().predict(weight, statistics, [grid]) for grid in GRIDS])
    torch.testing.assert_close(predicted, alone)


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.bits >= 4], ids=lambda grid: grid.label())
@every_method
def test_prediction_is_close_to_what_compressing_costs(kind: type[Any], grid: Grid) -> None:
    if not hasattr(kind, "predict"):
        pytest.skip("this method predicts nothing")
    predicted = actual = 0.0
    for seed in range(6):
        weight, statistics = layer(seed)
        predicted += float(kind().predict(weight, statistics, [grid]).sum())
        actual += output_error(run(kind(), weight, statistics, grid), weight, statistics)
    assert predicted == pytest.approx(actual, rel=0.3)


def check_deterministic(kind: type[Any], _: Deterministic, grid: Grid) -> None:
    weight, statistics = layer()
    assert same(run(kind(), weight, statistics, grid), run(kind(), weight.clone(), seen(), grid))


def check_row_equivariant(kind: type[Any], _: RowEquivariant, grid: Grid) -> None:
    weight, statistics = layer()
    whole = run(kind(), weight, statistics, grid).dequantize()
    order = torch.randperm(ROWS, generator=stream(1, "rows"))
    permuted = run(kind(), weight[order], statistics, grid).dequantize()
    # A product over other shapes may round differently, which moves a weight that sits on a tie: rarely.
    assert (permuted == whole[order]).float().mean() > 0.999
    parts = [run(kind(), rows, statistics, grid).dequantize() for rows in weight.split([5, 1, ROWS - 6])]
    assert (torch.cat(parts) == whole).float().mean() > 0.999


def check_idempotent(kind: type[Any], _: Idempotent, grid: Grid) -> None:
    weight, statistics = layer()
    once = run(kind(), weight, statistics, grid).dequantize()
    torch.testing.assert_close(run(kind(), once, statistics, grid).dequantize(), once)


def check_better_on_average(kind: type[Any], promise: BetterOnAverage, grid: Grid) -> None:
    other = catalogue.find(promise.than, "quantization")
    ratios = []
    for seed in range(8):
        weight, statistics = layer(seed)
        mine = output_error(run(kind(), weight, statistics, grid), weight, statistics)
        ratios.append(mine / output_error(run(other, weight, statistics, grid), weight, statistics))
    assert sum(ratios) / len(ratios) < 0.97, ratios


CHECKS: dict[type[Any], Callable[[type[Any], Any, Grid], None]] = {
    Deterministic: check_deterministic,
    RowEquivariant: check_row_equivariant,
    Idempotent: check_idempotent,
    BetterOnAverage: check_better_on_average,
}
PROMISED = [
    pytest.param(kind, promise, id=f"{kind.name}-{promise}")
    for kind in METHODS
    for promise in getattr(kind, "promises", ())
]


def test_every_kind_of_promise_has_a_check() -> None:
    assert set(CHECKS) == set(get_args(Promise))


@every_grid
@pytest.mark.parametrize(("kind", "promise"), PROMISED)
def test_promises_are_kept(kind: type[Any], promise: Any, grid: Grid) -> None:
    CHECKS[type(promise)](kind, promise, grid)
