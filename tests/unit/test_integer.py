"""Products of codes: what whole numbers give is what the decoded numbers give, and what torch's own product gives."""

from __future__ import annotations

import pytest
import torch
from reference.layers import heavy_weight

from pennyweight import formats
from pennyweight.errors import InvalidFormat
from pennyweight.formats import Compressed, Minifloat, Progressive
from pennyweight.formats.passing import Codes, Dynamic, Integers, Static, parse
from pennyweight.methods.quantization import RoundToNearest
from pennyweight.numerics import integer
from pennyweight.numerics.integer import LONGEST, Operand, linear, product
from pennyweight.numerics.random import stream

OUT, IN, TOKENS = 24, 96, 21


def activation(seed: int = 0, tokens: int = TOKENS) -> torch.Tensor:
    """A few large channels, off centre."""
    x = torch.randn(tokens, IN, generator=torch.Generator().manual_seed(seed))
    return x * torch.logspace(-1, 1, IN) + 0.5


def coded(label: str, x: torch.Tensor) -> Codes:
    format = parse(label)
    if format.over.dynamic:
        return Dynamic(format).codes(x)
    return Static(format, *format.ends(x.min()[None].clamp(max=0) / 2, x.max()[None] / 2)).codes(x)  # half saturates


def stored(label: str) -> Compressed:
    return RoundToNearest().compress(
        heavy_weight(OUT, IN, 1), None, formats.parse(label), generator=stream(0, "test")
    )  # fmt: skip


def operand(weight: Compressed) -> Operand:
    (part,) = weight.parts
    found: Operand = part.format.operand(part.tensors, weight.shape)  # type: ignore[attr-defined]
    return found


WEIGHTS = (
    "int8 row sym", "int8 row asym", "int4 row sym", "int4 row asym", "int4 g32 asym", "int4 g32 sym float32",
    "int4 g32 progressive", "int4 row progressive", "int6 g48 sym", "int2 g16 asym", "int8 tensor sym float32",
    "int8 b16 sym",
)  # fmt: skip
INPUTS = (
    "int8 token", "int8 token asym", "int8 tensor", "int8 tensor asym", "int4 token", "int4 token asym", "int6 g48",
    "int4 g32 asym", "int2 token asym",
)  # fmt: skip


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("label", INPUTS)
def test_whole_numbers_give_what_rounded_numbers_give(label: str, weight: str) -> None:
    """Both sides decoded and multiplied in float64, against int8 codes, int32 sums, and scales last."""
    codes, compressed = coded(label, activation()), stored(weight)
    bias = torch.linspace(-1, 1, OUT)
    simulated = codes.values(torch.float64) @ compressed.dequantize().double().T + bias
    size = codes.values(torch.float64).abs() @ compressed.dequantize().double().T.abs() + 1
    found = linear(codes.operand(), operand(compressed), bias)
    assert found.dtype == torch.float32
    assert float(((found - simulated) / size).abs().max()) < 1e-6
    assert float((found - activation() @ heavy_weight(OUT, IN, 1).T - bias).abs().max()) > 1e-4, "nothing was rounded"


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_operand_is_the_decoded_weight(weight: str) -> None:
    compressed = stored(weight)
    side = operand(compressed)
    assert side.codes.dtype == torch.int8
    torch.testing.assert_close(side.values(), compressed.dequantize(), rtol=1e-6, atol=1e-9)


def test_w8a8_is_torch_int_mm_times_two_scales() -> None:
    codes, compressed = coded("int8 token", activation()), stored("int8 row sym")
    (part,) = compressed.parts
    whole = (part.tensors["codes"].to(torch.int16) - 128).to(torch.int8)
    sums = torch._int_mm(codes.codes, whole.T)
    expected = sums.float() * codes.scale * part.tensors["scale"].float().T
    assert torch.equal(linear(codes.operand(), operand(compressed)), expected)


def test_asymmetric_inputs_cost_a_row_sum_of_the_weight() -> None:
    """By hand, with torch's product alone: y = s t (q·w − z Σ w)."""
    codes, compressed = coded("int8 token asym", activation()), stored("int4 row sym")
    side = operand(compressed)
    assert codes.zero_point is not None
    corrected = torch._int_mm(codes.codes, side.codes.T) - codes.zero_point * side.codes.sum(1)
    torch.testing.assert_close(
        linear(codes.operand(), side), corrected * codes.scale * side.scale.T, rtol=1e-6, atol=1e-7
    )


def test_asymmetric_weights_cost_a_row_sum_of_the_input() -> None:
    codes, side = coded("int8 token", activation()), operand(stored("int4 row asym"))
    assert side.zero_point is not None
    corrected = torch._int_mm(codes.codes, side.codes.T) - codes.codes.sum(1, keepdim=True) * side.zero_point.T
    torch.testing.assert_close(
        linear(codes.operand(), side), corrected * codes.scale * side.scale.T, rtol=1e-6, atol=1e-7
    )


def test_progressive_weights_are_one_int8_product() -> None:
    """Groups are gone once four bits are widened: one sum over all inputs, one scale a row."""
    codes, compressed = coded("int8 token", activation()), stored("int4 g32 progressive")
    (part,) = compressed.parts
    assert isinstance(part.format, Progressive)
    whole = part.format.widened(part.tensors, compressed.shape)
    expected = torch._int_mm(codes.codes, whole.T).float() * codes.scale * part.tensors["scale"].float().T
    assert torch.equal(linear(codes.operand(), operand(compressed)), expected)
    assert operand(compressed).scale.shape == (OUT, 1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (16, 64, 24), (17, 8, 8), (0, 8, 8), (33, 130, 9)])
def test_products_of_any_shape(shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-128, 128, (n, inputs), dtype=torch.int8, generator=generator) for n in (rows, outputs))
    assert torch.equal(product(x, w).long(), x.long() @ w.long().T)
    padded = integer._padded(x, max(17, rows)), integer._padded(w, outputs)
    assert all(side.shape[0] % 8 == 0 and side.shape[1] % 8 == 0 for side in padded)
    assert len(padded[0]) > 16
    assert torch.equal(torch._int_mm(padded[0], padded[1].T)[:rows, :outputs].long(), x.long() @ w.long().T)


def test_the_longest_sum_fits_and_a_longer_one_is_refused() -> None:
    worst = torch.full((1, LONGEST), -128, dtype=torch.int8)
    assert int(product(worst, worst)) == LONGEST * 128**2 < 2**31
    longer = torch.full((1, LONGEST + 1), -128, dtype=torch.int8)
    with pytest.raises(InvalidFormat, match="int32"):
        product(longer, longer)


def test_corrections_may_leave_int32() -> None:
    """(127 + 128)² · n is beyond int32 for these n; what is left is exact all the same."""
    n = 40_000
    side = Operand(
        torch.full((1, n), 127, dtype=torch.int8), torch.ones(1, 1), torch.full((1, 1), -128, dtype=torch.int8)
    )
    assert float(linear(side, side)) == float(torch.tensor(255**2 * n, dtype=torch.float32))


def test_a_scale_for_every_channel_leaves_no_sum() -> None:
    format = parse("int8 channel")
    x = activation()
    codes = Static(format, *format.ends(x.amin(0).clamp(max=0), x.amax(0).clamp(min=0))).codes(x)
    with pytest.raises(InvalidFormat, match="no sum of whole numbers"):
        linear(codes.operand(), operand(stored("int8 row sym")))


def test_sides_that_do_not_match_are_refused() -> None:
    codes = coded("int8 token", activation())
    with pytest.raises(InvalidFormat, match="float8"):
        linear(codes.operand(), operand(stored("fp8 e4m3 row")))
    with pytest.raises(InvalidFormat, match="on both sides"):
        linear(codes.operand(), Operand(torch.zeros(3, 8, dtype=torch.int8), torch.ones(3, 1)))
    with pytest.raises(InvalidFormat, match="5 scales for 8"):
        Operand(torch.zeros(3, 8, dtype=torch.int8), torch.ones(3, 5))
    with pytest.raises(InvalidFormat, match="product of e2m1"):
        operand(stored("fp4 e2m1 g32"))


def test_exponents_are_not_multiplied() -> None:
    codes = Dynamic(parse("log2 3bit token")).codes(activation().abs())
    with pytest.raises(InvalidFormat, match="product of codes"):
        codes.operand()


def test_six_bits_as_planes_of_one_bit() -> None:
    """FlexQ's product: Σ ± 2^(i+j) popcount(plane i of x and plane j of w), the top plane of either counting −32."""
    codes, side = coded("int6 token", activation()), operand(stored("int6 g96 sym"))
    values = (1, 2, 4, 8, 16, -32)
    planes = [[(one.long() >> bit) & 1 for bit in range(6)] for one in (codes.codes, side.codes)]
    total = sum(a * b * (x @ w.T) for a, x in zip(values, planes[0], strict=True)
                for b, w in zip(values, planes[1], strict=True))  # fmt: skip
    assert isinstance(total, torch.Tensor)
    assert torch.equal(total, product(codes.codes, side.codes).long())


@pytest.mark.parametrize("element", ["e4m3", "e5m2"])
@pytest.mark.parametrize("over", ["token", "tensor", "g32"])
@pytest.mark.parametrize("sharing", ["row", "g32"])
def test_fp8_is_torch_casts_and_products_in_float32(element: str, over: str, sharing: str) -> None:
    x, compressed = activation(), stored(f"fp8 {element} {sharing} float32")
    codes = coded(f"fp8 {element} {over}", x)
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[element]
    assert codes.codes.dtype == dtype
    largest = torch.finfo(dtype).max
    scale = codes.scale.repeat_interleave(IN // codes.scale.shape[-1], -1)
    assert torch.equal(codes.codes.float(), (x / scale).clamp(-largest, largest).to(dtype).float())
    (part,) = compressed.parts
    assert isinstance(part.format, Minifloat)
    simulated = codes.values(torch.float64) @ compressed.dequantize().double().T
    found = linear(codes.operand(), operand(compressed))
    size = codes.values(torch.float64).abs() @ compressed.dequantize().double().T.abs()
    assert float(((found - simulated) / size).abs().max()) < 1e-5  # float32 sums of 96
    if (over, sharing) == ("token", "row"):
        raw = codes.codes.float() @ operand(compressed).codes.float().T
        assert torch.equal(found, raw * codes.scale * part.tensors["scale"].T)


def test_the_simulation_and_the_arithmetic_agree_in_any_basis_of_width() -> None:
    """Longer rows than any group, odd counts of tokens, batches of two dimensions."""
    x = torch.randn(2, 3, 160, generator=torch.Generator().manual_seed(5))
    codes = Dynamic(Integers(bits=8)).codes(x)
    weight = torch.randint(-8, 8, (40, 160), dtype=torch.int8, generator=torch.Generator().manual_seed(6))
    side = Operand(weight, torch.rand(40, 5, generator=torch.Generator().manual_seed(7)) + 0.1)
    found = linear(codes.operand(), side).reshape(2, 3, 40)
    simulated = codes.values(torch.float64) @ side.values(torch.float64).T
    torch.testing.assert_close(found.double(), simulated, rtol=1e-5, atol=1e-5)
