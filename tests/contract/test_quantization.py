"""Every quantizer against the contract of its room and its own promises, on several grids."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, get_args

import pytest
import torch
from reference.layers import correlated_gram, heavy_weight

from pennyweight import catalogue
from pennyweight.errors import InvalidFormat, MissingStatistics
from pennyweight.formats import FORMATS, Compressed, Format, Grid
from pennyweight.numerics.random import stream
from pennyweight.promises import BetterOnAverage, Deterministic, Idempotent, Promise, RowEquivariant
from pennyweight.statistics import Statistics

METHODS = catalogue.classes("quantization")
EXAMPLES = [format for kind in FORMATS for format in kind.examples() if kind.name != "dense"]
USUAL = Grid(bits=4, group_size=32, symmetric=False)
ROWS, COLUMNS = 24, 96
every_method = pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)


def taken(kind: type[Any]) -> list[Format]:
    """Formats a method says it can write."""
    return [format for format in EXAMPLES if isinstance(format, kind.takes)]


def usual(kind: type[Any]) -> Format:
    return USUAL if isinstance(USUAL, kind.takes) else taken(kind)[0]


def inputs(format: Format) -> int:
    """As many as the format's blocks ask for, 96 or the next multiple."""
    return -(-COLUMNS // format.inputs_multiple) * format.inputs_multiple


def is_fine(format: Format) -> bool:
    """Four bits or more: below, what rounding costs and what a sweep costs drift apart."""
    return format.stored_bits((ROWS, inputs(format))) >= 4 * ROWS * inputs(format)


def pairs(found: Iterable[tuple[type[Any], Format]]) -> list[Any]:
    return [pytest.param(kind, format, id=f"{kind.name}-{format.label()}") for kind, format in found]


PREDICTING = [kind for kind in METHODS if hasattr(kind, "predict")]
every_pair = pytest.mark.parametrize(
    ("kind", "format"), pairs((kind, format) for kind in METHODS for format in taken(kind))
)


def layer(seed: int = 0, columns: int = COLUMNS) -> tuple[torch.Tensor, Statistics]:
    return heavy_weight(ROWS, columns, seed), seen(seed, columns)


def seen(seed: int = 0, columns: int = COLUMNS) -> Statistics:
    gram = correlated_gram(columns, seed + 1000)
    root = gram.diagonal().sqrt()
    ones = torch.ones(columns)
    return Statistics(edge="edge", count=768, gram=gram, mean=0 * ones, abs_max=4 * root, fisher=ones, fisher_count=8)


def run(method: Any, weight: torch.Tensor, statistics: Statistics, format: Format) -> Compressed:
    result = method.compress(weight, statistics, format, generator=stream(7, "site", method.name))
    assert isinstance(result, Compressed)
    return result


def output_error(result: Compressed, weight: torch.Tensor, statistics: Statistics) -> float:
    change = (result.dequantize() - weight).double()
    return float((change @ statistics.require_gram().double() * change).sum())


def same(a: Compressed, b: Compressed) -> bool:
    assert len(a.parts) == len(b.parts)
    pairs = [(p.tensors, q.tensors) for p, q in zip(a.parts, b.parts, strict=True)]
    return all(p.keys() == q.keys() and all(torch.equal(p[k], q[k]) for k in p) for p, q in pairs)


@every_pair
def test_result_has_the_shape_and_stays_in_the_format(kind: type[Any], format: Format) -> None:
    weight, statistics = layer(columns=inputs(format))
    result = run(kind(), weight, statistics, format)
    dequantized = result.dequantize()
    assert dequantized.shape == weight.shape == result.shape
    assert dequantized.dtype == torch.float32
    assert torch.isfinite(dequantized).all()
    assert result.bits == sum(part.format.stored_bits(result.shape) for part in result.parts)
    for part in result.parts:
        for field in part.format.fields(result.shape):
            assert field.levels is None or int(part.tensors[field.name].max()) < field.levels
    part = result.parts[0]
    again = part.format.decode(
        part.format.unpack(part.format.pack(part.tensors, result.shape), result.shape), result.shape
    )
    assert len(result.parts) > 1 or torch.equal(again, dequantized)
    energy = float((weight @ statistics.require_gram() * weight).sum())
    bits = format.stored_bits(result.shape) / weight.numel()
    assert output_error(result, weight, statistics) < energy * max(0.02, min(1.0, 4.0 ** (3 - bits)))


@every_pair
def test_arguments_are_never_written_to(kind: type[Any], format: Format) -> None:
    weight, statistics = layer(columns=inputs(format))
    before = [t.clone() for t in (weight, statistics.require_gram(), statistics.require_fisher())]
    run(kind(), weight, statistics, format)
    if hasattr(kind, "predict"):
        kind().predict(weight, statistics, [format])
    for tensor, copy in zip((weight, statistics.require_gram(), statistics.require_fisher()), before, strict=True):
        assert torch.equal(tensor, copy)


@every_method
def test_half_precision_weights_are_taken_as_they_are(kind: type[Any]) -> None:
    weight, statistics = layer()
    half = weight.bfloat16()
    assert same(run(kind(), half, statistics, usual(kind)), run(kind(), half.float(), statistics, usual(kind)))


@pytest.mark.parametrize("kind", [k for k in METHODS if isinstance(USUAL, k.takes)], ids=lambda kind: kind.name)
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
            run(kind(), weight, nothing, usual(kind))
    else:
        assert torch.isfinite(run(kind(), weight, nothing, usual(kind)).dequantize()).all()


@every_pair
def test_a_layer_of_zeros_stays_one(kind: type[Any], format: Format) -> None:
    zeros, statistics = torch.zeros(ROWS, inputs(format)), seen(columns=inputs(format))
    result = run(kind(), zeros, statistics, format)
    assert torch.equal(result.dequantize(), zeros)


@pytest.mark.parametrize("kind", PREDICTING, ids=lambda kind: kind.name)
def test_prediction_has_one_row_a_format_and_one_number_an_output(kind: type[Any]) -> None:
    weight, statistics = layer()
    formats = [format for format in taken(kind) if inputs(format) == COLUMNS][:12]
    predicted = kind().predict(weight, statistics, formats)
    assert predicted.shape == (len(formats), ROWS)
    assert (predicted >= 0).all()
    alone = torch.cat([kind().predict(weight, statistics, [format]) for format in formats])
    torch.testing.assert_close(predicted, alone)


@pytest.mark.parametrize(
    ("kind", "format"), pairs((kind, format) for kind in PREDICTING for format in taken(kind) if is_fine(format))
)
def test_prediction_is_close_to_what_compressing_costs(kind: type[Any], format: Format) -> None:
    predicted = actual = 0.0
    for seed in range(6):
        weight, statistics = layer(seed, inputs(format))
        predicted += float(kind().predict(weight, statistics, [format]).sum())
        actual += output_error(run(kind(), weight, statistics, format), weight, statistics)
    assert predicted == pytest.approx(actual, rel=0.3)


def check_deterministic(kind: type[Any], _: Deterministic, format: Format) -> None:
    weight, statistics = layer(columns=inputs(format))
    assert same(
        run(kind(), weight, statistics, format), run(kind(), weight.clone(), seen(columns=inputs(format)), format)
    )


def check_row_equivariant(kind: type[Any], _: RowEquivariant, format: Format) -> None:
    weight, statistics = layer(columns=inputs(format))
    whole = run(kind(), weight, statistics, format).dequantize()
    order = torch.randperm(ROWS, generator=stream(1, "rows"))
    permuted = run(kind(), weight[order], statistics, format).dequantize()
    # A product over other shapes may round differently, which moves a weight that sits on a tie: rarely.
    assert (permuted == whole[order]).float().mean() > 0.999
    parts = [run(kind(), rows, statistics, format).dequantize() for rows in weight.split([5, 1, ROWS - 6])]
    assert (torch.cat(parts) == whole).float().mean() > 0.999


def check_idempotent(kind: type[Any], _: Idempotent, format: Format) -> None:
    weight, statistics = layer(columns=inputs(format))
    once = run(kind(), weight, statistics, format).dequantize()
    torch.testing.assert_close(run(kind(), once, statistics, format).dequantize(), once)


def check_better_on_average(kind: type[Any], promise: BetterOnAverage, format: Format) -> None:
    other = catalogue.find(promise.than, "quantization")
    ratios = []
    for seed in range(8):
        weight, statistics = layer(seed, inputs(format))
        mine = output_error(run(kind(), weight, statistics, format), weight, statistics)
        ratios.append(mine / output_error(run(other, weight, statistics, format), weight, statistics))
    assert sum(ratios) / len(ratios) < 0.97, ratios


CHECKS: dict[type[Any], Callable[[type[Any], Any, Grid], None]] = {
    Deterministic: check_deterministic,
    RowEquivariant: check_row_equivariant,
    Idempotent: check_idempotent,
    BetterOnAverage: check_better_on_average,
}
PROMISED = [
    pytest.param(kind, promise, format, id=f"{kind.name}-{promise}-{format.label()}")
    for kind in METHODS
    for promise in getattr(kind, "promises", ())
    for format in taken(kind)
    if format.rows_stand_alone or not isinstance(promise, RowEquivariant)
    if not isinstance(promise, BetterOnAverage)
    or isinstance(format, catalogue.find(promise.than, "quantization").takes)
]


def test_every_kind_of_promise_has_a_check() -> None:
    assert set(CHECKS) == set(get_args(Promise))


@pytest.mark.parametrize(("kind", "promise", "format"), PROMISED)
def test_promises_are_kept(kind: type[Any], promise: Any, format: Format) -> None:
    CHECKS[type(promise)](kind, promise, format)
