"""Which model this is, however it is stored: what the ledger of openings knows a reference by."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from pennyweight.network.network import Network
from pennyweight.numerics.hashing import of_value


def identity_of(network: Network) -> str:
    """Hash the values of a network's tensors as they are scored, in float32.

    Saving a model again changes its files and not what it computes: a blank line in config.json, other shards, a wider
    dtype, a tied tensor stored twice, a buffer that nobody reads. None of these makes another model here. So a text
    that was opened for a reference stays opened for it. Settings in config.json do not count at all: that two models of
    the same weights share a ledger costs error level and never gives any away.

    Args:
        network: every tensor that it reads is read once.

    Returns:
        The hash; that of the file for a program whose weights cannot be read one by one.
    """
    source = network.source
    wanted = {network.stored_name(name) for name in network.outer}
    wanted |= {network.stored_name(name) for block in network.blocks for name in block.parameters}
    if not wanted or not wanted <= set(source.tensors):  # parameters made of several tensors: all that is stored counts
        wanted = set(source.tensors)
    # a set, and no names: neither a second copy of a tensor nor a prefix of all names makes another model
    values = {_of_tensor(source.read(name)) for name in sorted(wanted)}
    return of_value(["values", *sorted(values)]) if values else source.fingerprint


def _of_tensor(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{list(tensor.shape)} {flat.dtype} ".encode())
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
