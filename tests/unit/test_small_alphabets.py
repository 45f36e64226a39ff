"""Ternary, binary, residual binary and NF4 weights: published errors on normal data, and small cases by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pennyweight import formats


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
