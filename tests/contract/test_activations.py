"""Every way to round activations against the contract of its room, on every format it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pennyweight import catalogue
from pennyweight.errors import InvalidFormat, InvalidMeasurement, InvalidMethod, MissingStatistics
from pennyweight.formats import passing
from pennyweight.formats.passing import PASSING, Integers, Passing
from pennyweight.statistics import Statistics

METHODS = catalogue.classes("activations")
EXAMPLES = [format for kind in PASSING for format in kind.examples()]
CHANNELS = 96
every_format = pytest.mark.parametrize("format", EXAMPLES, ids=lambda format: format.label())


def takes(kind: type[Any], format: Passing) -> bool:
    return isinstance(format, kind.takes) and format.over.kind in kind.over


PAIRS = [
    pytest.param(kind, format, id=f"{kind.name}-{format.label()}")
    for kind in METHODS for format in EXAMPLES if takes(kind, format)
]  # fmt: skip
every_pair = pytest.mark.parametrize(("kind", "format"), PAIRS)


def activation(seed: int = 0, tokens: int = 64, *, positive: bool = False) -> torch.Tensor:
    """Heavy tails, channels of different size, off centre; or probabilities."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, CHANNELS, generator=generator)
    if positive:
        return (3 * x).softmax(-1)
    return x * torch.logspace(-1, 0.5, CHANNELS) * (1 + torch.rand(tokens, 1, generator=generator)) + 0.3


def data(format: Passing, seed: int = 0) -> torch.Tensor:
    return activation(seed, positive=format.limits[0] == 0)


def seen(x: torch.Tensor) -> Statistics:
    return Statistics(edge="edge", count=len(x), low=x.amin(0), high=x.amax(0), abs_max=x.abs().amax(0), sample=x)


def relative(back: torch.Tensor, x: torch.Tensor) -> float:
    return float((back - x).square().sum() / x.square().sum())


def test_every_kind_has_examples_of_its_own() -> None:
    labels = [format.label() for format in EXAMPLES]
    assert len(set(labels)) == len(labels)
    assert all(kind.examples() for kind in PASSING)
    assert len({kind.name for kind in PASSING}) == len(PASSING)


@every_format
def test_labels_are_read_back_by_one_kind(format: Passing) -> None:
    assert passing.parse(format.label()) == format
    assert sum(kind.parse(format.label()) is not None for kind in PASSING) == 1
    hash(format)


@every_format
def test_some_method_writes_every_format(format: Passing) -> None:
    assert any(takes(kind, format) for kind in METHODS)


@every_pair
def test_codes_stay_in_their_range(kind: type[Any], format: Passing) -> None:
    """On what was seen, on what was not, and on numbers a thousand times as large."""
    quantizer = kind().fit(seen(data(format)), format)
    for x in (data(format), data(format, 1), 1e3 * data(format, 2), -1e3 * data(format, 3)):
        codes = quantizer.codes(x)
        assert codes.codes.dtype in (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
        assert codes.codes.shape == x.shape
        whole = codes.codes.double()
        assert float(whole.min()) >= format.least
        assert float(whole.max()) <= format.limits[1]
        assert bool(torch.isfinite(codes.values()).all())
        if codes.zero_point is not None:
            assert format.limits[0] <= float(codes.zero_point.min()) <= float(codes.zero_point.max())
            assert float(codes.zero_point.max()) <= format.limits[1]


@every_pair
def test_what_is_rounded_is_what_the_codes_say(kind: type[Any], format: Passing) -> None:
    x = data(format)
    quantizer = kind().fit(seen(x), format)
    assert quantizer.format in (format, *format.variants())
    assert torch.equal(quantizer.rounded(x), quantizer.codes(x).values())
    assert torch.equal(quantizer.rounded(x.bfloat16()), quantizer.codes(x.bfloat16()).values(torch.bfloat16))
    assert quantizer.rounded(x.double()).dtype == torch.float64


@every_pair
def test_numbers_come_back(kind: type[Any], format: Passing) -> None:
    x = data(format)
    bits = getattr(format, "bits", 6 if "e4m3" in format.label() else 5)
    coarse = getattr(format, "base", "") == "log2"  # more bits do not help: the relative error of a power of two stays
    assert relative(kind().fit(seen(x), format).rounded(x), x) < (0.05 if coarse else min(0.9, 20 * 4.0**-bits + 0.01))


@every_pair
def test_rounding_is_to_the_nearest(kind: type[Any], format: Passing) -> None:
    """No other code is closer; all whole codes are tried."""
    x = data(format)
    codes = kind().fit(seen(x), format).codes(x)
    error = (codes.values() - x).abs()
    if codes.codes.dtype != torch.int8:
        candidates = (codes.codes.view(torch.int8) + step for step in (-1, 1))  # neighbours in the bit pattern
        others = [candidate.view(codes.codes.dtype) for candidate in candidates]
    else:
        low, high = map(int, format.limits)
        others = [torch.full_like(codes.codes, code) for code in range(low, high + 1)]
    for other in others:
        values = type(codes)(codes.format, other, codes.scale, codes.zero_point).values()
        assert (error <= (values - x).abs().nan_to_num(torch.inf) * (1 + 1e-5) + 1e-7).all()


@every_pair
def test_rounding_twice_is_rounding_once(kind: type[Any], format: Passing) -> None:
    x = data(format)
    quantizer = kind().fit(seen(x), format)
    once = quantizer.rounded(x)
    if not format.over.dynamic:
        torch.testing.assert_close(quantizer.rounded(once), once, rtol=1e-6, atol=1e-9)
    elif getattr(format, "symmetric", True):  # the largest number of a token is one of the values
        torch.testing.assert_close(quantizer.rounded(once), once, rtol=1e-5, atol=1e-7)


@every_pair
def test_zeros_stay_zeros(kind: type[Any], format: Passing) -> None:
    quantizer = kind().fit(seen(data(format)), format)
    assert torch.equal(quantizer.rounded(torch.zeros(3, CHANNELS)), torch.zeros(3, CHANNELS))
    nothing = kind().fit(seen(torch.zeros(8, CHANNELS)), format)
    assert torch.equal(nothing.rounded(torch.zeros(3, CHANNELS)), torch.zeros(3, CHANNELS))
    assert bool(torch.isfinite(nothing.rounded(data(format))).all())


@every_pair
def test_batches_are_rows_one_after_the_other(kind: type[Any], format: Passing) -> None:
    x = data(format)
    quantizer = kind().fit(seen(x), format)
    together = quantizer.rounded(x)
    assert torch.equal(quantizer.rounded(x.reshape(4, 2, 8, CHANNELS)).reshape(x.shape), together)
    assert torch.equal(torch.cat([quantizer.rounded(x[:5]), quantizer.rounded(x[5:])]), together)
    assert quantizer.rounded(x[:0]).shape == (0, CHANNELS)


@every_pair
def test_nothing_is_written_to_and_nothing_is_random(kind: type[Any], format: Passing) -> None:
    x = data(format)
    copy, statistics = x.clone(), seen(x)
    first, second = (kind().fit(statistics, format).rounded(x) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(x, copy)
    assert torch.equal(statistics.high, copy.amax(0))  # type: ignore[arg-type]


@every_pair
def test_doubled_activations_are_doubled(kind: type[Any], format: Passing) -> None:
    x = data(format)
    once, twice = (kind().fit(seen(f * x), format).rounded(f * x) for f in (1, 2))
    torch.testing.assert_close(twice, 2 * once, rtol=1e-5, atol=1e-6)


@every_pair
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_not_hidden(kind: type[Any], format: Passing, value: float) -> None:
    x = data(format)
    quantizer = kind().fit(seen(x), format)
    x[3, 7] = value
    with pytest.raises(InvalidMeasurement, match="NaN or infinite"):
        quantizer.codes(x)


@every_pair
def test_missing_statistics_are_named(kind: type[Any], format: Passing) -> None:
    if not kind.needs:
        assert kind().fit(None, format) == kind().fit(seen(data(format)), format)
        return
    for statistics in (None, Statistics(edge="here", count=1)):
        with pytest.raises(MissingStatistics, match=r"range|sample") as error:
            kind().fit(statistics, format)
    assert error.value.site == "here"


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
def test_other_formats_are_refused(kind: type[Any]) -> None:
    for format in EXAMPLES:
        if not takes(kind, format):
            with pytest.raises(InvalidMethod, match="does not choose"):
                kind().fit(seen(data(format)), format)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_bit_takes_three_quarters_of_the_error(bits: int) -> None:
    x = activation()
    method = catalogue.find("dynamic")
    errors = [relative(method.fit(None, Integers(bits=b)).rounded(x), x) for b in (bits, max(2, bits - 1))]
    assert errors[0] == errors[1] if bits == 2 else errors[0] < errors[1] / 3


def test_a_zero_point_pays_where_numbers_are_off_centre() -> None:
    x = activation().abs()
    symmetric, asymmetric = (
        relative(catalogue.find("dynamic").fit(None, passing.parse(label)).rounded(x), x)
        for label in ("int4 token", "int4 token asym")
    )
    assert asymmetric < symmetric / 3


def test_other_channels_than_fitted_are_refused() -> None:
    x = activation()
    quantizer = catalogue.find("static_range").fit(seen(x), passing.parse("int8 channel"))
    with pytest.raises(InvalidFormat, match="scales for 96"):
        quantizer.codes(x[:, :48])
    with pytest.raises(InvalidFormat, match="do not split"):
        catalogue.find("dynamic").fit(None, passing.parse("int6 g48")).codes(x[:, :50])
