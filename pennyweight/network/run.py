"""Run a network on a small input, in float64 and with unrounded weights: what proofs compare.

A causal language model is run block by block, so that a large one fits; anything else is run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pennyweight.network.inputs import example
from pennyweight.network.network import Network
from pennyweight.network.trace import skeleton
from pennyweight.numerics.double import Float64, to_double


def outputs(network: Network, inputs: Mapping[str, Any] | None = None, *, exact: bool = True) -> Tensor:
    """Every float that the network returns for these inputs, one after the other, in float64.

    Args:
        network: whatever its source is.
        inputs: keyword arguments of its forward; made up by default.
        exact: whether rewritten weights are used before they are rounded to the type they are stored in.
    """
    with materialised(network, exact=exact) as model, torch.no_grad(), Float64():
        given = inputs or network.inputs or example(model)
        result = model(**{name: to_double(value) for name, value in given.items()})
    leaves = tree_leaves(dict(result) if isinstance(result, Mapping) else result)
    return torch.cat([t.double().flatten() for t in leaves if isinstance(t, Tensor) and t.is_floating_point()])


def change(before: Tensor, after: Tensor) -> float:
    """Relative change of all outputs together: the length of the difference over that of the first."""
    return float((after - before).norm() / before.norm().clamp(min=1e-300))


@contextmanager
def materialised(network: Network, *, exact: bool = True, dtype: torch.dtype = torch.float64) -> Iterator[nn.Module]:
    """The whole module with the network's weights in memory, to call as usual."""
    model = skeleton(network.source)
    read: Callable[[str], Tensor] = network.source.read
    if exact and hasattr(network.source, "exact"):
        read = network.source.exact
    values: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in values:
                stored = network.stored_name(f"{path}.{name}" if path else name)
                value = read(stored)
                values[id(parameter)] = nn.Parameter(
                    value.to(dtype) if value.is_floating_point() else value, requires_grad=False
                )  # fmt: skip
            module._parameters[name] = values[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.to(dtype)
    yield model
