"""How many numbers a language model keeps of tokens it has read: found by running its code without numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pennyweight.errors import InvalidModel
from pennyweight.network.finding.trace import skeleton
from pennyweight.network.network import Network


def cached(network: Network, context: int) -> int:
    """Numbers of keys, values and states after so many tokens; layers that look back a little way keep less.

    Args:
        network: a causal language model.
        context: tokens.

    Raises:
        InvalidModel: its code does not run without numbers.
    """
    model = skeleton(network.source).to("meta")
    try:
        with torch.no_grad():
            ids = torch.zeros(1, context, dtype=torch.long, device="meta")
            kept = model(input_ids=ids, use_cache=True).past_key_values
    except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
        raise InvalidModel(
            f"what it keeps of tokens cannot be counted: {str(error).splitlines()[0] if str(error) else error!r}",
            expected="a causal language model whose code runs on the meta device", mend="leave --memory out",
            site=str(network.source.path),
        ) from error  # fmt: skip
    return sum(tensor.numel() for tensor in _tensors(kept, set()))


def _tensors(value: Any, seen: set[int]) -> list[Tensor]:
    """Every tensor inside of lists, dictionaries and caches, once; single numbers are settings."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, Tensor):
        return [value] if value.dim() else []
    if isinstance(value, list | tuple):
        inside = list(value)
    elif isinstance(value, dict):
        inside = list(value.values())
    elif type(value).__module__.startswith("transformers.cache_utils"):
        inside = list(vars(value).values())
    else:
        return []
    return [tensor for one in inside for tensor in _tensors(one, seen)]
