"""GGUF block types: the bytes of a file, read by the gguf package bit for bit, and no larger an error than its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from reference import k_quants
from reference.layers import heavy_weight

from pennyweight import formats
from pennyweight.errors import InvalidFormat
from pennyweight.formats.gguf import KQuant, Legacy, TernaryBlocks

SHAPE = (24, 256)
EVERY = (*Legacy.types(), *KQuant.types(), *TernaryBlocks.types())
SEARCHED = (*KQuant.types(), "iq4_nl")  # by llama.cpp alone; the package quantizes all others
AT_MOST = {"q2_k": 0.95, "q3_k": 0.997, "iq4_xs": 0.971, "q4_k": 0.97, "q5_k": 0.9, "q6_k": 0.948, "iq4_nl": 0.983}
every = pytest.mark.parametrize("name", EVERY)
every_plain = pytest.mark.parametrize("name", [name for name in EVERY if name not in SEARCHED])
every_searched = pytest.mark.parametrize("name", SEARCHED)
every_k = pytest.mark.parametrize("name", KQuant.types())


def weight(heavy: bool) -> torch.Tensor:
    return (
        heavy_weight(*SHAPE, 3) if heavy else torch.from_numpy(np.random.default_rng(3).standard_normal(SHAPE)).float()
    )


def random_bytes(name: str) -> torch.Tensor:
    """Any bits at all, but finite float16 numbers where the type has some."""
    format = formats.parse(name)
    random = np.random.default_rng(11)
    data = torch.from_numpy(random.integers(0, 256, format.stored_bits(SHAPE) // 8, dtype=np.uint8))
    if name in TernaryBlocks.types():  # whose codes are no arbitrary bits
        trits, scale = random.integers(0, 3, SHAPE), random.standard_normal((SHAPE[0], 1))
        return format.pack({"codes": torch.from_numpy(trits).byte(), "scale": torch.from_numpy(scale).half()}, SHAPE)
    fields = format.unpack(data, SHAPE)
    for key, tensor in fields.items():
        if tensor.dtype == torch.float16:
            fields[key] = torch.where(tensor.isfinite(), tensor, torch.tensor(-0.5).half())
    return format.pack(fields, SHAPE)


def theirs(data: torch.Tensor, name: str) -> torch.Tensor:
    rows = data.numpy().reshape(SHAPE[0], -1)
    return torch.from_numpy(quants.dequantize(rows, GGMLQuantizationType[name.upper()]))


def unusual() -> torch.Tensor:
    """Rows of zeros, of one weight, of one number, of one sign, tiny, with an outlier, with blocks far apart."""
    w = heavy_weight(*SHAPE, 1)
    w[0] = 0
    w[1, 1:] = 0
    w[2] = 0.25
    w[3], w[4] = w[3].abs(), -w[4].abs()
    w[5], w[6], w[7] = w[5] * 1e-4, w[6] * 1e-6, w[7] * 1e-9
    w[8, 77], w[9, 99] = 300.0, -3000.0
    w[10, :32], w[11, 32:] = 0, w[11, 32:] * 1e-5
    return w


@every
@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_gguf_package_reads_what_we_wrote(name: str, search: bool, weighted: bool) -> None:
    importance = torch.from_numpy(np.random.default_rng(4).lognormal(0.0, 2.0, SHAPE[1])).float()
    importance[40:80] = 0
    format, w = formats.parse(name), unusual()
    part = format.store(w, search=search, importance=importance if weighted else None)
    data = format.pack(part.tensors, SHAPE)
    back = format.decode(part.tensors, SHAPE)
    assert 8 * len(data) == format.stored_bits(SHAPE)
    assert torch.equal(theirs(data, name).view(torch.int32), back.view(torch.int32))
    assert all(torch.equal(tensor, part.tensors[key]) for key, tensor in format.unpack(data, SHAPE).items())
    assert torch.equal(back[0], torch.zeros(SHAPE[1]))


@every
def test_importance_of_any_size_is_the_same_importance(name: str) -> None:
    """Powers of two, so that nothing is rounded in another way."""
    w, importance = heavy_weight(*SHAPE, 5), torch.from_numpy(np.random.default_rng(5).lognormal(0.0, 1.0, 256)).float()
    format = formats.parse(name)
    backs = [format.store(w, importance=importance * 2.0**power).tensors for power in (0, -60, 60)]
    assert all(torch.equal(other[key], backs[0][key]) for other in backs[1:] for key in other)


@every_k
def test_blocks_too_small_for_whole_numbers_are_not_lost(name: str) -> None:
    """With all of a scale's whole numbers in use, the float16 number beside them would be zero."""
    w = heavy_weight(*SHAPE, 6)
    w = w * (1e-5 / w.abs().amax(-1, keepdim=True))
    format = formats.parse(name)
    error = format.decode(format.store(w).tensors, SHAPE) - w
    assert float(error.square().sum() / w.square().sum()) < 0.25


@every_plain
def test_we_read_what_the_gguf_package_wrote(name: str) -> None:
    format = formats.parse(name)
    rows = quants.quantize(heavy_weight(*SHAPE, 2).numpy(), GGMLQuantizationType[name.upper()])
    data = torch.from_numpy(np.ascontiguousarray(rows)).flatten()
    fields = format.unpack(data, SHAPE)
    assert torch.equal(format.decode(fields, SHAPE), theirs(data, name))
    assert torch.equal(format.pack(fields, SHAPE), data)


@every_plain
@pytest.mark.parametrize("heavy", [True, False])
def test_the_search_loses_less_than_the_package(name: str, heavy: bool) -> None:
    w = weight(heavy)
    format = formats.parse(name)
    plain = torch.from_numpy(np.ascontiguousarray(quants.quantize(w.numpy(), GGMLQuantizationType[name.upper()])))
    ours = format.decode(format.store(w).tensors, SHAPE)
    lost = [float((x - w).square().sum()) for x in (ours, theirs(plain.flatten(), name))]
    assert lost[0] < lost[1] * {"q8_0": 0.999, "tq1_0": 0.45, "tq2_0": 0.45}.get(name, 0.95)


@every_plain
def test_the_plain_rule_is_theirs(name: str) -> None:
    """Up to ties and the scale's last bit: they round with the scale before it is stored, we with the one after."""
    w = heavy_weight(*SHAPE, 4)
    format = formats.parse(name)
    plain = torch.from_numpy(np.ascontiguousarray(quants.quantize(w.numpy(), GGMLQuantizationType[name.upper()])))
    fields = format.unpack(plain.flatten(), SHAPE)
    assert torch.equal(fields["scale"], format.store(w, search=False).tensors["scale"])


def test_rows_that_are_no_multiple_of_a_block() -> None:
    with pytest.raises(InvalidFormat, match="48 inputs do not split into blocks of 32"):
        formats.parse("q4_0").store(torch.zeros(2, 48))


@every_k
def test_k_types_ask_for_256_inputs_and_name_what_fits(name: str) -> None:
    with pytest.raises(InvalidFormat, match=f"576 inputs do not split into blocks of 256.*\n.*{name}.*\n.*q4_0"):
        formats.parse(name).store(torch.zeros(2, 576))
    with pytest.raises(InvalidFormat, match="no GGUF block type fits"):
        formats.parse(name).store(torch.zeros(2, 40))


@every
def test_any_bytes_are_read_as_the_package_reads_them(name: str) -> None:
    """Signs of zero too: the same bits."""
    format, data = formats.parse(name), random_bytes(name)
    fields = format.unpack(data, SHAPE)
    assert torch.equal(format.decode(fields, SHAPE).view(torch.int32), theirs(data, name).view(torch.int32))
    assert torch.equal(format.pack(fields, SHAPE), data)


@every_searched
@pytest.mark.parametrize("heavy", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_search_loses_less_than_the_published_one(name: str, heavy: bool, weighted: bool) -> None:
    w = weight(heavy) / 50  # the size of a model's weights, where the float16 number of a block has few bits
    importance = torch.from_numpy(np.random.default_rng(4).lognormal(0.0, 1.0, SHAPE[1])).float()
    importance = importance if weighted else torch.ones(SHAPE[1])
    ours = formats.parse(name)
    back = ours.decode(ours.store(w, importance=importance).tensors, SHAPE).double()
    twin = torch.from_numpy(k_quants.quantized(w.double().numpy(), importance.double().numpy(), name))
    lost = [((x - w).square() * importance).reshape(SHAPE[0], -1).sum(1) for x in (back, twin)]
    assert float(lost[0].sum()) < float(lost[1].sum()) * AT_MOST[name]
    assert (lost[0] < 1.1 * lost[1]).all()  # nor is a single block much worse


def test_sub_scales_are_where_llama_cpp_puts_them() -> None:
    """Sub-block 5 of Q4_K: lower nibbles in byte 9, upper two bits at the top of bytes 1 (scale) and 5 (minimum)."""
    format, shape = formats.parse("q4_k"), (1, 256)
    fields = {field.name: torch.zeros(field.shape, dtype=field.dtype) for field in format.fields(shape)}
    fields["sub_scale"][0, 5], fields["sub_minimum"][0, 5] = 0b10_0011, 0b01_0110
    data = format.pack(fields, shape)
    assert data.nonzero().flatten().tolist() == [4 + 1, 4 + 5, 4 + 9]
    assert data[[5, 9, 13]].tolist() == [0b1000_0000, 0b0100_0000, 0b0110_0011]


def test_the_scale_of_ternary_blocks_is_the_best_there_is() -> None:
    """Every threshold is tried, in float64; the search is off by the scale's rounding to float16 alone."""
    w, importance = heavy_weight(4, 256, 7), torch.from_numpy(np.random.default_rng(7).lognormal(0.0, 1.0, 256)).float()
    format = formats.parse("tq2_0")
    back = format.decode(format.store(w, importance=importance).tensors, (4, 256)).double()
    for row, found in zip(w.double(), back, strict=True):
        best = np.inf
        for threshold in row.abs():
            kept = row.abs() >= threshold
            scale = (importance * row.abs())[kept].sum() / importance[kept].sum()
            best = min(best, float((importance * (row - scale * row.sign() * kept).square()).sum()))
        assert float((importance * (row - found).square()).sum()) <= best * (1 + 1e-5)


def test_trits_are_where_llama_cpp_puts_them() -> None:
    """TQ1_0: weight 35 is the second digit of byte 3, 160 the first of byte 32, 255 the last of byte 51."""
    format, shape = formats.parse("tq1_0"), (1, 256)
    codes = torch.zeros(shape, dtype=torch.uint8)
    codes[0, 35], codes[0, 160], codes[0, 255] = 1, 2, 1
    data = format.pack({"codes": codes, "scale": torch.zeros(1, 1).half()}, shape)
    assert data.nonzero().flatten().tolist() == [3, 32, 51]
    assert data[[3, 32, 51]].tolist() == [-(-27 * 256 // 243), -(-162 * 256 // 243), -(-3 * 256 // 243)]


def test_a_fourth_code_of_ternary_blocks_is_refused() -> None:
    with pytest.raises(InvalidFormat, match="a code of tq2_0 is 3"):
        formats.parse("tq2_0").unpack(torch.full((66,), 0xFF, dtype=torch.uint8), (1, 256))


@every
def test_weights_beyond_float16_are_refused(name: str) -> None:
    with pytest.raises(InvalidFormat, match="overflows float16"):
        formats.parse(name).store(torch.full(SHAPE, 1e12))
