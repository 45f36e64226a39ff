"""Look at the activations of a network that runs with its weights: what every weight reads and what it writes.

The same functions that `watch` cuts out are watched here, so an activation has the same name in both: `site:input` and
`site:output`. Stacked experts and other bare tensors need no module to hang a hook on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pennyweight.network.watch import ADDED, CONVOLUTIONS, GROUPED, LINEAR, PRODUCTS, TABLES, TRANSPOSED
from pennyweight.numerics.linear import ONEDNN

LAYERS = LINEAR | ({torch.ops.mkldnn._linear_pointwise} if ONEDNN else set())
ROWS = 256  # of an activation that are kept as they are, evenly spread over the first passes


class Seen:
    """Running moments of one activation, channels last.

    Args:
        size: channels.
        gram: whether the mean of x xᵀ is kept, `size²` numbers.
    """

    def __init__(self, size: int, *, gram: bool) -> None:
        self.count = 0
        self.low, self.high = torch.full((size,), torch.inf), torch.full((size,), -torch.inf)
        self.sum = torch.zeros(size, dtype=torch.float64)
        self.gram = torch.zeros(size, size) if gram else None
        self.rows: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Count the rows of `[n, size]`."""
        if not len(x):
            return
        self.low, self.high = torch.minimum(self.low, x.amin(0)), torch.maximum(self.high, x.amax(0))
        self.sum += x.sum(0, dtype=torch.float64)
        if self.gram is not None:
            self.gram += x.T @ x
        held = sum(map(len, self.rows))
        if held < ROWS:
            self.rows.append(x[:: max(1, len(x) // 32)][: ROWS - held].clone())
        self.count += len(x)


class Observing(TorchFunctionMode):
    """A context in which every weighted activation is counted.

    Args:
        parameters: the weights that are in memory, by name.
        gram: whether to keep second moments of what is read.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, gram: bool = False) -> None:
        super().__init__()
        self.seen: dict[str, Seen] = {}
        self._gram = gram
        held = [(name, p) for name, p in parameters.items() if p.numel()]
        self._names = {p.untyped_storage().data_ptr(): name for name, p in reversed(held)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in LAYERS or func in CONVOLUTIONS or func in TRANSPOSED:
            x, weight = (args[i] if len(args) > i else kwargs[n] for i, n in enumerate(("input", "weight")))
        elif func in PRODUCTS or func in GROUPED:
            x, weight = args[0], args[1]
        elif func in ADDED:
            x, weight = args[1], args[2]
        elif func in TABLES:
            x, weight = None, args[1] if func is not torch.embedding else args[0]
        else:
            return result
        if isinstance(weight, Tensor) and weight.dim() > 1:
            name = self._names.get(weight.untyped_storage().data_ptr())
            if name is not None:
                axis = 1 if func in CONVOLUTIONS or func in TRANSPOSED else -1
                site = name.removesuffix(".weight")
                if x is not None:
                    self._count(f"{site}:input", x, axis, self._gram)
                self._count(f"{site}:output", result, axis, False)
        return result

    def _count(self, name: str, x: Tensor, axis: int, gram: bool) -> None:
        rows = x.detach().movedim(axis, -1).reshape(-1, x.shape[axis]).float()
        if name not in self.seen:
            self.seen[name] = Seen(rows.shape[-1], gram=gram)
        self.seen[name].add(rows)
