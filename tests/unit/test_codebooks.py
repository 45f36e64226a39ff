"""Learned tables: bounds of theory on normal data, optima by brute force, sizes by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference.layers import correlated_gram, heavy_weight

from pennyweight import formats
from pennyweight.errors import InvalidFormat
from pennyweight.formats import Compressed, Format, KMeans
from pennyweight.methods.quantization import CoordinateDescent, EqualError
from pennyweight.numerics.partitions import equal_errors, lines, settled
from pennyweight.numerics.random import stream
from pennyweight.statistics import Statistics


def normal(rows: int, columns: int, seed: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns))).float()


def relative(back: torch.Tensor, w: torch.Tensor) -> float:
    return float((back - w).double().square().sum() / w.double().square().sum())


def error(label: str, w: torch.Tensor, *, search: bool = True) -> float:
    format = formats.parse(label)
    return relative(format.decode(format.store(w, search=search).tensors, tuple(w.shape)), w)


def seen(gram: torch.Tensor) -> Statistics:
    return Statistics(edge="edge", count=8 * len(gram), gram=gram)


def run(method: Any, weight: torch.Tensor, gram: torch.Tensor, format: Format | str) -> Compressed:
    found = formats.parse(format) if isinstance(format, str) else format
    result = method.compress(weight, seen(gram), found, generator=stream(7, "site", method.name))
    assert isinstance(result, Compressed)
    return result


def loss(result: Compressed, weight: torch.Tensor, gram: torch.Tensor) -> float:
    change = (result.dequantize() - weight).double()
    return float((change @ gram.double() * change).sum())


# Learned tables


@pytest.mark.parametrize(("bits", "expected"), [(1, 0.3634), (2, 0.1175), (3, 0.0345), (4, 0.0095)])
def test_learned_tables_reach_the_bound_of_lloyd_and_max(bits: int, expected: float) -> None:
    """One table for a million normal weights has the error of theory; a table a row fits its row, a little below."""
    w = normal(512, 2048)
    assert error(f"kmeans{bits} tensor", w) == pytest.approx(expected, rel=0.01)
    assert 0.92 * expected < error(f"kmeans{bits} row", w) < error(f"kmeans{bits} tensor", w)


def optimum(row: np.ndarray[Any, Any], mass: np.ndarray[Any, Any], count: int) -> float:
    """Least weighted squared error of any cut into runs, by dynamic programming."""
    order = row.argsort()
    x, m = row[order], mass[order]
    n = len(x)
    cost = np.full((n + 1, n + 1), np.inf)
    for i in range(n):
        for j in range(i + 1, n + 1):
            mean = (m[i:j] * x[i:j]).sum() / m[i:j].sum()
            cost[i, j] = (m[i:j] * (x[i:j] - mean) ** 2).sum()
    best = cost[0]
    for _ in range(count - 1):
        best = np.array([0.0, *((best[:j] + cost[:j, j]).min() for j in range(1, n + 1))])
    return float(best[n])


def test_tables_are_near_the_optimum_of_dynamic_programming() -> None:
    """Forty weights with masses from 0.1 to 10 are hard on Lloyd's rounds: six per cent above the least there is."""
    w, mass = normal(24, 40).double(), torch.logspace(-1, 1, 40, dtype=torch.float64)
    found = lines(w[:, None], mass.expand(1, 1, -1), 1 << 20)
    table = settled(found, equal_errors(found, 4), 100)
    least = sum(optimum(row.numpy(), mass.numpy(), 4) for row in w)
    whole = float(found.error(table).sum())
    assert least * (1 - 1e-9) < whole < 1.08 * least
    nearest = (w[:, None, :, None] - table[:, :, None]).square().amin(-1)
    assert whole == pytest.approx(float((nearest[:, 0] * mass).sum()), rel=1e-9)  # running sums against plain ones


def test_cells_have_equal_errors() -> None:
    """On normal weights to a few per cent, where even quantiles are apart by a factor of a hundred."""
    w = normal(4, 20000).double()
    found = lines(w[:, None], None, 1 << 20)
    for row, table in zip(w, equal_errors(found, 8)[:, 0], strict=True):
        ordered = row.sort().values
        # Runs are between levels, and their means are the levels: cut again where the means say so.
        cuts = [0]
        for level in table.tolist():
            means = ordered[cuts[-1] :].cumsum(0) / torch.arange(1, len(ordered) - cuts[-1] + 1)
            cuts.append(cuts[-1] + int((means - level).abs().argmin()) + 1)
        assert cuts[-1] == len(ordered)
        errors = [float((part - part.mean()).square().sum()) for part in ordered.tensor_split(cuts[1:-1])]
        assert max(errors) < 1.05 * min(errors)
    quantiles = [float((part - part.mean()).square().sum()) for part in ordered.chunk(8)]
    assert max(quantiles) > 20 * min(quantiles)


def test_equal_errors_are_near_the_best_table() -> None:
    """Theory says so of many levels; at two bits they cost half a per cent, at four two."""
    w, gram = normal(256, 2048), torch.eye(2048)
    for bits, most in ((2, 1.01), (4, 1.04)):
        format = KMeans(bits=bits)
        found = relative(run(EqualError(), w, gram, format).dequantize(), w)
        assert error(format.label(), w) < found < most * error(format.label(), w)


def test_one_bit_without_search_is_the_centred_sign() -> None:
    w = heavy_weight(8, 64, seed=1) + 0.3
    mean = w.mean(1, keepdim=True)
    size = (w - mean).abs().mean(1, keepdim=True)
    format = formats.parse("kmeans1 row float32")
    back = format.decode(format.store(w, search=False).tensors, (8, 64))
    torch.testing.assert_close(back, torch.where(w > mean, mean + size, mean - size))
    assert error("kmeans1 row", w) < error("kmeans1 row", w, search=False) < 0.95 * error("binary row", w)


def test_a_table_is_counted_to_the_bit() -> None:
    assert formats.parse("kmeans3 row").stored_bits((10, 64)) == 10 * (64 * 3 + 8 * 16)
    assert formats.parse("kmeans4 g32 float32").stored_bits((10, 64)) == 10 * (64 * 4 + 2 * 16 * 32)
    assert formats.parse("kmeans2 tensor").stored_bits((10, 64)) == 10 * 64 * 2 + 4 * 16
    for bits in (0, 7):
        with pytest.raises(InvalidFormat, match="1 to 6"):
            KMeans(bits=bits)


def test_long_tiles_learn_from_a_sample_of_their_sorted_weights() -> None:
    w = normal(1, 200_000)[None]
    whole, sampled = lines(w, None, 1 << 20), lines(w, None, 1 << 14)
    assert sampled.ordered.shape[-1] < 1 << 14
    tables = [settled(found, equal_errors(found, 8), 100) for found in (whole, sampled)]
    assert float(whole.error(tables[1])) < 1.002 * float(whole.error(tables[0]))


def test_coordinate_descent_refits_tables() -> None:
    """Against codes alone; what it stores is still the format's."""
    w, gram = heavy_weight(24, 96, 0), correlated_gram(96, 1000)
    moved, codes = (run(CoordinateDescent(refit=refit), w, gram, "kmeans3 row") for refit in (True, False))
    assert loss(moved, w, gram) < 0.95 * loss(codes, w, gram)
    assert moved.parts[0].tensors["table"].dtype == torch.float16
