"""Rounding to nearest and GPTQ against their slow twins, and the identities GPTQ rests on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from reference import quantizers as slow
from reference.layers import correlated_gram, heavy_weight

from pennyweight.errors import NotPositiveDefinite
from pennyweight.formats import Compressed, Grid
from pennyweight.methods.quantization import GPTQ, RoundToNearest
from pennyweight.numerics.random import stream
from pennyweight.statistics import Statistics

ROWS, COLUMNS = 10, 48


def seen(gram: torch.Tensor) -> Statistics:
    return Statistics(edge="edge", count=1000, gram=gram)


def run(method: GPTQ | RoundToNearest, weight: torch.Tensor, gram: torch.Tensor | None, grid: Grid) -> Compressed:
    statistics = Statistics(edge="edge", count=0) if gram is None else seen(gram)
    return method.compress(weight, statistics, grid, generator=stream(0, "test"))


def codes(result: Compressed) -> torch.Tensor:
    return result.parts[0].tensors["codes"]


def output_errors(result: Compressed, weight: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    change = (result.dequantize() - weight).double()
    return (change @ gram.double() * change).sum(1)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_equals_the_elimination_of_algorithm_1(bits: int, symmetric: bool) -> None:
    weight, gram = heavy_weight(ROWS, COLUMNS, bits), correlated_gram(COLUMNS, bits + 50)
    grid = Grid(bits=bits, group_size=16, symmetric=symmetric)
    result = run(GPTQ(search=False), weight, gram, grid)
    W, H = weight.double().numpy(), gram.double().numpy()
    fitted = slow.min_max(W, bits, 16, symmetric)
    expected, _ = slow.gptq(W, H, fitted, 0.01)
    equal_rows = (codes(result).numpy() == expected).all(1)
    assert equal_rows.mean() >= 0.8  # in float32 a weight on a tie may fall to the other side, and its row follows it
    mine, theirs = (
        slow.output_error(c - W, H) for c in (result.dequantize().numpy(), slow.dequantize(expected, fitted))
    )
    assert mine == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("damping", [0.001, 0.01, 0.1])
def test_the_sweeps_loss_is_the_damped_output_error(damping: float) -> None:
    """Σ e² = tr((W − Q) H_damped (W − Q)ᵀ): the twin's own bookkeeping, in float64."""
    W, H = heavy_weight(ROWS, COLUMNS, 1).double().numpy(), correlated_gram(COLUMNS, 2).double().numpy()
    fitted = slow.min_max(W, 3, 24, False)
    found, loss = slow.gptq(W, H, fitted, damping)
    assert loss == pytest.approx(
        slow.output_error(W - slow.dequantize(found, fitted), slow.damped(H, damping)), rel=1e-10
    )


@pytest.mark.parametrize("bits", [3, 5, 8])
def test_every_rounding_in_the_sweep_went_to_the_nearest_point(bits: int) -> None:
    """W − Q = (e / diag U) U, so the errors of the sweep can be read off the result: none exceeds half a step."""
    weight, gram = heavy_weight(ROWS, COLUMNS, 3), correlated_gram(COLUMNS, 4)
    grid = Grid(bits=bits, group_size=None, symmetric=False, scale_dtype="float32")
    result = run(GPTQ(search=False), weight, gram, grid)
    order = np.argsort(-gram.diagonal().numpy(), kind="stable")
    H = slow.damped(gram.double().numpy(), 0.01)[np.ix_(order, order)]
    U = np.linalg.cholesky(np.linalg.inv(H)).T
    change = (weight.double() - result.dequantize().double()).numpy()[:, order]
    errors = np.linalg.solve(U.T, change.T).T * np.diag(U)
    inside = (codes(result).numpy()[:, order] > 0) & (codes(result).numpy()[:, order] < grid.levels - 1)
    half = result.parts[0].tensors["scale"].double().numpy() / 2
    assert inside.mean() > 0.5
    assert (np.abs(errors) <= half * 1.01)[inside].all()
    assert np.abs(errors[inside]).mean() > 0.3 * half.mean()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_diagonal_gram_gives_rounding_to_nearest(bits: int, symmetric: bool) -> None:
    weight = heavy_weight(ROWS, COLUMNS, bits)
    gram = torch.diag(torch.rand(COLUMNS, generator=stream(bits, "diagonal")) * 10 + 0.1)
    grid = Grid(bits=bits, group_size=24, symmetric=symmetric)
    for search in (True, False):
        gptq, rtn = run(GPTQ(search=search), weight, gram, grid), run(RoundToNearest(search=search), weight, gram, grid)
        assert all(torch.equal(gptq.parts[0].tensors[k], rtn.parts[0].tensors[k]) for k in rtn.parts[0].tensors)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_chunk_changes_speed_and_nothing_else(chunk: int) -> None:
    weight, gram = heavy_weight(64, 192, 5), correlated_gram(192, 6)
    grid = Grid(bits=4, group_size=64, symmetric=False)
    usual, other = run(GPTQ(), weight, gram, grid), run(GPTQ(chunk=chunk), weight, gram, grid)
    assert (codes(usual) == codes(other)).all(1).float().mean() > 0.9
    assert float(output_errors(usual, weight, gram).sum()) == pytest.approx(
        float(output_errors(other, weight, gram).sum()), rel=0.01
    )


def test_the_scale_of_the_gram_does_not_matter() -> None:
    weight, gram = heavy_weight(ROWS, COLUMNS, 7), correlated_gram(COLUMNS, 8)
    grid = Grid(bits=3, group_size=24, symmetric=False)
    assert torch.equal(codes(run(GPTQ(), weight, gram, grid)), codes(run(GPTQ(), weight, gram * 4, grid)))


def test_dead_inputs_neither_receive_nor_pass_on() -> None:
    weight, gram = heavy_weight(ROWS, COLUMNS, 9), correlated_gram(COLUMNS, 10)
    dead = torch.zeros(COLUMNS, dtype=torch.bool)
    dead[[0, 5, 47]] = True
    weight[:, dead] = weight[:, dead].clamp(-0.1, 0.1)  # never the end of a row's range, which would move its scale
    gram[dead] = 0
    gram[:, dead] = 0
    grid = Grid(bits=4, group_size=None, symmetric=False)
    gptq, rtn = run(GPTQ(search=False), weight, gram, grid), run(RoundToNearest(search=False), weight, gram, grid)
    assert torch.equal(codes(gptq)[:, dead], codes(rtn)[:, dead])
    louder = weight.clone()
    louder[:, dead] *= 2
    assert torch.equal(codes(run(GPTQ(search=False), louder, gram, grid))[:, ~dead], codes(gptq)[:, ~dead])


def test_one_sample_repeated_still_works_and_damping_is_recorded() -> None:
    x = torch.randn(COLUMNS, generator=stream(0, "x"))
    result = run(GPTQ(), heavy_weight(ROWS, COLUMNS, 11), torch.outer(x, x), Grid(bits=4, group_size=16))
    assert result.record["damping"] == 0.01
    assert torch.isfinite(result.dequantize()).all()


def test_an_indefinite_gram_escalates_the_damping_and_says_so() -> None:
    values = torch.ones(COLUMNS)
    values[0] = -0.05
    rotation = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, generator=stream(1, "rotation")))[0]
    weight, gram = heavy_weight(ROWS, COLUMNS, 12), rotation * values @ rotation.T
    record = run(GPTQ(), weight, gram, Grid(bits=4, group_size=16)).record
    assert record["damping"] == pytest.approx(0.1)
    assert record["factorisations"] == 3
    values[0] = -3
    with pytest.raises(NotPositiveDefinite):
        run(GPTQ(), weight, rotation * values @ rotation.T, Grid(bits=4, group_size=16))


def test_a_gram_that_is_not_finite() -> None:
    gram = correlated_gram(COLUMNS, 13)
    gram[3, 3] = float("nan")
    with pytest.raises(NotPositiveDefinite, match="NaN or infinite"):
        run(GPTQ(search=False), heavy_weight(ROWS, COLUMNS, 13), gram, Grid(bits=4))


def test_rounding_predicts_its_error_exactly() -> None:
    weight, gram = heavy_weight(ROWS, COLUMNS, 14), correlated_gram(COLUMNS, 15)
    grids = [Grid(bits=b, group_size=16, symmetric=s) for b in (2, 4, 8) for s in (True, False)]
    for method in (RoundToNearest(), RoundToNearest(search=False), RoundToNearest(weighted=False)):
        predicted = method.predict(weight, seen(gram), grids)
        for row, grid in zip(predicted, grids, strict=True):
            torch.testing.assert_close(
                row.double(), output_errors(run(method, weight, gram, grid), weight, gram), rtol=1e-3, atol=0
            )
    plain = RoundToNearest().predict(weight, None, grids[:1])[0]
    change = run(RoundToNearest(), weight, None, grids[0]).dequantize() - weight
    torch.testing.assert_close(plain, change.square().sum(1))


@pytest.mark.parametrize("grid", [Grid(bits=4, group_size=16, symmetric=False), Grid(bits=8)], ids=Grid.label)
def test_gptq_predicts_the_damped_error_closely(grid: Grid) -> None:
    """The prediction is of the error under the damped gram: within a tenth or so, whatever the condition."""
    predicted = actual = 0.0
    for seed in range(8):
        weight, gram = heavy_weight(32, COLUMNS, seed), correlated_gram(COLUMNS, seed + 20)
        result = run(GPTQ(), weight, gram, grid)
        predicted += float(GPTQ().predict(weight, seen(gram), [grid]).sum())
        H = slow.damped(gram.double().numpy(), 0.01)
        actual += slow.output_error((result.dequantize() - weight).double().numpy(), H)
    assert predicted == pytest.approx(actual, rel=0.2)


def test_weighting_by_the_inputs_lowers_the_output_error() -> None:
    plain = weighted = 0.0
    grid = Grid(bits=3, group_size=24, symmetric=False)
    for seed in range(8):
        weight, gram = heavy_weight(32, COLUMNS, seed), correlated_gram(COLUMNS, seed + 30)
        weighted += float(output_errors(run(RoundToNearest(), weight, gram, grid), weight, gram).sum())
        plain += float(output_errors(run(RoundToNearest(weighted=False), weight, gram, grid), weight, gram).sum())
    assert weighted < plain


def test_methods_are_values() -> None:
    assert dataclasses.replace(GPTQ(), damping=0.1) == GPTQ(damping=0.1) != GPTQ()
