"""What a compressed-tensors checkpoint will hold of a site, decided before a byte is written.

The sizes are exact, so the planner can promise them.
"""

from __future__ import annotations

from collections.abc import Mapping

from pennyweight.errors import InvalidFormat
from pennyweight.export.checkpoint import check_site
from pennyweight.export.compressed_tensors.activations import arguments
from pennyweight.export.compressed_tensors.schemes import Scheme, scheme_of
from pennyweight.export.safetensors_stream import Entry
from pennyweight.formats import Dense, Format
from pennyweight.formats.dense import DTYPES
from pennyweight.formats.passing import Activations, Passing
from pennyweight.network.network import Network


def stored_bytes(shape: tuple[int, int], format: Format, dtype: str, reads: Passing | None = None) -> int:
    """Bytes a site takes in the files' data sections, padding included.

    Args:
        shape: `[out, in]`.
        format: of the weight.
        dtype: of the model.
        reads: what the layer reads is rounded to; None where it is not.

    Raises:
        InvalidFormat: the format does not fit the shape, or its scales are not in `dtype`.
    """
    if isinstance(format, Dense):
        return format.stored_bits(shape) // 8
    entries = _scheme("weight", shape, format, dtype, reads).entries("weight", shape)
    beside = 0
    if reads is not None and not reads.over.dynamic:
        beside = Entry("", dtype, (1,)).bytes + (
            0 if getattr(reads, "symmetric", True) else Entry("", "int8", (1,)).bytes
        )
    return sum(entry.bytes for entry in entries) + beside


def check(network: Network, formats: Mapping[str, Format], dtype: str, activations: Activations | None = None) -> None:
    """Refuse formats that this file format cannot hold.

    Raises:
        InvalidFormat: names the site.
    """
    Dense(dtype=dtype)
    rounds = activations or Activations()
    for name, format in formats.items():
        reads = rounds.inputs[name].format if name in rounds.inputs else None
        _scheme(name, check_site(name, network).shape, format, dtype, reads)
    formats_of = {name: rounds.format for name, rounds in rounds.inputs.items()}
    formats_of |= {name: both.keys.format for name, both in rounds.caches.items()}
    for name, passing in formats_of.items():
        if arguments(passing) is None or (name in rounds.inputs and name not in formats):
            raise InvalidFormat(
                f"{passing.label()} cannot be written to compressed-tensors files here",
                expected="int8 or fp8 e4m3, a token, group or tensor, of a layer that is compressed as well",
                mend="choose another rounding", site=name,
            )  # fmt: skip


def _scheme(name: str, shape: tuple[int, int], format: Format, dtype: str, reads: Passing | None = None) -> Scheme:
    scheme = scheme_of(format, reads)
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
