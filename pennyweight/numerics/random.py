"""Random streams: one seed, and a generator for every purpose, independent of order, threads and resuming."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray


def derived_seed(seed: int | str, *names: str) -> int:
    """A 63-bit seed from a seed and the names of what it is for."""
    text = "\x1f".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int | str, *names: str) -> torch.Generator:
    """A CPU generator for one purpose, such as `stream(seed, site.name, method.name)`."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))


def permutation(count: int, seed: int | str, *names: str) -> NDArray[np.int64]:
    """A uniform random order of `count` things."""
    return np.random.Generator(np.random.PCG64(derived_seed(seed, *names))).permutation(count)
