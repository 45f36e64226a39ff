from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from families import BY_NAME, perturb
from torch import Tensor, nn

from pennyweight import catalogue
from pennyweight.errors import InvalidMethod, InvalidWeights, MissingStatistics
from pennyweight.flow.observe import observe
from pennyweight.flow.rewrite import rewrite
from pennyweight.formats import Grid
from pennyweight.methods.rewrites.awq_scales import AWQScales, mean_read, scaling
from pennyweight.methods.rewrites.cross_layer_equalization import CrossLayerEqualization, largest_weight
from pennyweight.methods.rewrites.fold_batch_norm import FoldBatchNorm
from pennyweight.methods.rewrites.outlier_suppression_plus import OutlierSuppressionPlus
from pennyweight.methods.rewrites.readers import largest_read, limits, readings, rounded
from pennyweight.methods.rewrites.readers import largest_weight as largest_read_by
from pennyweight.methods.rewrites.repq import RepQ
from pennyweight.methods.rewrites.smooth_attention import SmoothAttention
from pennyweight.methods.rewrites.smoothquant import SmoothQuant, smoothed, smoothing
from pennyweight.methods.rewrites.smoothquant_plus import SmoothQuantPlus
from pennyweight.network.changing.fold import exact, written
from pennyweight.network.finding.basis import Symmetry
from pennyweight.network.finding.kinds import apart, holds_shift, is_pair, norm_of_edge, takes_scales
from pennyweight.network.finding.trace import network_of, symmetries_of
from pennyweight.network.network import Network
from pennyweight.numerics.random import stream
from pennyweight.numerics.uniform import affine, rounded_per_token
from pennyweight.numerics.uniform import rounded as rounded_to

METHODS = (
    "smoothquant", "smoothquant(norms_only=False)", "smoothquant+", "smooth_attention", "cross_layer_equalization",
    "outlier_suppression+(steps=10)", "repq", "repq(centre='median')", "awq_scales",
)  # fmt: skip
Batches = Sequence[Mapping[str, Any]]


def built(family: str) -> tuple[Network, Batches]:
    """A tiny network in float64 with every number random, and what to run it on."""
    model = BY_NAME[family].model().double()
    inputs = BY_NAME[family].inputs(model)
    return network_of(model, inputs), [inputs]


def outlying(family: str, factor: float = 50.0, channels: int = 3) -> tuple[Network, Batches]:
    """The same with a few gains of every norm many times larger."""
    model = BY_NAME[family].model().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and parameter.dim() == 1 and "bias" not in name:
                parameter[:channels] *= factor
    inputs = BY_NAME[family].inputs(model)
    return network_of(model, inputs), [inputs]


def norm_edges(network: Network) -> list[Symmetry]:
    return [s for s in symmetries_of(network) if takes_scales(s) and norm_of_edge(s)]


# Every method leaves every function alone


@pytest.mark.parametrize("method", METHODS)
def test_the_function_stays_what_it_was(method: str) -> None:
    network, batches = built("opt")  # biases, shifts and a rectifier
    _, (step,) = rewrite(network, [method], calibration=batches)
    assert step.edges
    assert step.change < 1e-12  # `rewrite` itself refuses beyond 1e-10


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "bert", "t5", "swin", "transformer-encoder-pre"])
def test_one_after_the_other_is_exact_in_every_family(family: str) -> None:
    network, batches = built(family)
    methods = ["smoothquant(norms_only=False)", "smooth_attention", "cross_layer_equalization", "repq"]
    _, steps = rewrite(network, methods, calibration=batches)
    assert all(step.edges for step in steps)
    assert max(step.change for step in steps) < 1e-12


def test_a_plus_is_read_as_the_word() -> None:
    assert catalogue.find("smoothquant+(bits=3)") == SmoothQuantPlus(bits=3)
    assert catalogue.find("outlier_suppression+", "rewrites") == OutlierSuppressionPlus()


def test_statistics_are_asked_for() -> None:
    network, _ = built("llama")
    for method in ("smoothquant", "smooth_attention", "repq", "awq_scales"):
        with pytest.raises(MissingStatistics):
            rewrite(network, [method])
        with pytest.raises(MissingStatistics, match="seen"):
            catalogue.find(method).choose(symmetries_of(network), network.source, {}, generator=stream(0))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SmoothQuant(alpha=1.5), lambda: SmoothAttention(alpha=-1), lambda: SmoothQuantPlus(steps=0),
        lambda: AWQScales(points=0), lambda: OutlierSuppressionPlus(lowest=0), lambda: OutlierSuppressionPlus(steps=0),
        lambda: RepQ(centre="mode"), lambda: RepQ(bits=1), lambda: CrossLayerEqualization(tolerance=0),
    ],
)  # fmt: skip
def test_senseless_hyperparameters_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidMethod):
        wrong()


# SmoothQuant


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_all_of_it_moved_to_the_weights_leaves_flat_activations(family: str) -> None:
    network, batches = outlying(family)
    after, _ = rewrite(network, ["smoothquant(alpha=1.0)"], calibration=batches)
    statistics = observe(after, batches)
    for symmetry in norm_edges(network):
        torch.testing.assert_close(
            largest_read(symmetry, statistics), torch.ones(symmetry.size).double(), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_none_of_it_moved_leaves_flat_weights(family: str) -> None:
    network, batches = outlying(family)
    after, _ = rewrite(network, ["smoothquant(alpha=0.0)"], calibration=batches)
    for symmetry in norm_edges(network):
        torch.testing.assert_close(largest_read_by(symmetry, after.source), torch.ones(symmetry.size).double())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.85, 1.0])
def test_maxima_of_activation_and_weight_keep_their_product(alpha: float) -> None:
    network, batches = outlying("llama")
    after, _ = rewrite(network, [f"smoothquant(alpha={alpha})"], calibration=batches)
    before, then = observe(network, batches), observe(after, batches)
    for symmetry in norm_edges(network):
        first = largest_read(symmetry, before) * largest_read_by(symmetry, network.source)
        second = largest_read(symmetry, then) * largest_read_by(symmetry, after.source)
        torch.testing.assert_close(first, second, rtol=1e-4, atol=0)


def test_dead_channels_keep_their_scale() -> None:
    scale = smoothing(torch.tensor([0.0, 4.0, 4.0]).double(), torch.tensor([1.0, 0.0, 1.0]).double(), 0.5)
    assert scale.tolist() == [1.0, 1.0, 2.0]


def test_only_what_norms_write_is_smoothed_by_default() -> None:
    network, _ = built("llama")
    edges = smoothed(symmetries_of(network), norms_only=True)
    assert len(edges) == 5  # two blocks of two norms, and the last
    assert all(side.port.kind == "gain" for edge in edges for side in edge.writers)
    assert len(smoothed(symmetries_of(network), norms_only=False)) == 9  # values and gated products as well


def rounded_error(network: Network, batches: Batches, name: str) -> float:
    """Relative squared error of a layer with eight bits for weights, and for every token."""
    weight, x = exact(network.source, name), observe(network, batches)[name.replace(".weight", ":input")].sample
    assert x is not None
    y = x.double() @ weight.T
    rough = rounded_per_token(x.double(), 8) @ rounded(weight, Grid(bits=8, scale_dtype="float32")).T
    return float((rough - y).square().sum() / y.square().sum())


def test_smoothing_makes_eight_bits_enough_where_there_are_outliers() -> None:
    network, batches = outlying("llama")
    after, _ = rewrite(network, ["smoothquant"], calibration=batches)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        assert rounded_error(after, batches, name) < 0.5 * rounded_error(network, batches, name)


def test_a_value_beyond_the_stored_type_is_refused_by_name() -> None:
    model = BY_NAME["llama"].model().half()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3] = 3e4
        model.model.layers[0].self_attn.v_proj.weight[0, 3] = 100.0
    network = network_of(model)
    batches = [BY_NAME["llama"].inputs(model)]
    with pytest.raises(InvalidWeights, match="float16") as refused:
        rewrite(network, ["smoothquant(alpha=1.0)"], calibration=batches)
    assert "model.layers.0.self_attn.v_proj.weight" in str(refused.value)


# SmoothQuant+


def chosen(method: Any, network: Network, batches: Batches) -> tuple[Any, ...]:
    statistics = observe(network, batches)
    folds: tuple[Any, ...] = method.choose(symmetries_of(network), network.source, statistics, generator=stream(0))
    return folds


def weight_error(network: Network, reference: Network, batches: Batches, grid: Grid) -> float:
    """Sum of the squared errors of all layers that read what norms write, their weights rounded."""
    total, statistics = 0.0, observe(network, batches)
    for symmetry in norm_edges(reference):
        for reading in readings(symmetry, network.source, statistics):
            total += float(reading.squared_change(reading.sample, rounded(reading.weight, grid) - reading.weight))
    return total


def test_one_exponent_is_the_best_of_all_for_the_whole_network() -> None:
    network, batches = outlying("llama")
    grid = Grid(bits=4, group_size=128, symmetric=False, scale_dtype="float32")
    plain = weight_error(network, network, batches, grid)
    best, _ = rewrite(network, [SmoothQuantPlus(steps=4)], calibration=batches)
    others = [rewrite(network, [f"smoothquant(alpha={a})"], calibration=batches)[0] for a in (0.25, 0.5, 0.75, 1.0)]
    errors = [weight_error(other, network, batches, grid) for other in others]
    reached = weight_error(best, network, batches, grid)
    assert reached < 0.8 * plain
    assert reached <= min(errors) * (1 + 1e-3)  # the sample is read again, in float32


def test_nothing_is_smoothed_where_plain_rounding_is_best() -> None:
    network, batches = built("llama")
    statistics = observe(network, batches)
    method = SmoothQuantPlus(bits=8, steps=1)
    edges = smoothed(symmetries_of(network), norms_only=True)
    maxima = [(largest_read(e, statistics), largest_read_by(e, network.source)) for e in edges]
    scales = [[torch.ones_like(x), smoothing(x, w, 0.0), smoothing(x, w, 1.0)] for x, w in maxima]
    losses = sum(method._losses(e, network.source, statistics, s) for e, s in zip(edges, scales, strict=True))
    folds = chosen(method, network, batches)
    assert bool(folds) == (int(losses.argmin()) > 0)


# AWQ


def test_a_power_of_zero_scales_nothing() -> None:
    assert torch.equal(scaling(torch.tensor([0.0, 0.3, 7.0]).double(), 0.0), torch.ones(3).double())
    scale = scaling(torch.tensor([0.1, 0.3, 7.0]).double(), 0.5)
    assert float(scale.max() * scale.min()) == pytest.approx(1.0)


def test_no_edge_gets_worse_on_its_sample() -> None:
    network, batches = outlying("opt", factor=20.0)
    method, statistics = AWQScales(bits=3, group_size=16), observe(network, batches)
    folds = chosen(method, network, batches)
    assert folds
    for fold in folds:
        seen = readings(fold.symmetry, network.source, statistics)
        plain = method._loss(seen, torch.ones(fold.symmetry.size).double())
        assert float(method._loss(seen, 1 / fold.transform.scale)) < float(plain)
    after, _ = rewrite(network, [method], calibration=batches)
    grid = Grid(bits=3, group_size=16, symmetric=False, scale_dtype="float32")
    assert weight_error(after, network, batches, grid) < 0.9 * weight_error(network, network, batches, grid)


def test_the_mean_is_over_all_inputs_that_share_a_scale() -> None:
    network, batches = built("llama")
    statistics = observe(network, batches)
    (edge,) = [s for s in symmetries_of(network) if s.name == "model.layers.0.self_attn.v_proj:output"]
    seen = readings(edge, network.source, statistics)
    sample = seen[0].sample.abs().mean(0).reshape(2, 2, 8)  # two heads of values, each read by two of queries
    torch.testing.assert_close(mean_read(edge, seen), sample.mean(1).flatten())


# SmoothAttention


def with_outlying_keys() -> tuple[Network, Batches]:
    model = BY_NAME["qwen2"].model().double()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias[3] *= 100.0
            layer.self_attn.k_proj.weight[9] *= 30.0
    inputs = BY_NAME["qwen2"].inputs(model)
    return network_of(model, inputs), [inputs]


def test_keys_are_flat_when_all_of_it_moves_to_the_queries() -> None:
    network, batches = with_outlying_keys()
    after, (step,) = rewrite(network, ["smooth_attention(alpha=1.0)"], calibration=batches)
    assert step.change < 1e-12
    assert len(step.edges) == 2
    statistics = observe(after, batches)
    for pair in (s for s in symmetries_of(network) if is_pair(s)):
        (side,) = (s for s in pair.readers if s.port.kind == "weight")
        largest = statistics[written(side)].abs_max
        assert largest is not None
        shared = torch.zeros(pair.size).scatter_reduce(0, side.index, largest, "amax")
        assert pair.size == len(largest) // 2  # rotary positions turn two channels together
        torch.testing.assert_close(shared, torch.ones(pair.size), rtol=1e-4, atol=0)


def test_outliers_of_keys_shrink_to_their_root() -> None:
    network, batches = with_outlying_keys()
    after, _ = rewrite(network, ["smooth_attention"], calibration=batches)
    name = "model.layers.0.self_attn.k_proj:output"
    before, then = observe(network, batches)[name].abs_max, observe(after, batches)[name].abs_max
    assert before is not None
    assert then is not None
    assert float(then.max()) == pytest.approx(float(before.max()) ** 0.5, rel=1e-4)
    assert float(then.max() / then.median()) < 0.5 * float(before.max() / before.median())


def test_normed_keys_are_scaled_in_the_gains_of_their_norms() -> None:
    network, batches = outlying("qwen3", channels=1)
    after, _ = rewrite(network, ["smooth_attention"], calibration=batches)
    assert not torch.equal(after.source.read("model.layers.0.self_attn.k_norm.weight"),
                           network.source.read("model.layers.0.self_attn.k_norm.weight"))  # fmt: skip
    assert torch.equal(after.source.read("model.layers.0.self_attn.k_proj.weight"),
                       network.source.read("model.layers.0.self_attn.k_proj.weight"))  # fmt: skip
    name = "model.layers.0.self_attn.k_norm:output"
    before, then = observe(network, batches)[name].abs_max, observe(after, batches)[name].abs_max
    assert before is not None
    assert then is not None
    assert float(then.max()) < 0.5 * float(before.max())


# Cross-layer equalization


class Convolutions(nn.Module):
    """A chain with batch norms and rectifiers, a depthwise layer in it, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.expand, self.bn1 = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.deep, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.reduce, self.bn3 = nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        y = torch.relu(self.bn1(self.expand(x)))
        y = torch.relu(self.bn2(self.deep(y)))
        return self.head((x + self.bn3(self.reduce(y))).mean((2, 3)))


def convolutions() -> Network:
    model = perturb(Convolutions().eval().requires_grad_(False)).double()
    with torch.no_grad():  # ranges of channels that differ by orders of magnitude
        spread = torch.logspace(-1.5, 1.5, 16, dtype=torch.float64)[torch.randperm(16, generator=stream(0, "spread"))]
        model.bn1.weight *= spread
        model.deep.weight /= spread.flip(0)[:, None, None, None]
    return network_of(model, {"x": torch.randn(2, 3, 8, 8, generator=stream(0, "x")).double()})


def equal_ranges(before: Network, after: Network) -> int:
    """How many edges lie between layers; all of them have equal ranges on both sides."""
    count = 0
    for edge in apart(s for s in symmetries_of(before) if takes_scales(s)):
        if {side.port.kind for side in edge.writers} <= {"weight", "bias"}:
            weights = {s.port.parameter: exact(after.source, s.port.parameter) for s in edge.sides}
            first, second = (largest_weight(edge, sides, weights) for sides in (edge.writers, edge.readers))
            torch.testing.assert_close(first, second, rtol=1e-3, atol=0)
            count += 1
    return count


def test_ranges_of_convolutions_are_equal_on_every_pair() -> None:
    folded, _ = rewrite(convolutions(), [FoldBatchNorm()])
    after, (step,) = rewrite(folded, ["cross_layer_equalization(tolerance=1e-6)"])
    assert step.change < 1e-12
    assert len(step.edges) == equal_ranges(folded, after) == 3  # the residual sum is one of them


def test_three_layers_around_a_depthwise_one_come_to_one_range() -> None:
    folded, _ = rewrite(convolutions(), [FoldBatchNorm()])
    after, _ = rewrite(folded, [CrossLayerEqualization(tolerance=1e-9)])

    expand, deep, narrow = (exact(after.source, f"{name}.weight").abs() for name in ("expand", "deep", "reduce"))
    first, second, third = expand.flatten(1).amax(1), deep.flatten(1).amax(1), narrow.amax((0, 2, 3))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=0)
    torch.testing.assert_close(second, third, rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_ranges_of_transformers_are_equal_on_every_pair(family: str) -> None:
    network, _ = built(family)
    after, (step,) = rewrite(network, ["cross_layer_equalization(tolerance=1e-6)"])
    assert len(step.edges) == equal_ranges(network, after) == 4


def test_two_layers_meet_in_the_middle_and_dead_channels_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().requires_grad_(False)
    perturb(model)
    model[0].weight[2], model[2].weight[:, 4] = 0.0, 0.0
    network = network_of(model, {"input": torch.randn(5, 4, generator=stream(0)).double()})
    after, (step,) = rewrite(network, ["cross_layer_equalization"])
    assert step.change < 1e-12
    before = [model[0].weight.abs().amax(1), model[2].weight.abs().amax(0)]
    first, second = after.source.read("0.weight").abs().amax(1), after.source.read("2.weight").abs().amax(0)
    alive = [0, 1, 3, 5]
    torch.testing.assert_close(first[alive], second[alive], rtol=1e-3, atol=0)
    torch.testing.assert_close(first * second, before[0] * before[1])  # the product does not change
    torch.testing.assert_close(second[2], before[1][2])
    torch.testing.assert_close(first[4], before[0][4])


# Outlier Suppression+


def lopsided(family: str = "opt") -> tuple[Network, Batches]:
    """With channels far from zero."""
    model = BY_NAME[family].model().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("bias"):
                parameter[:2] += torch.tensor([40.0, -25.0]).double()
    inputs = BY_NAME[family].inputs(model)
    return network_of(model, inputs), [inputs]


def test_every_channel_is_symmetric_after_the_shift() -> None:
    network, batches = lopsided()
    after, (step,) = rewrite(network, ["outlier_suppression+(steps=10)"], calibration=batches)
    assert step.change < 1e-12
    statistics = observe(after, batches)
    shifted = [s for s in norm_edges(network) if holds_shift(s)]
    assert len(shifted) == 4
    for edge in shifted:
        low, high = limits(edge, statistics)
        assert float((low + high).abs().max()) < 1e-4 * float(high.max())


def test_the_search_takes_the_threshold_with_the_least_error() -> None:
    network, batches = lopsided()
    method, statistics = OutlierSuppressionPlus(bits=6, steps=40), observe(network, batches)
    folds = chosen(method, network, batches)
    assert len(folds) == 8
    for fold in folds:
        edge, scale = fold.symmetry, 1 / fold.transform.scale
        low, high = limits(edge, statistics)
        middle = (low + high) / 2 if holds_shift(edge) else torch.zeros_like(low)
        largest = (high - middle).maximum(middle - low)
        assert bool((scale >= 1).all())
        touched = scale > 1
        if bool(touched.any()):  # all that stick out come down to one threshold
            heights = (largest / scale)[touched]
            torch.testing.assert_close(heights, heights[:1].expand_as(heights))
            assert bool((largest[~touched] <= heights[0] * (1 + 1e-9)).all())
        seen = readings(edge, network.source, statistics)
        best = sum(float(method._loss(r, middle, scale)) for r in seen)
        plain = sum(float(method._loss(r, middle, torch.ones_like(scale))) for r in seen)
        assert best <= plain * (1 + 1e-9)


def test_without_biases_it_scales_only() -> None:
    network, batches = built("llama")
    folds = chosen(OutlierSuppressionPlus(steps=3), network, batches)
    assert len(folds) == 9  # norms, values, gated products
    assert all(fold.transform.shift is None for fold in folds)


def test_centring_and_shrinking_make_rounding_cheaper() -> None:
    network, batches = lopsided()
    method, statistics = OutlierSuppressionPlus(bits=6, steps=40), observe(network, batches)
    for fold in chosen(method, network, batches)[:2]:
        edge = fold.symmetry
        low, high = limits(edge, statistics)
        nothing, ones = torch.zeros_like(low), torch.ones_like(low)
        seen = readings(edge, network.source, statistics)
        after = sum(float(method._loss(r, (low + high) / 2, 1 / fold.transform.scale)) for r in seen)
        assert after < 0.5 * sum(float(method._loss(r, nothing, ones)) for r in seen)


# RepQ


@pytest.mark.parametrize("centre", ["mean", "median"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", ["vit", "opt"])
def test_one_grid_for_all_channels_rounds_as_one_for_each(family: str, bits: int, centre: str) -> None:
    network, batches = lopsided(family) if family == "opt" else built(family)
    method, statistics = RepQ(bits=bits, centre=centre), observe(network, batches)
    folds = chosen(method, network, batches)
    assert len(folds) == len(norm_edges(network))
    for fold in (f for f in folds if holds_shift(f.symmetry)):
        low, high = limits(fold.symmetry, statistics)
        scale, zero, common, middle = method.common(low, high)
        assert float(middle) == round(float(middle))
        for reading in readings(fold.symmetry, network.source, statistics):
            x, r, shift = reading.sample, fold.transform.scale, fold.transform.shift
            by_channel = rounded_to(x, scale, zero, bits)
            at_once = rounded_to(x * r + shift, common, middle, bits)
            torch.testing.assert_close((at_once - shift) / r, by_channel, rtol=1e-12, atol=1e-12)
            fractional = rounded_to(x * r + shift, common, middle + 0.4, bits)
            assert not torch.allclose((fractional - shift) / r, by_channel)


def test_channels_come_to_one_range() -> None:
    network, batches = lopsided()
    after, (step,) = rewrite(network, ["repq"], calibration=batches)
    assert step.change < 1e-12
    statistics = observe(after, batches)
    for edge in norm_edges(network):
        low, high = limits(edge, statistics)
        scale, zero = affine(low, high, 8)
        torch.testing.assert_close(scale, scale[:1].expand_as(scale), rtol=1e-3, atol=0)
        assert float(zero.max() - zero.min()) <= 1  # all start within half a step of one place


def test_without_biases_ranges_are_symmetric() -> None:
    network, batches = outlying("llama")
    folds = chosen(RepQ(), network, batches)
    assert len(folds) == 5
    assert all(fold.transform.shift is None for fold in folds)
    after, _ = rewrite(network, ["repq"], calibration=batches)
    statistics = observe(after, batches)
    for edge in norm_edges(network):
        largest = largest_read(edge, statistics)
        torch.testing.assert_close(largest, largest[:1].expand_as(largest), rtol=1e-4, atol=0)


def test_the_median_ignores_an_outlying_channel_and_constants_keep_their_scale() -> None:
    low = torch.tensor([-1.0, -1.2, -0.9, -1.1, 5.0]).double()
    high = torch.tensor([1.0, 1.2, 0.9, 1.1, 5.0]).double()
    wild = torch.tensor([1.0, 1.0, 1.0, 100.0, 1.0]).double()
    for centre, moves in (("mean", True), ("median", False)):
        method = RepQ(centre=centre)
        before, after = method.common(low, high), method.common(low * wild, high * wild)
        others = [0, 1, 2]
        r, changed = before[0][others] / before[2], after[0][others] / after[2]
        assert torch.allclose(r, changed, rtol=0.2) != moves
        assert before[0][4] == before[2]  # constant: the common scale
        assert float((before[1][4] - before[3]).abs()) < 2000  # and no blown-up zero point


# Rounding of activations


def test_rounding_by_token_covers_every_row() -> None:
    x = torch.randn(7, 33, generator=stream(0)).double() * torch.logspace(-3, 3, 7).double()[:, None]
    for symmetric in (True, False):
        off = (rounded_per_token(x, 8, symmetric=symmetric) - x).abs().amax(-1)
        assert bool((off <= x.abs().amax(-1) / 127 * 1.01).all())
    assert torch.equal(rounded_per_token(torch.zeros(2, 3), 8), torch.zeros(2, 3))
    assert torch.equal(rounded_per_token(torch.zeros(2, 3), 8, symmetric=False), torch.zeros(2, 3))


def test_whole_zero_points_make_zero_exact() -> None:
    scale, zero = affine(torch.tensor(-0.7).double(), torch.tensor(2.1).double(), 4)
    assert float(rounded_to(torch.zeros(1).double(), scale, zero, 4)) == 0.0
    assert float(zero) == round(float(zero))
