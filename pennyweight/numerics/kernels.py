"""PyTorch's CPU kernels for packed codes: what they are asked for, and where they are left.

Source: aten/src/ATen/native/cpu/int4mm_kernel.cpp and int8mm_kernel.cpp of PyTorch 2.13, run here. What their
documentation does not say (`benchmarks/results/linear_kernels.json`, one core with AVX-512 and AMX):

- Both take bfloat16, float16 and float32, and are quick in bfloat16 alone: there they read a 4096 x 4096 weight for one
  token in a third of the time of a dense product. In float32 they are loops without vectors, 2 to 15 times slower
  than dense for one token, and more for many. So they are asked in bfloat16 only; in float32 codes become numbers at
  every call.
- Every further token costs them as much again. From some number of tokens on (`FOUR_UNTIL`, `EIGHT_UNTIL`), codes
  become numbers a few rows at a time, and the usual product takes over.
- The four-bit kernel takes outputs in sixteens and groups of 32, 64, 128 or 256. The eight-bit one gives wrong numbers
  or crashes in bfloat16 where inputs are no multiple of 16, without a word; nothing of that kind is given to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FOUR_UNTIL, EIGHT_UNTIL = 128, 24  # tokens from which on the usual product on decoded numbers is the quicker one
CHUNK = 1 << 19  # weights decoded at once: float32 numbers that stay in the cache


def quick(x: Tensor, until: int) -> bool:
    """Whether a kernel is the quicker way for these tokens."""
    return x.dtype == torch.bfloat16 and len(x) < until


def op(name: str) -> Any:
    """One of PyTorch's operators by name; those for packed codes have no public one."""
    return getattr(torch.ops.aten, name)
