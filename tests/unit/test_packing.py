import time
import warnings

import pytest
import torch

from pennyweight.errors import InvalidFormat
from pennyweight.numerics.packing import pack_int32, unpack_int32, words_of


def random_codes(rows: int, columns: int, bits: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + columns * 10 + bits)
    return torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8, generator=generator)


def slow_pack(row: list[int], bits: int) -> list[int]:
    """One big integer, cut into words: obvious, and shares nothing with the code under test."""
    stream = sum(code << (i * bits) for i, code in enumerate(row))
    words = [stream >> (32 * i) & 0xFFFFFFFF for i in range(-(-len(row) * bits // 32))]
    return [word - (1 << 32) if word >> 31 else word for word in words]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [1, 5, 31, 32, 33, 64, 100])
def test_words_are_those_of_the_obvious_reference(bits: int, columns: int) -> None:
    codes = random_codes(3, columns, bits)
    packed = pack_int32(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.is_contiguous()
    assert packed.tolist() == [slow_pack(row, bits) for row in codes.tolist()]
    assert torch.equal(unpack_int32(packed, bits, columns), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_bit_for_bit_as_compressed_tensors_packs(bits: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    for rows, columns in ((4, 96), (7, 50), (64, 3)):
        codes = random_codes(rows, columns, bits)
        signed = (codes.int() - (1 << (bits - 1))).to(torch.int8)
        assert torch.equal(pack_int32(codes, bits), helpers.pack_to_int32(signed, bits))
        assert torch.equal(pack_int32(codes.T, bits).T, helpers.pack_to_int32(signed, bits, packed_dim=0))
        back = helpers.unpack_from_int32(pack_int32(codes, bits), bits, torch.Size((rows, columns)))
        assert torch.equal(back, signed)


def test_an_unpacked_row_does_not_remember_bits_above_its_width() -> None:
    assert unpack_int32(torch.tensor([[-1]], dtype=torch.int32), 3, 10).tolist() == [[7] * 10]


def test_arguments_are_checked() -> None:
    codes = torch.full((1, 4), 8, dtype=torch.uint8)
    with pytest.raises(InvalidFormat, match="a code of 8 in 3 bits"):
        pack_int32(codes, 3)
    with pytest.raises(InvalidFormat, match="1 to 8"):
        pack_int32(codes, 9)
    with pytest.raises(InvalidFormat, match="12 words"):
        unpack_int32(torch.zeros(2, 13, dtype=torch.int32), 3, 128)  # the padded layout of compressed-tensors 0.17
    assert words_of(128, 3) == 12


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_vocabulary_is_packed_in_seconds_at_most(bits: int) -> None:
    codes = random_codes(49152, 576, bits)
    start = time.perf_counter()
    packed = pack_int32(codes, bits)
    assert time.perf_counter() - start < 5  # 0.1 to 0.3 s on an idle core; the margin is for a busy machine
    assert torch.equal(unpack_int32(packed, bits, 576), codes)
