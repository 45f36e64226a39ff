"""Codes of 2 to 8 bits in 32-bit words, without a bit between them: code i takes bits i·b to i·b+b−1 of its row.

Little end first, so that a row is one stream of bits, and a code may straddle two words. Eight codes of b bits fill b
bytes exactly, whatever b is (of six bits, four codes fill three bytes); so every width is packed in the same way, a
byte at a time, and nothing wider than a byte is ever held. Words are looked at as bytes, as on every machine torch is
built for: the low byte comes first.

This is the layout of compressed-tensors 0.18 and later. Until 0.17 it kept codes from straddling words, which is the
same for 2, 4 and 8 bits and different for all others.
"""

from __future__ import annotations

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor
from torch.nn.functional import pad

from pennyweight.errors import InvalidFormat

WIDTHS = range(1, 9)
TRITS = (1, 3, 9, 27, 81)


def words_of(columns: int, bits: int) -> int:
    """Words that a row of so many codes takes: ceil(columns · bits / 32)."""
    return -(-columns * bits // 32)


def pack_int32(codes: UInt8[Tensor, "rows columns"], bits: int) -> Int32[Tensor, "rows words"]:
    """Pack each row into `words_of(columns, bits)` words; the bits left over are zero.

    Raises:
        InvalidFormat: a code does not fit into `bits` bits, or `bits` is not 1 to 8.
    """
    _check_codes(codes, bits)
    rows, columns = codes.shape
    octets = -(-columns // 32) * 4  # eight codes each; whole words of every width
    grouped = pad(codes, (0, 8 * octets - columns)).reshape(rows, octets, 8)
    stream = torch.zeros(rows, octets, bits, dtype=torch.uint8, device=codes.device)
    for byte in range(bits):
        for code in range(8 * byte // bits, (8 * byte + 7) // bits + 1):  # the codes that touch this byte
            shift = code * bits - 8 * byte
            piece = grouped[..., code] << shift if shift >= 0 else grouped[..., code] >> -shift
            stream[..., byte].bitwise_or_(piece)  # what a shift pushes out of the byte is gone
    return stream.reshape(rows, octets * bits).view(torch.int32)[:, : words_of(columns, bits)].contiguous()


def unpack_int32(words: Int32[Tensor, "rows words"], bits: int, columns: int) -> UInt8[Tensor, "rows columns"]:
    """Restore the codes that `pack_int32` packed.

    Raises:
        InvalidFormat: a row of `columns` codes takes another number of words, or `bits` is not 1 to 8.
    """
    _check_width(bits)
    rows, count = words.shape
    if count != words_of(columns, bits):
        raise InvalidFormat(
            f"{count} words a row for {columns} codes of {bits} bits",
            expected=f"{words_of(columns, bits)} words, packed without gaps",
        )
    octets = -(-columns // 32) * 4
    stream = pad(words.contiguous(), (0, octets * bits // 4 - count)).view(torch.uint8).reshape(rows, octets, bits)
    codes = torch.empty(rows, octets, 8, dtype=torch.uint8, device=words.device)
    for code in range(8):
        byte, shift = divmod(code * bits, 8)
        value = stream[..., byte] >> shift
        if shift + bits > 8:
            value |= stream[..., byte + 1] << (8 - shift)
        codes[..., code] = value & ((1 << bits) - 1)
    return codes.reshape(rows, 8 * octets)[:, :columns].contiguous()


def packed_size(count: int, levels: int) -> int:
    """Bytes that `pack_codes` takes."""
    return -(-count // 5) if levels == 3 else -(-count * (levels - 1).bit_length() // 8)


def pack_codes(codes: UInt8[Tensor, " count"], levels: int) -> UInt8[Tensor, " bytes"]:
    """One stream of codes without a bit between them, filled up to a byte; three levels go five to a byte, base 3.

    Raises:
        InvalidFormat: a code is not below `levels`, or `levels` is not 2 to 256.
    """
    if not 2 <= levels <= 256:
        raise InvalidFormat(f"codes of {levels} levels", expected="2 to 256 levels")
    if codes.numel() and int(codes.max()) >= levels:
        raise InvalidFormat(f"a code of {int(codes.max())} in {levels} levels", expected=f"codes below {levels}")
    if levels == 3:
        digits = pad(codes, (0, -len(codes) % 5)).reshape(-1, 5)
        return (digits * torch.tensor(TRITS, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
    words = pack_int32(codes[None], (levels - 1).bit_length())
    return words.view(torch.uint8).flatten()[: packed_size(len(codes), levels)].clone()


def unpack_codes(data: UInt8[Tensor, " bytes"], levels: int, count: int) -> UInt8[Tensor, " count"]:
    """Restore the codes that `pack_codes` packed.

    Raises:
        InvalidFormat: so many codes take another number of bytes.
    """
    if len(data) != packed_size(count, levels):
        raise InvalidFormat(
            f"{len(data)} bytes for {count} codes of {levels} levels", expected=f"{packed_size(count, levels)} bytes"
        )
    if levels == 3:
        return torch.stack([data // power % 3 for power in TRITS], 1).flatten()[:count]
    bits = (levels - 1).bit_length()
    words = pad(data, (0, -len(data) % 4)).view(torch.int32)
    return unpack_int32(words[None, : words_of(count, bits)], bits, count)[0]


def to_planes(codes: UInt8[Tensor, "rows columns"], bits: int) -> UInt8[Tensor, "bits rows bytes"]:
    """One bit a plane, lowest first; in a plane the bits of a row are one stream, eight columns a byte, low bit first.

    A product of codes is then a sum over pairs of planes of 2^(i + j) · popcount(a_i & b_j). For signed codes stored
    with 2^(bits − 1) added, flip the top bit first: that is two's complement, whose top plane counts −2^(bits − 1).

    Raises:
        InvalidFormat: a code does not fit into `bits` bits, or `bits` is not 1 to 8.
    """
    _check_codes(codes, bits)
    size = -(-codes.shape[1] // 8)
    planes = [pack_int32(codes >> bit & 1, 1).view(torch.uint8)[:, :size] for bit in range(bits)]
    return torch.stack(planes)


def from_planes(planes: UInt8[Tensor, "bits rows bytes"], columns: int) -> UInt8[Tensor, "rows columns"]:
    """Restore the codes that `to_planes` spread.

    Raises:
        InvalidFormat: so many columns take another number of bytes, or there are not 1 to 8 planes.
    """
    bits, rows, size = planes.shape
    _check_width(bits)
    if size != -(-columns // 8):
        raise InvalidFormat(f"{size} bytes a row for {columns} bits", expected=f"{-(-columns // 8)} bytes")
    codes = torch.zeros(rows, columns, dtype=torch.uint8, device=planes.device)
    for bit in range(bits):
        words = pad(planes[bit], (0, -size % 4)).view(torch.int32)
        codes |= unpack_int32(words, 1, columns) << bit
    return codes


def _check_codes(codes: Tensor, bits: int) -> None:
    _check_width(bits)
    if codes.numel() and int(codes.max()) >> bits:
        raise InvalidFormat(f"a code of {int(codes.max())} in {bits} bits", expected=f"codes below {1 << bits}")


def _check_width(bits: int) -> None:
    if bits not in WIDTHS:
        raise InvalidFormat(f"codes of {bits} bits", expected="1 to 8 bits")
