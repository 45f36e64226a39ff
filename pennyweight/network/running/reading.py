"""What every weight multiplies, as rows of the matrix that `Site.matrix` shows: the inputs its gram matrix is made of.

The functions that `watch` cuts out are watched here while a module runs with its weights; nothing is known of modules.
A kernel reads patches: its inputs are unfolded, for any number of dimensions, strides, dilations and groups. An expert
reads the tokens that were sent to it, whichever way the stack is multiplied: one by one, gathered, or grouped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from pennyweight.network.finding.watch import ADDED, CONVOLUTIONS, GROUPED, LINEAR, PRODUCTS, TRANSPOSED, transparent

FORWARD = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
BACKWARD = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
ROWS = 4096  # of one call that are looked at, evenly spread: a kernel reads thousands of patches of one picture

# Called with the name of a tensor, rows `[parts, n, in]`, and the number of the part that read them, None for all.
See = Callable[[str, Float[Tensor, "parts n in"], int | None], None]


@dataclass(frozen=True, eq=False)
class Taken:
    """Which rows of a product a part read.

    Args:
        total: rows of the product, in the order of its result.
        which: these; None for all of them.
    """

    total: int
    which: Tensor | slice | None = None


@contextmanager
def reading(parameters: Mapping[str, Tensor], see: See) -> Iterator[Reading]:
    """Call `see` with what every weight multiplies while the block runs.

    Args:
        parameters: the weights, by name.
        see: told the name of the tensor, the rows, and the part of a stack or of a grouped kernel that read them.

    Yields:
        The mode: say in `given` what the network is fed, and find in `first` the tensors that read it themselves,
        in `order` all that ran.
    """
    with plain_attention(), transparent(), Reading(parameters, see) as mode:
        yield mode


@contextmanager
def plain_attention() -> Iterator[None]:
    """Without the one fused function that would hide the weights inside it."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Reading(TorchFunctionMode):
    """See `reading`.

    Args:
        parameters: the weights, by name.
        see: told of every product.
    """

    def __init__(self, parameters: Mapping[str, Tensor], see: See) -> None:
        super().__init__()
        self.given: Sequence[Tensor] = ()
        self.first: set[str] = set()
        self.order: dict[str, None] = {}  # names as they multiplied first
        self._see, self._parameters = see, parameters
        self._names = {_place(p): name for name, p in reversed(list(parameters.items())) if p.numel()}
        self._picked: dict[int, tuple[str, Tensor, Tensor]] = {}  # by storage: tensor, numbers, and what was gathered

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in LINEAR:
            self._product(_of(args, kwargs, 0, "input"), _of(args, kwargs, 1, "weight"))
        elif func in ADDED:
            names = ("batch1", "batch2") if "batch1" in kwargs or "batch2" in kwargs else ("mat1", "mat2")
            self._product(_of(args, kwargs, 1, names[0]), _of(args, kwargs, 2, names[1]))
        elif func in PRODUCTS:
            x, weight = args[0], _of(args, kwargs, 1, "other")
            if self._holds(x) and not self._holds(weight):
                x, weight = weight.mT if weight.dim() > 1 else weight, x
            self._product(x, weight)
        elif func in CONVOLUTIONS:
            self._kernel({n: _of(args, kwargs, i, n) for i, n in enumerate(FORWARD)}, CONVOLUTIONS[func])
        elif func in TRANSPOSED:
            self._kernel({n: _of(args, kwargs, i, n) for i, n in enumerate(BACKWARD)}, TRANSPOSED[func])
        elif func in GROUPED or getattr(func, "__name__", "").startswith("grouped_mm_fallback"):
            self._grouped(args[0], _of(args, kwargs, 1, "mat2"), _of(args, kwargs, 2, "offs"))
        elif func is torch.Tensor.__getitem__ and isinstance(result, Tensor) and isinstance(args[1], Tensor):
            self._note_gathered(args[0], args[1], result)
        return result

    def flush(self) -> None:
        """End a pass: here nothing waits."""

    def _holds(self, value: Any) -> bool:
        return isinstance(value, Tensor) and (_place(value) in self._names or _place(value) in self._picked)

    def _product(self, x: Any, weight: Any) -> None:
        """Rows of x; the last dimension of x meets the weight."""
        if not self._holds(weight) or not isinstance(x, Tensor) or x.dim() == 0:
            return
        if _place(weight) in self._picked:
            name, index, _ = self._picked[_place(weight)]
            rows = x.reshape(len(index), -1, x.shape[-1])
            for part in sorted({*index.tolist()}):
                own = index == part
                taken = Taken(rows.shape[0] * rows.shape[1], own.repeat_interleave(rows.shape[1]))
                self._tell(name, rows[own].flatten(0, 1)[None], part, taken)
            return
        name = self._names[_place(weight)]
        stack = self._parameters[name]
        if stack.dim() < 3:
            self._note_first(name, x)
            self._tell(name, x.reshape(1, -1, x.shape[-1]), None, Taken(x[..., 0].numel()))
        elif weight.dim() < 3:  # one matrix of a stack
            part = weight.storage_offset() // stack[0].numel()
            self._tell(name, x.reshape(1, -1, x.shape[-1]), part, Taken(x[..., 0].numel()))
        elif weight.shape[0] == stack.shape[0]:
            x = x.expand(*x.shape[:-3], len(stack), *x.shape[-2:]) if x.dim() > 2 else x.expand(len(stack), *x.shape)
            alone = x.dim() == 3  # otherwise rows stand in another order than those of the result
            rows = x.movedim(-3, 0).reshape(len(stack), -1, x.shape[-1])
            self._tell(name, rows, None, Taken(x[..., 0].numel()) if alone else None)

    def _grouped(self, x: Tensor, weight: Any, ends: Tensor | None) -> None:
        if not self._holds(weight):
            return
        if ends is None or x.dim() != 2:
            self._product(x, weight)
            return
        start = 0
        for part, end in enumerate(ends.tolist()):
            taken = Taken(len(x), slice(start, end))
            self._tell(self._names[_place(weight)], x[start:end][None], part, taken)
            start = end

    def _kernel(self, call: dict[str, Any], dims: int) -> None:
        weight, x = call["weight"], call["input"]
        if not self._holds(weight):
            return
        name, groups = self._names[_place(weight)], int(call["groups"] or 1)
        self._note_first(name, x)
        batched = x.detach() if x.dim() == dims + 2 else x.detach()[None]
        if "output_padding" in call:
            rows = transposed_patches(
                batched, weight.shape[2:], _each(call["stride"], dims, 1), _each(call["padding"], dims, 0),
                _each(call["output_padding"], dims, 0), _each(call["dilation"], dims, 1),
            )  # fmt: skip
            if groups > 1:  # a row of the matrix holds the kernels of all groups, and each output reads one of them
                own = torch.eye(groups).repeat_interleave(rows.shape[1] // groups, 1)
                rows = (rows[:, None] * own[None, :, :, None]).flatten(0, 1)
            self._tell(name, rows.flatten(1)[None], None)
            return
        rows = patches(
            batched, weight.shape[2:], _each(call["stride"], dims, 1), _padding(call, dims),
            _each(call["dilation"], dims, 1),
        )  # fmt: skip
        split = rows.reshape(len(rows), groups, -1, rows.shape[-1])
        self._tell(name, split.flatten(2).transpose(0, 1), None)

    def _note_gathered(self, stack: Any, index: Tensor, result: Tensor) -> None:
        place = _place(stack) if isinstance(stack, Tensor) else 0
        if place in self._names and stack.dim() > 2 and index.dim() == 1 and not index.is_floating_point():
            self._picked[_place(result)] = (self._names[place], index, result)

    def _note_first(self, name: str, x: Tensor) -> None:
        if any(_place(x) == _place(tensor) for tensor in self.given):
            self.first.add(name)

    def _tell(self, name: str, rows: Tensor, part: int | None, taken: Taken | None = None) -> None:  # noqa: ARG002
        self._see(name, self._some(name, rows), part)

    def _some(self, name: str, rows: Tensor) -> Tensor:
        self.order.setdefault(name)
        return rows.detach()[:, :: step_of(rows)].float()


def step_of(rows: Float[Tensor, "parts n in"]) -> int:
    """Every how manieth row is looked at."""
    return -(-max(1, rows.shape[1]) // ROWS)


def patches(
    x: Tensor, kernel: tuple[int, ...], stride: list[int], padding: list[tuple[int, int]], dilation: list[int]
) -> Float[Tensor, "positions channels taps"]:
    """What a kernel reads at every position, taps in the order in which the kernel is stored.

    Args:
        x: `[batch, channels, *sizes]`.
        kernel: its size along each dimension.
        stride: of each dimension.
        padding: before and after each dimension; negative to crop.
        dilation: of each dimension.
    """
    dims = len(kernel)
    x = F.pad(x, [side for pair in reversed(padding) for side in pair])
    for d in range(dims):  # the dimension is replaced by two: positions, and taps at the end
        axis = 2 + d
        last = x.shape[axis] - dilation[d] * (kernel[d] - 1)
        index = torch.arange(0, last, stride[d])[:, None] + dilation[d] * torch.arange(kernel[d])
        taken = x.index_select(axis, index.flatten().to(x.device))
        x = taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]).movedim(axis + 1, -1)
    return x.movedim(1, 1 + dims).flatten(0, dims).flatten(2)


def transposed_patches(
    x: Tensor, kernel: tuple[int, ...], stride: list[int], padding: list[int], extra: list[int], dilation: list[int]
) -> Float[Tensor, "positions channels taps"]:
    """What makes each output of a transposed convolution, as `patches`: zeros between the inputs, the kernel reversed.

    Args:
        x: `[batch, channels, *sizes]`.
        kernel: its size along each dimension.
        stride: of each dimension.
        padding: of each dimension.
        extra: output padding of each dimension.
        dilation: of each dimension.
    """
    sides = []
    for d, size in enumerate(kernel):
        axis = 2 + d
        spread = x.new_zeros(*x.shape[:axis], (x.shape[axis] - 1) * stride[d] + 1, *x.shape[axis + 1 :])
        spread[(slice(None),) * axis + (slice(None, None, stride[d]),)] = x
        x = spread
        around = dilation[d] * (size - 1) - padding[d]
        sides.append((around, around + extra[d]))
    return patches(x, kernel, [1] * len(kernel), sides, dilation).flip(-1)


def _padding(call: dict[str, Any], dims: int) -> list[tuple[int, int]]:
    """Padding before and after each dimension; `same` puts the odd one behind."""
    given = call["padding"]
    if given == "valid":
        given = 0
    if given == "same":
        widths = _each(call["dilation"], dims, 1)
        total = [width * (size - 1) for width, size in zip(widths, call["weight"].shape[2:], strict=True)]
        return [(n // 2, n - n // 2) for n in total]
    return [(n, n) for n in _each(given, dims, 0)]


def _each(value: Any, dims: int, default: int) -> list[int]:
    if value is None:
        return [default] * dims
    if isinstance(value, int):
        return [value] * dims
    return [*value] * (dims if len(value) == 1 else 1)


def _of(args: Any, kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
