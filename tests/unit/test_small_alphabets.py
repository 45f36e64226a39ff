"""Ternary, binary, residual binary and NF4 weights: published errors on normal data, and small cases by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from reference.layers import correlated_gram, heavy_weight

from pennyweight import formats
from pennyweight.methods.quantization import CoordinateDescent, ReCU
from pennyweight.numerics.random import stream
from pennyweight.statistics import Statistics


def normal(rows: int = 512, columns: int = 2048) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).standard_normal((rows, columns))).float()


def error(label: str, w: torch.Tensor, *, search: bool = True) -> float:
    format = formats.parse(label)
    back = format.decode(format.store(w, search=search).tensors, tuple(w.shape))
    return float((back - w).square().sum() / w.square().sum())


@pytest.mark.parametrize(
    ("label", "search", "expected"),
    [("ternary row", True, 0.1902), ("ternary row", False, 0.263), ("binary row", True, 0.3634),
     ("binary2 row", True, 0.1188), ("binary3 row", True, 0.0374), ("binary2 row", False, 0.1301),
     ("binary3 row", False, 0.0582), ("nf4 g64", False, 0.0085), ("nf4 g64", True, 0.0073)],
)  # fmt: skip
def test_known_errors_on_normal_weights(label: str, search: bool, expected: float) -> None:
    """Greedy residuals are BiBench's figures; two refined bases with equal steps are a uniform grid of four levels."""
    found = error(label, normal(), search=search)
    if label.startswith("binary") and label != "binary row" and search:
        assert 0.85 * expected < found < 1.04 * expected  # bases need not be powers of two apart: a little better
    else:
        assert found == pytest.approx(expected, rel=0.03)


def test_ternary_is_the_best_of_all_scales() -> None:
    w = normal(16, 12)
    format = formats.parse("ternary row float32")
    found = (format.decode(format.store(w).tensors, (16, 12)) - w).square().sum(1)
    for row, least in zip(w, found, strict=True):
        scales = torch.linspace(0.01, 3, 600)[:, None]
        rounded = (row / scales).round().clamp(-1, 1) * scales
        assert float(least) <= float((rounded - row).square().sum(1).min()) * (1 + 1e-3)


def test_two_bases_are_near_the_best_of_all_pairs_of_scales() -> None:
    w = normal(8, 6)
    format = formats.parse("binary2 row float32")
    found = (format.decode(format.store(w).tensors, (8, 6)) - w).square().sum(1)
    grid = torch.linspace(0.02, 2.5, 120)
    pairs = torch.cartesian_prod(grid, grid)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)))
    values = pairs @ signs.T
    best = torch.stack([(values[:, :, None] - row).abs().amin(1).square().sum(1).min() for row in w])
    assert float(found.sum()) <= 1.15 * float(best.sum())


def test_the_sign_of_zero_is_plus() -> None:
    format = formats.parse("binary row")
    assert isinstance(format, formats.Scalar)
    w = torch.tensor([[0.0, 1.0, -1.0, 2.0]])
    fitted = format.fit(w)
    assert torch.equal(format.decode(fitted.part(fitted.round(w)).tensors, (1, 4)), torch.tensor([[1.0, 1, -1, 1]]))
    assert fitted.columns((1, 4)).encode(torch.zeros(1), 0) == 1  # in a sweep as well


def test_scales_weighed_by_importance() -> None:
    """By hand: the weighted mean of |w|; and for ternary, the best of every set of largest weights."""
    w, importance = torch.tensor([[1.0, -3.0]]), torch.tensor([3.0, 1.0])
    format = formats.parse("binary row")
    assert format.store(w, importance=importance).tensors["scale"].item() == 1.5
    ternary = formats.parse("ternary row float32")
    w, importance = torch.tensor([[0.2, 1.0, -2.0]]), torch.tensor([1.0, 4.0, 1.0])
    # kept {2}: error .04 + 4 = 4.04; kept {1, 2}: scale 6/5, error .04 + 4 · .04 + .64 = .84; all: scale 6.2/6, 2.3
    assert ternary.store(w, importance=importance).tensors["scale"].item() == pytest.approx(1.2)


def test_nf4_is_the_table_of_bitsandbytes() -> None:
    table = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
             0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]  # fmt: skip
    values = formats.parse("nf4 g64").values()  # type: ignore[attr-defined]
    torch.testing.assert_close(values, torch.tensor(table), rtol=0, atol=1e-6)


def test_two_bases_start_where_binarydm_does() -> None:
    w = normal(16, 64)
    first = w.abs().mean(1, keepdim=True)
    rest = w - first * torch.where(w >= 0, 1.0, -1.0)
    second = rest.abs().mean(1, keepdim=True)
    part = formats.parse("binary2 row float32").store(w, search=False)
    torch.testing.assert_close(part.tensors["scale"][:, 0], torch.cat([first, second], 1))
    expected = first * torch.where(w >= 0, 1.0, -1.0) + second * torch.where(rest >= 0, 1.0, -1.0)
    torch.testing.assert_close(part.format.decode(part.tensors, (16, 64)), expected)


def test_coordinate_descent_refits_the_scales_of_bases() -> None:
    w, gram = heavy_weight(24, 96, 0), correlated_gram(96, 1000)
    statistics = Statistics(edge="edge", count=768, gram=gram)
    losses = []
    for refit in (True, False):
        method = CoordinateDescent(refit=refit)
        result = method.compress(w, statistics, formats.parse("binary2 row"), generator=stream(7, "site"))  # type: ignore[arg-type]
        change = result.dequantize() - w
        losses.append(float((change @ gram * change).sum()))
    assert losses[0] < 0.97 * losses[1]


def test_clamping_lowers_scales_to_those_of_a_clamped_normal() -> None:
    """Mean min(|w|, q) of N(0, 1) is √(2/π) (1 − exp(−q²/2)) + q erfc(q/√2), with q = −√(2/π) ln(2 − 2 tau)."""
    w, format = normal(256, 2048), formats.parse("binary row float32")
    for tau in (0.85, 0.99):
        q = -math.sqrt(2 / math.pi) * math.log(2 - 2 * tau)
        expected = math.sqrt(2 / math.pi) * (1 - math.exp(-q * q / 2)) + q * math.erfc(q / math.sqrt(2))
        result = ReCU(tau=tau).compress(w, None, format, generator=stream(7, "site"))  # type: ignore[arg-type]
        scale = result.parts[0].tensors["scale"]
        assert float(scale.mean()) == pytest.approx(expected, rel=2e-3)
        assert torch.equal(result.dequantize() >= 0, w >= 0)
    plain = format.decode(format.store(w).tensors, tuple(w.shape))
    tight = ReCU(tau=0.85).compress(w, None, format, generator=stream(7, "site")).dequantize()  # type: ignore[arg-type]
    ratio = float((tight - w).square().sum() / (plain - w).square().sum())
    assert ratio == pytest.approx(1.089, rel=0.01)
