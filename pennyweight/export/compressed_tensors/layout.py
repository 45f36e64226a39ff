"""What a compressed-tensors checkpoint will hold of a site, decided before a byte is written.

The sizes are exact, so the planner can promise them.
"""

from __future__ import annotations

from collections.abc import Mapping

from pennyweight.errors import InvalidFormat
from pennyweight.export.checkpoint import check_site
from pennyweight.export.compressed_tensors.schemes import Scheme, scheme_of
from pennyweight.formats import Dense, Format
from pennyweight.formats.dense import DTYPES
from pennyweight.network.network import Network


def stored_bytes(shape: tuple[int, int], format: Format, dtype: str) -> int:
    """Bytes a site takes in the files' data sections, padding included.

    Raises:
        InvalidFormat: the format does not fit the shape, or its scales are not in `dtype`.
    """
    if isinstance(format, Dense):
        return format.stored_bits(shape) // 8
    return sum(entry.bytes for entry in _scheme("weight", shape, format, dtype).entries("weight", shape))


def check(network: Network, formats: Mapping[str, Format], dtype: str) -> None:
    """Refuse formats that this file format cannot hold.

    Raises:
        InvalidFormat: names the site.
    """
    Dense(dtype=dtype)
    for name, format in formats.items():
        _scheme(name, check_site(name, network).shape, format, dtype)


def _scheme(name: str, shape: tuple[int, int], format: Format, dtype: str) -> Scheme:
    scheme = scheme_of(format)
    if scheme is None:
        raise InvalidFormat(
            f"{format.label()} cannot be written to compressed-tensors files",
            expected="grids such as int4 g64 sym, FP8, MXFP4, MXFP8 or NVFP4",
            mend="choose another step, or another engine", site=name,
        )  # fmt: skip
    scales = getattr(format, "scale_dtype", dtype)
    if scales in DTYPES and scales != dtype:
        raise InvalidFormat(
            f"scales in {scales} in a model in {dtype}",
            expected=f"scales in the type of the model, {dtype}",
            mend=f"set scale_dtype={dtype!r} before the weights are rounded",
            site=name,
        )
    try:
        format.stored_bits(shape)
    except InvalidFormat as error:
        error.site = name
        raise
    return scheme
