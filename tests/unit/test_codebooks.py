"""Learned tables, vectors and complex codes: bounds of theory on normal data, optima by brute force, sizes by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference.layers import correlated_gram, heavy_weight

from pennyweight import formats
from pennyweight.errors import InvalidFormat
from pennyweight.formats import Compressed, Fairy2i, Format, KMeans, Sharing, Vectors
from pennyweight.methods.quantization import GPTQ, GPTVQ, CoordinateDescent, EqualError, RoundToNearest
from pennyweight.methods.quantization.gptvq import values, vector_descend, vector_order, vector_sweep
from pennyweight.numerics.cholesky import damped, inverse_cholesky
from pennyweight.numerics.fairy2i import phase_stages, to_real, to_widely_linear
from pennyweight.numerics.partitions import equal_errors, lines, settled
from pennyweight.numerics.random import stream
from pennyweight.numerics.vectors import nearest, nearest_scaled
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


# Vectors


def test_the_nearest_vector_is_found() -> None:
    x, codebook, mass = normal(500, 4), normal(32, 4, seed=1), normal(500, 4, seed=2).exp()
    apart = (x[:, None] - codebook).square()
    assert torch.equal(nearest(x, mass, codebook), (apart * mass[:, None]).sum(-1).argmin(1))
    scale = torch.linspace(0.1, 2, 500)
    away = (x[:, None] - scale[:, None, None] * codebook).square().sum(-1)
    assert torch.equal(nearest_scaled(x, scale, codebook), away.argmin(1))


@pytest.mark.parametrize(
    ("label", "rate", "most"),
    [("vector2 16 row", 2, 0.94 * 0.1175), ("vector2 64 row", 3, 0.92 * 0.0345), ("vector4 256 row", 2, 0.86 * 0.1175),
     ("vector4 16 row", 1, 0.95 * 0.3634)],
)  # fmt: skip
def test_vectors_lie_between_the_best_numbers_and_the_bound_of_shannon(label: str, rate: int, most: float) -> None:
    """On normal weights 4^-rate is the least of any code, and each factor is over the best single numbers."""
    assert 4.0**-rate < error(label, normal(512, 1024)) < most


def test_importance_moves_codes_and_codebook() -> None:
    w, mass = normal(64, 64), torch.tensor([100.0, 1.0]).repeat(32)
    format = formats.parse("vector2 16 row")
    parts = [format.store(w, importance=importance) for importance in (mass, None)]
    weighed, plain = (((format.decode(part.tensors, (64, 64)) - w).square() * mass).sum() for part in parts)
    assert weighed < 0.6 * plain


def test_vectors_are_counted_to_the_bit() -> None:
    assert formats.parse("vector4 256 g64").stored_bits((10, 128)) == 10 * (32 * 8 + 2 * 16) + 256 * 4 * 16
    assert formats.parse("vector2 64 row float32").stored_bits((10, 128)) == 10 * (64 * 6 + 32) + 64 * 2 * 32
    with pytest.raises(InvalidFormat, match="98 inputs do not split into vectors of 4"):
        formats.parse("vector4 16 row").store(torch.zeros(4, 98))
    with pytest.raises(InvalidFormat, match="30 inputs do not split"):
        formats.parse("vector4 16 g30")


def vector_layer(rows: int = 32, columns: int = 96, label: str = "vector4 32 g48 float32") -> tuple[Any, ...]:
    w, gram = heavy_weight(rows, columns, 3), correlated_gram(columns, 4)
    format = formats.parse(label)
    assert isinstance(format, Vectors)
    order = vector_order(gram, format.width)
    factor = inverse_cholesky(gram, 0.01, order)
    return w, gram, damped(gram, factor.damping), order, factor.upper, format.fit(w, importance=gram.diagonal())


def test_the_losses_of_blocks_add_up_to_the_loss() -> None:
    """The identity the sweep rests on: Σ |B⁻ᵀ E|² over blocks, each with the errors before it absorbed, is the whole
    quadratic form; it fails if any error is passed on wrongly, whatever the codes."""
    w, _, metric, order, upper, fitted = vector_layer()
    for chunk in (4, 32, 96):
        codes, lost = vector_sweep(w, upper, order, fitted, chunk)
        change = (values(fitted, codes) - w).double()
        torch.testing.assert_close(lost.double(), (change @ metric.double() * change).sum(1), rtol=1e-4, atol=0)


def test_a_round_leaves_no_better_vector_for_the_last_it_chose() -> None:
    w, _, metric, order, upper, fitted = vector_layer()
    codes = vector_sweep(w, upper, order, fitted, 32)[0]
    new = vector_descend(codes, w, metric, fitted, 32)
    least = quadratic(fitted, new, w, metric)
    assert least.sum() < quadratic(fitted, codes, w, metric).sum()
    for other in range(fitted.format.levels):
        trial = new.clone()
        trial[:, -1] = other  # the last of the round; all others have not moved since
        assert (least <= quadratic(fitted, trial, w, metric) * (1 + 1e-5)).all()


def quadratic(fitted: Any, codes: torch.Tensor, w: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    change = (values(fitted, codes) - w).double()
    return (change @ metric.double() * change).sum(1)


def test_the_codebook_refit_is_that_of_least_squares() -> None:
    """Against a dense solve: vec(E) is linear in the codebook, so its best is a linear system of 32 · 4 unknowns."""
    w, _, metric, order, upper, fitted = vector_layer()
    codes = vector_sweep(w, upper, order, fitted, 32)[0]
    found = GPTVQ(steps=200)._codebook(fitted, codes, w, metric)
    spread = fitted.format.sharing.spread(fitted.scale, w.shape).double()
    places = torch.nn.functional.one_hot(codes.long(), 32).double()  # [out, vectors, count]
    design = torch.einsum("rvk,de->rvdke", places, torch.eye(4, dtype=torch.float64)).reshape(*w.shape, 32 * 4)
    design = design * spread[..., None]
    root = torch.linalg.cholesky(metric.double())
    white = torch.einsum("rik,ij->rjk", design, root).reshape(-1, 32 * 4)
    best = torch.linalg.lstsq(white, (w.double() @ root).reshape(-1, 1)).solution.reshape(32, 4)
    used = codes.long().flatten().bincount(minlength=32) > 0
    torch.testing.assert_close(found.codebook[used].double(), best[used], rtol=2e-3, atol=2e-3)


def test_vectors_beat_two_bit_grids_with_fewer_bits() -> None:
    w, gram = heavy_weight(256, 512, 1), correlated_gram(512, 5)
    vectors, grid = formats.parse("vector4 128 row"), formats.parse("int2 g64 affine")
    assert vectors.stored_bits((256, 512)) < grid.stored_bits((256, 512))
    assert loss(run(GPTVQ(), w, gram, vectors), w, gram) < 0.7 * loss(run(GPTQ(), w, gram, grid), w, gram)


def test_rounds_and_refits_of_vectors_lower_the_loss() -> None:
    w, gram = heavy_weight(128, 128, 2), correlated_gram(128, 6)
    swept, moved, refitted = (
        loss(run(GPTVQ(**settings), w, gram, "vector2 16 g64"), w, gram)
        for settings in ({"rounds": 0}, {"rounds": 1, "steps": 0}, {"rounds": 4})
    )
    assert refitted < moved < swept
    plain = loss(run(RoundToNearest(), w, gram, "vector2 16 g64"), w, gram)
    assert swept < 0.6 * plain


# Complex codes


@pytest.mark.parametrize(("stages", "greedy"), [(1, 0.3637), (2, 0.1309), (3, 0.0588), (4, 0.0333)])
def test_phases_have_the_known_errors(stages: int, greedy: float) -> None:
    w = normal(512, 768)
    assert error(f"fairy{stages} tensor", w, search=False) == pytest.approx(greedy, rel=0.02)


@pytest.mark.parametrize(("label", "most"), [("fairy1 row", 0.3634), ("fairy2 tensor", 0.1188), ("fairy3 row", 0.037)])
def test_the_search_over_phases_ends_where_real_numbers_do(label: str, most: float) -> None:
    """Two stages: .1188 is the even grid of four real numbers; of three refined signs the error is .037."""
    assert 0.9 * most < error(label, normal(256, 768)) < most


def test_phases_are_those_of_the_widely_linear_pair() -> None:
    """With one scale pair a matrix, what is stored is U and V rounded as `numerics.fairy2i` rounds them."""
    w = heavy_weight(12, 20, seed=8)
    for stages in (1, 2, 4):
        format = Fairy2i(stages=stages, sharing=Sharing(None, None), scale_dtype="float32")
        u, v = (sum(phase_stages(part, stages)) for part in to_widely_linear(w))
        part = format.store(w, search=False)
        torch.testing.assert_close(format.decode(part.tensors, (12, 20)).double(), to_real(u, v), rtol=1e-4, atol=1e-5)
    by_row = Fairy2i(stages=2, scale_dtype="float32").store(w, search=False)
    u, _ = to_widely_linear(w[[3, 9]])  # a row of U is two rows of the weight
    rows = by_row.format.decode(by_row.tensors, (12, 20))[[3, 9]]
    torch.testing.assert_close(to_widely_linear(rows)[0], sum(phase_stages(u, 2)), rtol=1e-4, atol=1e-5)


def test_complex_codes_are_counted_to_the_bit() -> None:
    """Two bits a complex number and stage, half as many of those as weights; two scales a stage and tile of U and V."""
    assert formats.parse("fairy2 row").stored_bits((8, 64)) == 8 * 64 * 2 + 2 * 4 * 2 * 2 * 16
    assert formats.parse("fairy1 g16 float32").stored_bits((8, 64)) == 8 * 64 + 2 * 4 * 2 * 2 * 32
    assert formats.parse("fairy3 tensor").stored_bits((8, 64)) == 8 * 64 * 3 + 2 * 3 * 2 * 16
    with pytest.raises(InvalidFormat, match="7 by 64 has no halves"):
        formats.parse("fairy2 row").store(torch.zeros(7, 64))


def test_a_scale_of_nothing_is_zero() -> None:
    """Purely real U and no V: imaginary scales and all of V are zero, and the signs come back exactly."""
    u = torch.where(normal(4, 8) < 0, -1.0, 1.0).double()
    w = to_real(torch.complex(u, torch.zeros_like(u)), torch.complex(0 * u, 0 * u)).float()
    part = formats.parse("fairy1 row").store(w)
    assert torch.equal(part.format.decode(part.tensors, (8, 16)), w)
    assert part.tensors["scale"][1].count_nonzero() == 0


@pytest.mark.parametrize("rows", [[[0.3] * 64], [[0.0] * 32 + [5.0] + [10.0] * 31], [list(range(64))]])
def test_few_different_weights_are_kept_exactly(rows: list[list[float]]) -> None:
    """Constant rows, three values, and as many levels as values: no run is left over, and nothing divides by zero."""
    w = torch.tensor(rows, dtype=torch.float32)
    for format in (KMeans(bits=2, table_dtype="float32"), KMeans(bits=6, table_dtype="float32")):
        if len(set(rows[0])) <= format.levels:
            for result in (
                run(EqualError(), w, torch.eye(64), format),
                run(RoundToNearest(), w, torch.eye(64), format),
            ):
                torch.testing.assert_close(result.dequantize(), w)
