"""What becomes of tensors that are not compressed: their type, their bytes, and which of them are one tensor."""

from __future__ import annotations

import torch

from pennyweight.errors import InvalidModel
from pennyweight.export.safetensors_stream import Entry
from pennyweight.formats.dense import DTYPES
from pennyweight.network.network import Network
from pennyweight.network.sources.source import TensorInfo


def dense_dtype(info: TensorInfo, dtype: str) -> str:
    """Name the type a tensor has when it is not compressed: its own, unless that is wider than `dtype` or codes."""
    known = getattr(torch, info.dtype, None)
    if not isinstance(known, torch.dtype):  # `q4_1`, `int4 g32 sym`: the source dequantizes it to float32
        return dtype
    return dtype if known.is_floating_point and known.itemsize > DTYPES[dtype].itemsize else info.dtype


def dense_bytes(info: TensorInfo, dtype: str) -> int:
    """Bytes a tensor takes when it is not compressed."""
    return Entry(info.name, dense_dtype(info, dtype), info.shape).bytes


def tied_to(name: str, network: Network) -> str | None:
    """Find the stored tensor that this one merely repeats, if any."""
    for names in network.tied:
        if name in names:
            kept = next(n for n in names if n in network.source.tensors)
            return kept if kept != name else None
    return None


def check_equal(name: str, kept: str, network: Network) -> None:
    """Refuse two tensors that differ although they should be one.

    Raises:
        InvalidModel: names the first of them.
    """
    if not torch.equal(network.source.read(name), network.source.read(kept)):
        raise InvalidModel(
            f"differs from {kept}, although config.json says they are one tensor",
            expected="equal tensors, or tie_word_embeddings: false",
            mend="set tie_word_embeddings to false in config.json, if both are meant to be used",
            site=name,
        )
