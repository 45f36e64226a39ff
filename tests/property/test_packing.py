import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pennyweight.numerics.packing import pack_int32, unpack_int32, words_of


@given(
    bits=st.integers(1, 8), rows=st.integers(1, 5), columns=st.integers(1, 130), seed=st.integers(0, 2**32 - 1)
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_unpacking_undoes_packing(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8, generator=generator)
    packed = pack_int32(codes, bits)
    assert packed.shape == (rows, words_of(columns, bits))
    assert torch.equal(unpack_int32(packed, bits, columns), codes)
    permutation = torch.randperm(rows, generator=generator)
    assert torch.equal(pack_int32(codes[permutation], bits), packed[permutation])


@given(bits=st.integers(1, 8), columns=st.integers(1, 130))
@settings(max_examples=60, deadline=None)
def test_largest_codes_fill_exactly_the_bits_they_need(bits: int, columns: int) -> None:
    codes = torch.full((1, columns), (1 << bits) - 1, dtype=torch.uint8)
    words = pack_int32(codes, bits)[0].tolist()
    assert sum((word & 0xFFFFFFFF).bit_count() for word in words) == bits * columns
