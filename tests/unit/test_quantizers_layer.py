"""Quantizers of one layer: orders of GPTQ, coordinate descent, decoupleQ, HQQ, ZeroQuant-FP, AdaQuant, clipping."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from reference import quantizers as slow
from reference.layers import correlated_gram, heavy_weight

from pennyweight.errors import InvalidFormat, InvalidMethod
from pennyweight.formats import Compressed, Grid, parse
from pennyweight.formats.minifloat import finite
from pennyweight.methods.quantization import (
    GPTQ,
    HQQ,
    AdaQuant,
    AWQClip,
    CoordinateDescent,
    DecoupleQ,
    Percentile,
    RoundToNearest,
    ZeroQuantFP,
)  # fmt: skip
from pennyweight.methods.quantization.awq_clip import tile_losses
from pennyweight.methods.quantization.coordinate_descent import descend, refitted, row_losses, values
from pennyweight.methods.quantization.percentile import ends
from pennyweight.methods.quantization.sweep import column_order
from pennyweight.numerics.cholesky import damped
from pennyweight.numerics.least_squares import group_steps
from pennyweight.numerics.random import stream
from pennyweight.statistics import Statistics

ROWS, COLUMNS = 12, 48


def layer(seed: int, rows: int = ROWS, columns: int = COLUMNS) -> tuple[torch.Tensor, torch.Tensor]:
    return heavy_weight(rows, columns, seed), correlated_gram(columns, seed + 500)


def run(method: Any, weight: torch.Tensor, gram: torch.Tensor | None, label: str, **more: Any) -> Compressed:
    seen = Statistics(edge="edge", count=1000, gram=gram, **more)
    result = method.compress(weight, seen, parse(label), generator=stream(0, "test"))
    assert isinstance(result, Compressed)
    return result


def errors(result: Compressed, weight: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    change = (result.dequantize() - weight).double()
    return (change @ gram.double() * change).sum(1)


def total(method: Any, label: str, seeds: int = 4, columns: int = 128) -> float:
    found = 0.0
    for seed in range(seeds):
        weight, gram = layer(seed, 32, columns)
        found += float(errors(run(method, weight, gram, label), weight, gram).sum() / (weight @ gram * weight).sum())
    return found / seeds


def codes(result: Compressed) -> torch.Tensor:
    return result.parts[0].tensors["codes"]


# GPTQ


def test_orders_by_hand() -> None:
    gram = torch.diag(torch.tensor([1.0, 5.0, 2.0, 9.0, 7.0, 0.0]))
    assert column_order(gram, "none", 2).tolist() == [0, 1, 2, 3, 4, 5]
    assert column_order(gram, "activity", 2).tolist() == [3, 4, 1, 2, 0, 5]
    assert column_order(gram, "groups", 2).tolist() == [3, 2, 4, 5, 1, 0]
    assert column_order(torch.eye(4), "groups", 2).tolist() == [0, 1, 2, 3]  # equal groups stay whole


def slow_sweep(
    weight: np.ndarray, gram: np.ndarray, order: list[int], group: int, bits: int, *, static: bool
) -> np.ndarray:
    """GPTQ by elimination in float64, on any order; min-max scales, fitted before or when a group is reached."""
    W, inverse = weight.copy(), np.linalg.inv(slow.damped(gram, 0.01))
    first = slow.min_max(weight, bits, group, False)
    result, left = np.empty(weight.shape), list(order)
    for place, q in enumerate(order):
        g = q // group
        if not static and place % group == 0:
            now = slow.min_max(W[:, g * group : (g + 1) * group], bits, group, False)
            first.scale[:, g], first.zero[:, g] = now.scale[:, 0], now.zero[:, 0]
        left.remove(q)
        for r in range(len(W)):
            result[r, q] = first.value(first.code(W[r, q], r, q), r, q)
            step = (W[r, q] - result[r, q]) / inverse[q, q]
            W[r, left] -= step * inverse[q, left]
        inverse = inverse - np.outer(inverse[:, q], inverse[q, :]) / inverse[q, q]
    return result


@pytest.mark.parametrize(
    ("order", "static"), [("activity", True), ("groups", True), ("none", True), ("groups", False), ("none", False)]
)
@pytest.mark.parametrize("bits", [3, 4])
def test_every_order_agrees_with_elimination_in_float64(order: str, static: bool, bits: int) -> None:
    weight, gram = layer(bits)
    sequence = column_order(gram, order, 16).tolist()
    mine = run(GPTQ(search=False, order=order, static=static), weight, gram, f"int{bits} g16 asym").dequantize()
    theirs = slow_sweep(weight.double().numpy(), gram.double().numpy(), sequence, 16, bits, static=static)
    same = np.isclose(mine.numpy(), theirs, rtol=1e-3, atol=1e-6).all(1)
    assert same.mean() >= 0.75  # a weight on a tie falls to the other side, and its row follows it


@pytest.mark.parametrize("label", ["int2 g32 asym", "int3 g32 sym", "fp4 e2m1 g32"])
def test_the_order_helps_on_correlated_inputs(label: str) -> None:
    active, groups, plain = (total(GPTQ(order=order), label) for order in ("activity", "groups", "none"))
    assert active < groups < plain


def test_scales_that_follow_the_sweep_are_refused_where_they_cannot() -> None:
    with pytest.raises(InvalidMethod):
        GPTQ(static=False)
    with pytest.raises(InvalidMethod):
        GPTQ(order="random")
    weight, gram = layer(0)
    for label in ("nvfp4", "int4 g16 progressive"):  # a scale of the tensor, of the row
        with pytest.raises(InvalidFormat, match="follow the sweep"):
            run(GPTQ(order="none", static=False), weight, gram, label)
    whole = run(GPTQ(order="none", static=False), weight, gram, "int4 row asym")
    assert torch.equal(codes(whole), codes(run(GPTQ(order="none"), weight, gram, "int4 row asym")))


@pytest.mark.parametrize("static", [True, False])
def test_a_dead_input_is_rounded_plainly_in_every_order(static: bool) -> None:
    weight, gram = layer(9)
    gram[5], gram[:, 5] = 0, 0
    result = run(GPTQ(order="groups", static=static), weight, gram, "int8 g16 asym")
    assert (result.dequantize() - weight)[:, 5].abs().max() < 0.03
    louder = weight.clone()
    louder[:, 5] *= 0.5
    again = run(GPTQ(order="groups"), louder, gram, "int8 row asym float32")
    first = run(GPTQ(order="groups"), weight, gram, "int8 row asym float32")
    moved = (again.dequantize() != first.dequantize())[:, torch.arange(COLUMNS) != 5]
    assert not moved[weight.abs().amax(1) > weight[:, 5].abs()].any()


# Coordinate descent


def test_a_round_is_the_slow_one_in_float64() -> None:
    weight, gram = layer(1)
    fitted = parse("int3 g16 asym").fit(weight)
    start = fitted.round(weight)
    W, H = weight.double().numpy(), gram.double().numpy()
    part = fitted.part(start)
    scale = np.repeat(part.tensors["scale"].double().numpy(), 16, 1)
    zero = np.repeat(part.tensors["zero_point"].double().numpy(), 16, 1)
    q = start.double().numpy().copy()
    for j in range(COLUMNS):
        E = (q - zero) * scale - W
        rest = E @ H[:, j] - E[:, j] * H[j, j]
        q[:, j] = np.clip(np.rint((W[:, j] - rest / H[j, j]) / scale[:, j]) + zero[:, j], 0, 7)
    for chunk in (1, 7, 64):
        mine = descend(start, fitted.columns((ROWS, COLUMNS)), weight, gram, chunk)
        assert (mine.numpy() == q).mean() > 0.99


def test_no_single_code_is_better_where_it_ends() -> None:
    weight, gram = layer(2, 4, 24)
    result = run(CoordinateDescent(rounds=50, refit=False), weight, gram, "int2 g24 asym")
    metric, fitted = damped(gram, 0.01), parse("int2 g24 asym").fit(weight, importance=gram.diagonal())
    least = row_losses(fitted, codes(result), weight, metric)
    for column in range(24):
        for code in range(4):
            other = codes(result).clone()
            other[:, column] = code
            assert (row_losses(fitted, other, weight, metric) >= least * (1 - 1e-5)).all()


@pytest.mark.parametrize("label", ["int2 g16 asym", "int3 g16 sym", "int2 row affine", "int4 b16 asym", "fp4 e2m1 g16"])
def test_no_row_is_ever_worse_than_gptq(label: str) -> None:
    weight, gram = layer(3)
    before = None
    for rounds in range(4):
        change = run(CoordinateDescent(rounds=rounds), weight, gram, label).dequantize() - weight
        loss = (change.double() @ damped(gram, 0.01).double() * change).sum(1)
        assert before is None or (loss <= before * (1 + 1e-5)).all()
        before = loss
    gptq = run(GPTQ(), weight, gram, label)
    assert torch.equal(codes(gptq), codes(run(CoordinateDescent(rounds=0), weight, gram, label)))


@pytest.mark.parametrize("label", ["int2 g32 asym", "int3 g32 sym", "int2 g32 affine"])
def test_rounding_then_gptq_then_descent(label: str) -> None:
    rounded, swept, descended = (total(method, label) for method in (RoundToNearest(), GPTQ(), CoordinateDescent()))
    assert descended < 0.98 * swept < 0.5 * rounded


# Least squares and decoupleQ


@pytest.mark.parametrize("label", ["int3 g16 asym float32", "int2 g16 affine float32", "int2 row affine float32"])
def test_the_gradient_is_zero_after_the_float_solve(label: str) -> None:
    weight, gram = layer(4)
    fitted = parse(label).fit(weight)  # type: ignore[attr-defined]
    chosen = fitted.round(weight)
    factors = fitted.factors(chosen.float())
    groups = fitted.parameters().shape[-1]
    change = values(fitted, chosen) - weight
    steps = group_steps(factors, change, gram, groups)
    spread = steps.double().repeat_interleave(COLUMNS // groups, -1)
    after = change.double() + (spread * factors.double()).sum(0)
    pull = [((e @ gram.double()) * factors.double()).reshape(len(factors), ROWS, groups, -1).sum(-1) for e in
            (change.double(), after)]  # fmt: skip
    assert pull[1].abs().max() < 1e-4 * pull[0].abs().max()


def test_right_integers_give_the_right_floats() -> None:
    """One group whose weights are scale · integer + offset, from parameters that are off."""
    _, gram = layer(5)
    integers = torch.randint(0, 4, (ROWS, COLUMNS), generator=stream(0, "integers")).to(torch.uint8)
    scale, offset = torch.linspace(0.5, 2, ROWS)[:, None], torch.linspace(-1, 1, ROWS)[:, None]
    weight = integers * scale + offset
    off = parse("int2 row affine float32").fit(weight).with_parameters(scale * 1.3, offset - 0.1)  # type: ignore[attr-defined]
    found = refitted(off, integers, weight, gram).parameters()
    torch.testing.assert_close(found, torch.stack([scale, offset]), rtol=1e-4, atol=1e-4)


def test_silent_groups_stay_and_twins_do_not_run_away() -> None:
    """All codes zero, or all codes alike: nothing, or one combination, is determined."""
    _, gram = layer(6)
    factors = torch.ones(2, ROWS, COLUMNS)
    factors[0, :, :16] = 0
    steps = group_steps(factors, torch.ones(ROWS, COLUMNS), gram, 3)
    assert torch.equal(steps[0, :, 0], torch.zeros(ROWS))
    torch.testing.assert_close(steps[0, :, 1:] + steps[1, :, 1:], -torch.ones(ROWS, 2), rtol=0, atol=1e-3)
    assert steps.abs().max() < 10


@pytest.mark.parametrize("search", [True, False])
def test_the_loss_path_of_decoupleq_falls(search: bool) -> None:
    weight, gram = layer(7, 32, 128)
    path = run(DecoupleQ(search=search), weight, gram, "int2 row affine").record["losses"]
    assert all(after <= before for before, after in pairwise(path))
    assert path[-1] < (0.99 if search else 0.7) * path[0]  # from minimum to maximum there is a long way to go


def test_no_row_of_decoupleq_is_worse_than_gptq_and_on_average_it_is_better() -> None:
    weight, gram = layer(8)
    metric = damped(gram, 0.01)
    gptq, mine = (errors(run(m, weight, gram, "int2 g16 affine"), weight, metric) for m in (GPTQ(), DecoupleQ()))
    assert (mine <= gptq * (1 + 1e-5)).all()
    assert total(DecoupleQ(), "int2 g32 affine") < 0.98 * total(GPTQ(), "int2 g32 affine")
    start = run(DecoupleQ(search=False), *layer(8), "int2 row affine")
    assert start.record["losses"][-1] < 0.75 * start.record["losses"][0]


# HQQ


@pytest.mark.parametrize(("bits", "before", "after"), [(4, 0.0125, 0.0112), (3, 0.0557, 0.0511), (2, 0.307, 0.284)])
def test_hqq_on_student_weights(bits: int, before: float, after: float) -> None:
    """Relative errors with five degrees of freedom in groups of 64, from minimum to maximum, as once computed."""
    rng = np.random.default_rng(7)
    weight = torch.tensor(rng.standard_t(5, (512, 512))).float()
    relative, mean = [], []
    for steps in (0, 20):
        result = run(HQQ(search=False, steps=steps), weight, None, f"int{bits} g64 affine")
        error = result.dequantize() - weight
        relative.append(float(error.square().sum() / weight.square().sum()))
        mean.append(error.abs().reshape(512, 8, 64).mean(-1))
    assert relative == pytest.approx([before, after], rel=0.04)
    assert (mean[1] <= mean[0] * (1 + 1e-5)).all()  # every group keeps its best
    assert 0.92 < float(mean[1].mean() / mean[0].mean()) < 0.97


def test_hqq_with_a_power_of_one_and_no_shrinkage_is_the_mean_residual() -> None:
    weight = heavy_weight(4, 32, 1)
    fitted = parse("int2 row affine float32").fit(weight, search=False)  # type: ignore[attr-defined]
    levels = fitted.round(weight).float() * fitted.scale
    expected = (weight - levels).mean(1)
    offset = run(HQQ(power=1, beta=1e-6, steps=1, search=False), weight, None, "int2 row affine float32").parts[0]
    kept = offset.tensors["offset"][:, 0]
    assert (torch.isclose(kept, expected, atol=1e-5) | torch.isclose(kept, fitted.offset[:, 0])).all()
    assert torch.isclose(kept, expected, atol=1e-5).any()


# ZeroQuant-FP


@pytest.mark.parametrize("label", ["fp4 e2m1 g16", "fp4 e2m1 g16 bfloat16", "fp4 e2m1 g16 float32"])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_scales_are_what_an_exponent_can_do(label: str, size: float) -> None:
    weight, gram = layer(10)
    weight = weight * size * torch.logspace(0, 3, COLUMNS)
    m1 = run(ZeroQuantFP(constraint="m1"), weight, gram, label).parts[0].tensors["scale"].float()
    assert (torch.frexp(m1).mantissa == 0.5).all()
    m2 = run(ZeroQuantFP(constraint="m2"), weight, gram, label).parts[0].tensors["scale"].float()
    ratio = m2.amax(1, keepdim=True) / m2
    assert (torch.frexp(ratio).mantissa == 0.5).all()
    assert ratio.max() <= 256
    assert ratio.unique().numel() > 2


def test_four_bits_shifted_are_eight_bits_exactly() -> None:
    numbers = finite("e2m1")[0]
    for shift in range(9):
        moved = numbers * 2.0**-shift
        assert torch.equal(moved.to(torch.float8_e4m3fn).float(), moved)
    moved = numbers * 2.0**-9
    assert not torch.equal(moved.to(torch.float8_e4m3fn).float(), moved)


def test_less_freedom_costs_more() -> None:
    free, m2, m1, rounded = (
        total(method, "fp4 e2m1 g32")
        for method in (*(ZeroQuantFP(constraint=c) for c in ("none", "m2", "m1")), RoundToNearest())
    )
    assert free < m2 < m1 < rounded
    weight, gram = layer(11)
    same = [codes(run(method, weight, gram, "fp4 e2m1 g16")) for method in (ZeroQuantFP(constraint="none"), GPTQ())]
    assert torch.equal(*same)


# AdaQuant


@pytest.mark.parametrize("label", ["int2 g16 asym", "int4 g16 sym", "int4 b16 asym"])
def test_adaquant_starts_at_rounding_and_never_ends_worse(label: str) -> None:
    weight, gram = layer(12)
    rounded = run(RoundToNearest(), weight, gram, label)
    start = run(AdaQuant(steps=0), weight, gram, label)
    assert torch.equal(start.dequantize(), rounded.dequantize())
    assert start.record["loss_ratio"] == 1.0
    learned = run(AdaQuant(steps=60), weight, gram, label)
    before, after = errors(rounded, weight, gram), errors(learned, weight, gram)
    assert after.sum() < 0.8 * before.sum()
    assert "b16" in label or (after <= before * (1 + 1e-5)).all()
    assert learned.record["loss_ratio"] == pytest.approx(float(after.sum() / before.sum()), rel=1e-4)


def test_the_closed_form_gradients_are_those_of_autograd() -> None:
    """One step of Adam from nothing has the sign of the gradient: weights and scales move as autograd says."""
    weight, gram = layer(13)
    scales = Grid(bits=3, group_size=16, symmetric=False, scale_dtype="float32").fit(weight)
    zero = scales.zero_point.float().repeat_interleave(16, 1)
    moved = torch.zeros_like(weight, requires_grad=True)
    grown = torch.zeros(ROWS, 3, requires_grad=True)
    first = scales.parameters()[0].repeat_interleave(16, 1)
    scale = first * grown.exp().repeat_interleave(16, 1)
    real = (weight + moved * first) / scale + zero
    through = real + (real.round() - real).detach()
    change = (through.clamp(0, 7) - zero) * scale - weight
    ((change @ gram) * change).sum().backward()  # type: ignore[no-untyped-call]
    exact = ((real.round().clamp(0, 7) - zero) * scale - weight).detach()
    pull, inside = exact @ gram, ((real > -0.5) & (real < 7.5)).detach()
    own = pull * first * (torch.round(real).clamp(0, 7) - zero - torch.where(inside, real - zero, 0)).detach()
    assert grown.grad is not None
    torch.testing.assert_close(grown.grad / 2, own.reshape(ROWS, 3, 16).sum(-1), rtol=1e-3, atol=1e-3)
    assert moved.grad is not None
    between = inside & (real > 0).detach() & (real < 7).detach()
    torch.testing.assert_close(moved.grad[between] / 2, (pull * first)[between], rtol=1e-3, atol=1e-3)


def test_the_bias_in_the_record_takes_away_the_mean_error() -> None:
    weight, gram = layer(14)
    mean = torch.linspace(-1, 1, COLUMNS)
    result = run(AdaQuant(steps=3), weight, gram, "int2 g16 asym", mean=mean)
    outputs = result.dequantize() @ mean + torch.tensor(result.record["bias"])
    torch.testing.assert_close(outputs, weight @ mean, rtol=1e-4, atol=1e-4)
    assert "bias" not in run(AdaQuant(steps=3), weight, gram, "int2 g16 asym").record


# Clipping


def test_percentiles_by_hand() -> None:
    tiles = torch.tensor([[[4.0, 0.0, 1.0, 3.0, 2.0]]])
    assert [float(end) for end in ends(tiles, 1.0)] == [0.0, 4.0]
    assert [float(end) for end in ends(tiles, 0.75)] == [1.0, 3.0]
    assert [float(end) for end in ends(tiles, 0.875)] == [0.5, 3.5]
    weight = heavy_weight(4, 64, 0)
    low, high = ends(weight[:, None], 0.95)
    torch.testing.assert_close(high[:, 0], weight.quantile(0.95, 1))
    torch.testing.assert_close(low[:, 0], weight.quantile(0.05, 1))


@pytest.mark.parametrize("label", ["int3 row asym", "int4 row sym", "fp4 e2m1 row", "int4 tensor asym"])
def test_the_hundredth_percentile_is_the_whole_range_and_less_clips(label: str) -> None:
    weight = heavy_weight(16, 256, 1)
    whole = run(Percentile(percentile=100), weight, None, label)
    assert torch.equal(whole.dequantize(), run(RoundToNearest(search=False), weight, None, label).dequantize())
    clipped, searched = run(Percentile(percentile=99), weight, None, label), run(RoundToNearest(), weight, None, label)
    assert clipped.dequantize().abs().max() < whole.dequantize().abs().max()
    sizes = [float((r.dequantize() - weight).square().sum()) for r in (searched, clipped)]
    assert sizes[0] < sizes[1]  # the search knows what clipping costs


def test_tile_losses_by_hand() -> None:
    change, gram = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.ones(4, 4)
    assert tile_losses(change, gram, Grid(bits=4, group_size=2).sharing).tolist() == [[9.0, 49.0]]
    assert tile_losses(change, gram, Grid(bits=4).sharing).tolist() == [[100.0]]


def test_the_clip_is_the_best_of_those_tried_for_every_group() -> None:
    weight, gram = layer(15)
    grid = Grid(bits=3, group_size=16, symmetric=False)
    chosen = tile_losses(run(AWQClip(), weight, gram, grid.label()).dequantize() - weight, gram, grid.sharing)
    for share in torch.linspace(1, 0.5, 20).tolist():
        groups = weight.reshape(ROWS, 3, 16)
        clipped = groups.clamp(groups.amin(-1, True) * share, groups.amax(-1, True) * share).reshape(weight.shape)
        fitted = grid.fit(clipped, search=False)
        loss = tile_losses(values(fitted, fitted.round(weight)) - weight, gram, grid.sharing)
        assert (chosen <= loss * (1 + 1e-6)).all()
    once = run(AWQClip(steps=1), weight, gram, grid.label())
    assert torch.equal(codes(once), codes(run(RoundToNearest(search=False), weight, gram, grid.label())))


def test_knowing_the_gram_matrix_of_a_group_beats_its_diagonal() -> None:
    assert total(AWQClip(), "int3 g32 asym") < 0.9 * total(RoundToNearest(), "int3 g32 asym")


@pytest.mark.parametrize(
    "make",
    [lambda: Percentile(percentile=50), lambda: AWQClip(steps=0), lambda: AdaQuant(rate=0), lambda: HQQ(power=0),
     lambda: ZeroQuantFP(constraint="m3"), lambda: DecoupleQ(rounds=-1), lambda: CoordinateDescent(damping=0)],
)  # fmt: skip
def test_arguments_outside_their_range(make: Any) -> None:
    with pytest.raises(InvalidMethod):
        make()
