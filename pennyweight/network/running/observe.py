"""Look at the activations of a network that runs with its weights: what every weight reads and what it writes.

The same functions that `watch` cuts out are watched here, so an activation has the same name in both: `site:input` and
`site:output`. Stacked experts and other bare tensors need no module to hang a hook on; norms do, for what they write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pennyweight.network.finding.norms import norm_of
from pennyweight.network.finding.watch import (
    ADDED,
    CONVOLUTIONS,
    GROUPED,
    LINEAR,
    PRODUCTS,
    TABLES,
    TRANSPOSED,
    transparent,
)
from pennyweight.numerics.linear import ONEDNN

LAYERS = LINEAR | ({torch.ops.mkldnn._linear_pointwise} if ONEDNN else set())
ROWS = 256  # of an activation that are kept as they are, spread over the first passes
PASS = 32  # of one pass
GOLDEN = (5**0.5 - 1) / 2


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
            self.rows.append(x[spread(len(x), held)][: ROWS - held])
        self.count += len(x)


def spread(count: int, before: int) -> Tensor:
    """Places of some of `count` rows, going on from those `before`.

    Multiples of the golden ratio have no period. Even strides have one, and where it is that of the batch, of every
    picture the same corner is seen, and of every text the first token.
    """
    if count <= PASS:
        return torch.arange(count)
    share = torch.arange(before, before + PASS, dtype=torch.float64) * GOLDEN % 1
    return (share * count).long()


class Observing(TorchFunctionMode):
    """A context in which every weighted activation is counted.

    Args:
        parameters: the weights that are in memory, by name.
        model: the module tree they belong to.
        gram: whether to keep second moments of what is read.
    """

    def __init__(self, parameters: Mapping[str, Tensor], model: nn.Module, *, gram: bool = False) -> None:
        super().__init__()
        self.seen: dict[str, Seen] = {}
        self._gram = gram
        self._norms = [norm for norm in _norms(model) if norm[0] in parameters]
        self._entered = ExitStack()
        held = [(name, p) for name, p in parameters.items() if p.numel()]
        self._names = {p.untyped_storage().data_ptr(): name for name, p in reversed(held)}
        self._heads = {p.untyped_storage().data_ptr(): name for name, p in held}  # a tied table's other name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = written = func(*args, **kwargs)
        if func in LAYERS or func in CONVOLUTIONS or func in TRANSPOSED:
            x, weight = (args[i] if len(args) > i else kwargs[n] for i, n in enumerate(("input", "weight")))
        elif func in PRODUCTS or func in GROUPED:
            x, weight = args[0], args[1]
            if func in PRODUCTS and self._holds(x) and not self._holds(weight) and weight.dim() > 1:
                x, weight, written = weight.mT, x, result.mT  # W X: channels stand one above the other
        elif func in ADDED:  # their names differ, and their places do not
            x, weight = (*args, *(kwargs[n] for n in ("batch1", "mat1", "batch2", "mat2") if n in kwargs))[1:3]
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
                    site = self._heads[weight.untyped_storage().data_ptr()].removesuffix(".weight")
                self._count(f"{site}:output", written, axis, False)
        return result

    def _holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._names

    def __enter__(self) -> Any:
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # one fused function would hide the weights inside it
        self._entered.callback(torch.backends.mha.set_fastpath_enabled, fast)
        self._entered.enter_context(transparent())
        for gain, module, axis in self._norms:
            hook = partial(self._normed, f"{gain.removesuffix('.weight')}:output", axis)
            self._entered.callback(module.register_forward_hook(hook).remove)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> Any:
        self._entered.close()
        return super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _normed(self, name: str, axis: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self._count(name, output, axis, False)

    def _count(self, name: str, x: Tensor, axis: int, gram: bool) -> None:
        rows = x.detach().movedim(axis, -1).reshape(-1, x.shape[axis]).float()
        if name not in self.seen:
            self.seen[name] = Seen(rows.shape[-1], gram=gram)
        if rows.shape[-1] == len(self.seen[name].low):  # another part of a tensor that is used in parts is left out
            self.seen[name].add(rows)


def _norms(model: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Every norm with a gain: its name, the module, and where channels are in what it writes."""
    for name, module in model.named_modules():
        norm = norm_of(module)
        if norm is not None and norm.gain is not None:
            yield (f"{name}.{norm.gain}" if name else norm.gain), module, norm.axis
