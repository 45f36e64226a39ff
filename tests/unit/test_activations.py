"""Each way to round activations by itself: what its source says of it, by hand or against slow twins."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from pennyweight import catalogue
from pennyweight.errors import InvalidFormat, InvalidMethod, UnknownName
from pennyweight.formats import passing
from pennyweight.formats.passing import Codes, Floats, Integers, Over, Passing, Powers, Static, Tangent
from pennyweight.methods.activations import (
    Dynamic,
    SortAndCluster,
    StaticEntropy,
    StaticMSE,
    StaticPercentile,
    StaticRange,
)
from pennyweight.methods.activations.static_entropy import divergence
from pennyweight.methods.activations.static_percentile import quantile
from pennyweight.methods.rewrites.repq import CENTRES
from pennyweight.numerics.uniform import rounded_per_token
from pennyweight.statistics import Statistics


def seen(x: torch.Tensor) -> Statistics:
    return Statistics(edge="edge", count=len(x), low=x.amin(0), high=x.amax(0), sample=x)


def normal(seed: int = 0, tokens: int = 128, channels: int = 64) -> torch.Tensor:
    return torch.randn(tokens, channels, generator=torch.Generator().manual_seed(seed))


def outlying(seed: int = 0) -> torch.Tensor:
    """One number far out of the range of all others."""
    x = normal(seed)
    x[3, 5] = 60.0
    return x


def error(quantizer: Static, x: torch.Tensor) -> float:
    return float((quantizer.rounded(x) - x).square().sum())


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "format"),
    [
        ("int8 token", Integers()),
        ("int8 token sym", Integers()),
        ("int6 g128", Integers(bits=6, over=Over("group", 128))),
        ("int8 tensor asym", Integers(symmetric=False, over=Over("tensor"))),
        ("fp8 e5m2 tensor", Floats(element="e5m2", over=Over("tensor"))),
        ("log-sqrt2 4bit tensor", Powers(over=Over("tensor"))),
        ("tan 4bit tensor", Tangent(over=Over("tensor"))),
        ("tan1.1 3bit token", Tangent(bits=3, slope=1.1)),
    ],
)
def test_labels(label: str, format: Passing) -> None:
    assert passing.parse(label) == format


@pytest.mark.parametrize("label", ["int8", "int8 row", "int8 g0", "int8 group", "fp8 token", "fp6 e3m2 token", "token"])
def test_labels_that_name_nothing(label: str) -> None:
    with pytest.raises(UnknownName, match="no format of activations"):
        passing.parse(label)


@pytest.mark.parametrize(
    "label", ["int9 token", "int1 token", "fp8 e3m4 token", "log2 8bit tensor", "tan1.6 4bit token"]
)
def test_labels_of_what_cannot_be(label: str) -> None:
    with pytest.raises(InvalidFormat):
        passing.parse(label)


@pytest.mark.parametrize(("kind", "size"), [("row", None), ("group", None), ("token", 4), ("group", 0)])
def test_scales_over_nothing(kind: str, size: int | None) -> None:
    with pytest.raises(InvalidFormat):
        Over(kind, size)


def test_a_power_of_root_two_is_a_shift_and_a_parity() -> None:
    """2^(−q/2) = 2^(−⌈q/2⌉) (1 + odd(q) (√2 − 1)), for every code above zero."""
    format = Powers(bits=4, over=Over("tensor"))
    codes = torch.arange(1, 16, dtype=torch.int8)
    q = format.exponents(codes).double()
    shifted = 2 ** -(q / 2).ceil() * (1 + q % 2 * (math.sqrt(2) - 1))
    values = Codes(format, codes, torch.ones(1), None).values(torch.float64)
    torch.testing.assert_close(values, shifted, rtol=1e-7, atol=0)
    assert float(Codes(format, torch.zeros(1, dtype=torch.int8), torch.ones(1), None).values()) == 0


def test_powers_of_two_are_exact_and_what_is_negative_is_zero() -> None:
    format = passing.parse("log2 4bit tensor")
    x = torch.tensor([[1.0, 0.5, 0.25, 2.0**-14, 0.0, -0.3, 3.0]])
    rounded = Static(format, torch.ones(1), None).rounded(x)
    assert rounded.tolist() == [[1.0, 0.5, 0.25, 2.0**-14, 0.0, 0.0, 1.0]]


def test_root_two_serves_probabilities_better_than_two_and_than_whole_numbers() -> None:
    p = (2.5 * normal(1, 197, 197)).softmax(-1)
    found = {
        label: error(StaticRange().fit(seen(p), passing.parse(label)), p)
        for label in ("log-sqrt2 4bit tensor", "log2 4bit tensor", "int4 tensor asym")
    }
    assert found["log-sqrt2 4bit tensor"] < found["log2 4bit tensor"] / 2
    assert found["log-sqrt2 4bit tensor"] < found["int4 tensor asym"] / 2


def probabilities(tau: float, rows: int = 600) -> torch.Tensor:
    """Softmax of N(0, tau²) over 197 tokens."""
    generator = torch.Generator().manual_seed(8)
    return (tau * torch.randn(rows, 197, generator=generator, dtype=torch.float64)).softmax(-1).float()


@pytest.mark.parametrize(("tau", "bits", "expected"), [(2.5, 4, 0.014), (2.5, 3, 0.047), (4.0, 4, 0.0058),
                                                       (4.0, 3, 0.020)])  # fmt: skip
def test_a_tangent_has_the_known_error(tau: float, bits: int, expected: float) -> None:
    """Relative error of P V, the best of all slopes."""
    p = probabilities(tau)
    values = torch.randn(197, 64, generator=torch.Generator().manual_seed(9))
    found = [
        float((StaticRange().fit(seen(p), variant).rounded(p) @ values - p @ values).square().sum())
        for variant in passing.parse(f"tan {bits}bit tensor").variants()
    ]
    assert min(found) / float((p @ values).square().sum()) == pytest.approx(expected, rel=0.1)


def test_a_tangent_is_for_peaked_attention_and_powers_of_root_two_for_flat_one() -> None:
    def errors(tau: float) -> tuple[float, float]:
        p = probabilities(tau)
        tangent, powers = (passing.parse(label) for label in ("tan 4bit tensor", "log-sqrt2 4bit tensor"))
        return error(StaticMSE().fit(seen(p), tangent), p), error(StaticMSE().fit(seen(p), powers), p)

    peaked, flat = errors(4.0), errors(2.0)
    assert peaked[0] < 0.75 * peaked[1]
    assert flat[1] < 0.75 * flat[0]


def test_a_search_finds_the_slope_and_says_it() -> None:
    p = probabilities(4.0)
    format = passing.parse("tan 4bit tensor")
    free, usual = StaticMSE().fit(seen(p), format), StaticMSE().fit(seen(p), passing.parse("tan1.5 4bit tensor"))
    assert isinstance(free.format, Tangent)
    assert free.format.slope is not None
    assert error(free, p) < error(usual, p)
    assert passing.parse(free.format.label()) == free.format


def test_a_slope_towards_zero_is_equal_steps() -> None:
    p = probabilities(2.5)
    tangent, equal = passing.parse("tan0.01 4bit tensor"), passing.parse("int4 tensor asym")
    found, expected = (StaticRange().fit(seen(p), format).rounded(p) for format in (tangent, equal))
    assert float((found - expected).abs().max()) < 1e-4 * float(p.max())


@pytest.mark.parametrize(("element", "largest"), [("e4m3", 448.0), ("e5m2", 57344.0)])
def test_small_floats_saturate(element: str, largest: float) -> None:
    quantizer = Static(Floats(element=element, over=Over("tensor")), torch.ones(1), None)
    x = torch.tensor([[1e9, -1e9, largest, 1.0625, 2.0**-9, 0.0]])
    rounded = quantizer.rounded(x)
    assert rounded[0, :3].tolist() == [largest, -largest, largest]
    assert rounded[0, 3] == 1.0  # between 1 and 1.125, a tie to the even pattern; nearest of 1 and 1.25
    assert rounded[0, 4:].tolist() == [2.0**-9, 0.0]


def test_e4m3_is_a_uniform_relative_error_where_int8_has_a_uniform_step() -> None:
    """Heavy tails: floats lose less on the small numbers of a token with a large one."""
    x = normal() * 0.01
    x[:, 7] = 100.0
    floats, whole = (
        float((Dynamic().fit(None, passing.parse(label)).rounded(x) - x)[:, :7].square().sum())
        for label in ("fp8 e4m3 token", "int8 token")
    )
    assert floats < whole / 2


# --- dynamic ----------------------------------------------------------------------------------------------------------


def test_a_token_by_hand() -> None:
    codes = Dynamic().fit(None, passing.parse("int4 token")).codes(torch.tensor([[7.0, -3.4, 0.5, 1.5], [0, 0, 0, 0]]))
    assert codes.scale.tolist() == [[1.0], [1.0]]
    assert codes.codes.tolist() == [[7, -3, 0, 2], [0, 0, 0, 0]]
    assert codes.zero_point is None


def test_a_zero_point_by_hand() -> None:
    codes = Dynamic().fit(None, passing.parse("int4 token asym")).codes(torch.tensor([[0.0, 15.0, 4.0], [-3.0, 12, 0]]))
    assert codes.scale.tolist() == [[1.0], [1.0]]
    assert codes.zero_point is not None
    assert codes.zero_point.tolist() == [[-8], [-5]]
    assert codes.codes.tolist() == [[-8, 7, -4], [-8, 7, -5]]
    assert codes.values().tolist() == [[0, 15, 4], [-3, 12, 0]]


def test_groups_are_tokens_of_fewer_channels() -> None:
    x = normal(2)
    grouped = Dynamic().fit(None, passing.parse("int6 g16")).rounded(x)
    each = Dynamic().fit(None, passing.parse("int6 token")).rounded(x.reshape(-1, 16)).reshape(x.shape)
    assert torch.equal(grouped, each)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["", " asym"])
def test_tokens_are_rounded_as_rewrites_round_them_to_see_what_they_are_worth(bits: int, kind: str) -> None:
    x = normal(3) * torch.logspace(-1, 1, 64)
    rounded = Dynamic().fit(None, passing.parse(f"int{bits} token{kind}")).rounded(x)
    torch.testing.assert_close(rounded, rounded_per_token(x, bits, symmetric=not kind), rtol=1e-6, atol=1e-7)


def test_a_dynamic_format_is_needed() -> None:
    with pytest.raises(InvalidFormat, match="fixed beforehand"):
        passing.Dynamic(passing.parse("int8 tensor"))


# --- static -----------------------------------------------------------------------------------------------------------

INT8, INT4, ASYMMETRIC = (passing.parse(label) for label in ("int8 tensor", "int4 tensor", "int4 tensor asym"))


def test_the_whole_range_saturates_beyond_it() -> None:
    quantizer = StaticRange().fit(seen(torch.tensor([[1.0, -2.0], [0.5, 127.0]])), INT8)
    assert quantizer.scale.tolist() == [1.0]
    assert quantizer.rounded(torch.tensor([[126.6, -500.0]])).tolist() == [[127.0, -128.0]]


def test_channels_have_their_own_ranges() -> None:
    x = normal() * torch.logspace(-3, 3, 64)
    each = StaticRange().fit(seen(x), passing.parse("int8 channel"))
    assert torch.allclose(each.scale, x.abs().amax(0) / 127)
    assert error(each, x / 1) < error(StaticRange().fit(seen(x), INT8), x)


@pytest.mark.parametrize("centre", ["mean", "median"])
def test_scales_of_channels_folded_away_give_the_same_codes_with_one_scale(centre: str) -> None:
    """RepQ: x over its channels' grids, and common · (x / scale + zero − middle) over one grid for all."""
    x = (normal(12) * torch.logspace(-1, 1, 64) + torch.linspace(-1, 1, 64)).double()
    each = StaticRange().fit(seen(x), passing.parse("int8 channel asym"))
    assert each.zero_point is not None
    scale, zero = each.scale.double(), each.zero_point.double()
    common, middle = CENTRES[centre](scale), CENTRES[centre](zero).round()
    folded = common * (x / scale + zero - middle)
    one = Static(passing.parse("int8 tensor asym"), common[None].float(), middle[None].to(torch.int8))
    same = one.codes(folded).codes == each.codes(x).codes
    assert float(same.double().mean()) > 0.999  # ties may fall to either side in the last bit


def test_a_percentile_is_that_of_numpy() -> None:
    x = normal(4)
    for share in (0.5, 0.9, 0.999, 1.0):
        expected = torch.quantile(x, share, dim=1)
        torch.testing.assert_close(quantile(x, share), expected, rtol=1e-5, atol=1e-6)


def test_a_percentile_leaves_out_an_outlier() -> None:
    x = outlying()
    clipped = StaticPercentile(percentile=99.9).fit(seen(x), INT8)
    assert float(clipped.scale) == pytest.approx(float(torch.quantile(x.abs().flatten(), 0.999)) / 127, rel=1e-5)
    assert float(StaticPercentile(percentile=100).fit(seen(x), INT8).scale) == pytest.approx(60 / 127)


def test_percentiles_of_both_ends() -> None:
    x = normal(5) + 1
    quantizer = StaticPercentile(percentile=99).fit(seen(x), ASYMMETRIC)
    low, high = (float(torch.quantile(x.flatten(), q)) for q in (0.01, 0.99))
    assert float(quantizer.scale) == pytest.approx((high - low) / 15, rel=1e-5)


@pytest.mark.parametrize("format", [INT8, INT4, ASYMMETRIC, passing.parse("fp8 e4m3 tensor")], ids=lambda f: f.label())
@pytest.mark.parametrize("data", [normal(6), outlying(6), normal(6).abs()], ids=["normal", "outlier", "positive"])
def test_the_least_error_is_no_larger_than_that_of_the_whole_range(format: Passing, data: torch.Tensor) -> None:
    assert error(StaticMSE().fit(seen(data), format), data) <= error(StaticRange().fit(seen(data), format), data)


def test_the_least_error_is_near_the_best_clip_of_a_normal() -> None:
    """2.51 for 16 levels (Max 1960 and everyone since); narrow codes have 15, whose best clip is a little lower."""
    x = normal(7, 512, 256)
    clip = 7 * float(StaticMSE(candidates=200).fit(seen(x), INT4).scale)
    assert clip == pytest.approx(2.4, abs=0.15)


def test_the_least_error_of_every_channel_by_itself() -> None:
    x = normal(8) * torch.logspace(-1, 1, 64)
    each = StaticMSE().fit(seen(x), passing.parse("int4 channel"))
    for channel in (0, 17, 63):
        alone = StaticMSE().fit(seen(x[:, channel : channel + 1]), INT4)
        assert float(alone.scale) == pytest.approx(float(each.scale[channel]))


def slow_divergence(counts: list[float], kept: int, levels: int) -> float:
    """The same by loops, with scipy's entropy."""
    p = counts[:kept]
    p[-1] += sum(counts[kept:])
    q = [0.0] * kept
    for level in range(levels):
        bins = [i for i in range(kept) if i * levels // kept == level]
        full = [i for i in bins if p[i] > 0]
        for i in full:
            q[i] = sum(counts[j] for j in bins) / len(full)
    p, q = [max(v, 1e-4) for v in p], [max(v, 1e-4) for v in q]
    return float(stats.entropy(p, q))


def test_divergence_is_that_of_loops() -> None:
    counts = torch.poisson(20 * torch.linspace(2, 0, 300).exp(), generator=torch.Generator().manual_seed(0)).double()
    counts[250:290] = 0
    for kept in (300, 260, 150, 128):
        assert divergence(counts, kept, 128) == pytest.approx(slow_divergence(counts.tolist(), kept, 128), rel=1e-9)


def test_entropy_keeps_a_uniform_range_and_cuts_an_outlier() -> None:
    uniform = torch.rand(512, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert float(StaticEntropy().fit(seen(uniform), INT8).scale) == pytest.approx(1 / 127, rel=0.02)
    x = outlying(9)
    x = torch.cat([x, normal(10, 2000)])
    clip = 127 * float(StaticEntropy().fit(seen(x), INT8).scale)
    assert 3 < clip < 30


def test_entropy_cuts_both_ends_where_there_is_a_zero_point() -> None:
    x = torch.cat([normal(11, 2000), torch.full((1, 64), 50.0)]).clamp(min=-0.5)
    quantizer = StaticEntropy().fit(seen(x), passing.parse("int8 tensor asym"))
    ends = quantizer.rounded(torch.tensor([[-1e3, 1e3]])).flatten()
    assert float(ends[0]) == pytest.approx(-0.5, abs=0.1)
    assert 3 < float(ends[1]) < 45


@pytest.mark.parametrize(
    "spec",
    [
        "static_percentile(percentile=50)", "static_percentile(percentile=101)", "static_mse(candidates=1)",
        "static_mse(narrowest=0)", "static_entropy(bins=64)", "static_entropy(thresholds=1)",
        "sort_and_cluster(heads=0)", "sort_and_cluster(channel_groups=0)",
    ],
)  # fmt: skip
def test_parameters_outside_their_range(spec: str) -> None:
    with pytest.raises(InvalidMethod):
        catalogue.find(spec)


# --- sort and cluster -------------------------------------------------------------------------------------------------

CLUSTERS = passing.parse("int8 clusters")


def scanned(seed: int = 0) -> torch.Tensor:
    """Eight heads of 16 channels: even ones flat, odd ones with a few large channels, in an order of their own."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.ones(8, 16)
    sizes[1::2, :3] = 40.0
    sizes[1::2, 3:8] = 6.0
    sizes = torch.stack([row[torch.randperm(16, generator=generator)] for row in sizes])
    return (torch.rand(256, 128, generator=generator) * 2 - 1) * sizes.flatten()


def test_one_group_each_is_one_scale_for_all() -> None:
    x = scanned()
    quantizer = SortAndCluster(head_groups=1, channel_groups=1).fit(seen(x), CLUSTERS)
    assert torch.equal(quantizer.rounded(x), StaticRange().fit(seen(x), INT8).rounded(x))


def test_sixteen_scales_are_nearly_as_good_as_one_for_every_channel() -> None:
    x = scanned()
    clustered = error(SortAndCluster().fit(seen(x), CLUSTERS), x)
    channel = error(StaticRange().fit(seen(x), passing.parse("int8 channel")), x)
    tensor = error(StaticRange().fit(seen(x), INT8), x)
    assert channel <= clustered < 1.5 * channel < tensor / 3
    assert len(SortAndCluster().fit(seen(x), CLUSTERS).scale.unique()) <= 16


def test_heads_with_like_profiles_share_scales() -> None:
    groups = SortAndCluster(head_groups=2).groups(scanned().abs().amax(0)).reshape(8, 16)
    clusters = groups // 4
    assert all(len(row.unique()) == 1 for row in clusters)
    assert len(clusters[::2].unique()) == len(clusters[1::2].unique()) == 1
    assert clusters[0, 0] != clusters[1, 0]


def test_scales_ascend_inside_a_head_and_order_makes_groups_neighbours() -> None:
    x = scanned(3)
    method, sizes = SortAndCluster(), x.abs().amax(0)
    order = method.order(sizes)
    assert sorted(order.tolist()) == list(range(128))
    scale = method.fit(seen(x), CLUSTERS).scale[order].reshape(8, 16)
    assert (scale[:, 1:] >= scale[:, :-1]).all()
    assert (order.reshape(8, 16) // 16 == order.reshape(8, 16)[:, :1] // 16).all(), "heads stay whole"
    groups = method.groups(sizes)[order].reshape(8, 16)
    assert (groups[:, 1:] >= groups[:, :-1]).all()


def test_heads_divide_the_channels() -> None:
    with pytest.raises(InvalidMethod, match="of 7 heads"):
        SortAndCluster(heads=7).fit(seen(scanned()), CLUSTERS)
    assert SortAndCluster(heads=1).groups(torch.arange(128.0)).max() == 3
