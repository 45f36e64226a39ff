"""Watch one forward pass in which every weight is cut out: what each tensor writes, what each reads, what lies between.

The model's own code runs once on a few tokens. Wherever it multiplies by a weight (a linear layer, a convolution, a
table of embeddings, experts stacked in one tensor, whatever module or function does it) the product is not computed: the
activation that came in is noted as a *reader*, and random numbers of the right shape go on as a *writer*. Norms are cut
the same way. What is left between writers and readers holds no weights, costs nothing at any size of model, and can be
run again with other numbers: that is how `symmetry` finds out what passes through it. No architecture is named here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pennyweight.errors import InvalidModel
from pennyweight.network.norms import Norm, norm_of
from pennyweight.numerics.double import CASTS, to_double, widened
from pennyweight.numerics.random import stream

Change = Callable[[Tensor], Tensor]

LINEAR = {torch._C._nn.linear, F.linear}
PRODUCTS = {
    torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm,
}  # fmt: skip
ADDED = {torch.addmm, torch.Tensor.addmm, torch.baddbmm, torch.Tensor.baddbmm}
GROUPED = {f for f in (getattr(torch, "_grouped_mm", None), getattr(F, "grouped_mm", None)) if f is not None}
CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3, F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
TRANSPOSED = {
    torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3, F.conv_transpose1d: 1,
    F.conv_transpose2d: 2, F.conv_transpose3d: 3,
}  # fmt: skip
TABLES = {F.embedding, torch.embedding}


@dataclass(frozen=True)
class Port:
    """One side of a stored tensor: the dimension along which it meets an activation.

    Args:
        parameter: its name.
        dim: the dimension that carries the channels.
        kind: `weight`, `bias`, `gain` (of a norm) or `vector` (added or multiplied as it is).
        channels: which indices along that dimension, in the order of the activation; None for all.
        offset: the stored value is the one used minus this (a gain stored as w and used as 1 + w).
        groups: of a convolution that keeps groups of channels apart.
    """

    parameter: str
    dim: int
    kind: str = "weight"
    channels: tuple[int, ...] | None = None
    offset: float = 0.0
    groups: int = 1


@dataclass(eq=False)
class Writer:
    """An activation as a weight, a norm or a bare parameter makes it: a leaf of the graph that follows."""

    name: str
    tensor: Tensor
    axis: int
    ports: tuple[Port, ...]
    kind: str  # weight, norm, vector
    used: list[frozenset[int]] = field(default_factory=list)  # channels that some operation took by themselves

    @property
    def size(self) -> int:
        """Number of channels."""
        return int(self.tensor.shape[self.axis])


@dataclass(eq=False)
class Reader:
    """An activation as a weight or a norm takes it, or as the network returns it."""

    name: str
    tensor: Tensor
    axis: int
    ports: tuple[Port, ...]
    kind: str  # weight, norm, output
    norm: Norm | None = None

    @property
    def size(self) -> int:
        """Number of channels."""
        return int(self.tensor.shape[self.axis])


@dataclass(frozen=True)
class Cut:
    """One multiplication by a weight: the name of the site, its tensor, and how that lies in storage.

    Args:
        name: of the module that owns the weight, or of the tensor where it is not called `weight`.
        parameter: the tensor.
        role: `linear`, `embedding` or `conv`.
        out_dim: dimension of the outputs in storage.
        in_dim: dimension of the inputs.
        reader: name of what it reads.
        writer: name of what it writes.
        groups: of a convolution.
    """

    name: str
    parameter: str
    role: str
    out_dim: int
    in_dim: int
    reader: str
    writer: str
    groups: int = 1


@dataclass(eq=False)
class Watched:
    """What one pass showed, in the order it happened."""

    writers: dict[str, Writer] = field(default_factory=dict)
    readers: dict[str, Reader] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    norms: dict[str, Norm] = field(default_factory=dict)


@contextmanager
def emptied(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """The model with float64 parameters that take up addresses and no memory; its own are put back afterwards."""
    before: list[tuple[nn.Module, str, nn.Parameter]] = []
    buffers: list[tuple[nn.Module, str, Tensor]] = []
    made: dict[int, nn.Parameter] = {}
    named: dict[str, nn.Parameter] = {}
    try:
        for path, module in model.named_modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is None:
                    continue
                before.append((module, name, parameter))
                if id(parameter) not in made:
                    dtype = torch.float64 if parameter.is_floating_point() else parameter.dtype
                    # Pages that nobody touches are never there; a vector is cheap and soon needed.
                    empty = torch.empty(parameter.shape, dtype=dtype)
                    made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.is_floating_point())
                module._parameters[name] = made[id(parameter)]
                named[f"{path}.{name}" if path else name] = made[id(parameter)]
            for name, buffer in list(module._buffers.items()):
                if buffer is not None and buffer.is_floating_point() and buffer.device.type != "meta":
                    buffers.append((module, name, buffer))
                    module._buffers[name] = buffer.double()
        yield named
    finally:
        for module, name, parameter in before:
            module._parameters[name] = parameter
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


def watch(
    model: nn.Module, inputs: Mapping[str, Any], *, changes: Mapping[str, Change] | None = None, grad: bool = True
) -> Watched:
    """Run the model once on these inputs with every weight cut out.

    Args:
        model: its parameters may be on the meta device; they are not looked at.
        inputs: keyword arguments of its forward; floats are used in float64.
        changes: by the name of a writer, what to do with the numbers it would write.
        grad: whether the tensors of readers can be differentiated with respect to those of writers.

    Raises:
        InvalidModel: its code cannot be followed.
    """
    with emptied(model) as parameters:
        mode = _Watching(model, parameters, changes or {})
        with _norms_cut(model, mode), torch.set_grad_enabled(grad), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with mode:
                    output = model(**{name: to_double(value) for name, value in inputs.items()})
            except (RuntimeError, TypeError, NotImplementedError, ValueError, IndexError, AttributeError) as error:
                raise InvalidModel(
                    f"the forward pass of {type(model).__name__} cannot be followed: {str(error).splitlines()[0]}",
                    expected="a forward pass that runs on these inputs and whose course depends on shapes only",
                    mend="pass example inputs of the kind this network takes; until then it cannot be compressed",
                    site=mode.where,
                ) from error
    for index, tensor in enumerate(_tensors(output)):
        if tensor.is_floating_point() and tensor.dim() > 0:
            mode.found.readers[f"output {index}"] = Reader(f"output {index}", tensor, -1, (), "output")
    return mode.found


def _tensors(value: Any) -> list[Tensor]:
    value = dict(value) if isinstance(value, Mapping) else value
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


@contextmanager
def _norms_cut(model: nn.Module, mode: _Watching) -> Iterator[None]:
    """Let every norm of the model report what it reads, and answer with a fresh writer."""
    cut: list[nn.Module] = []
    for name, module in model.named_modules():
        norm = norm_of(module)
        if norm is not None and "forward" not in module.__dict__:
            module.forward = mode.norm_forward(name, module, norm)  # type: ignore[method-assign]
            cut.append(module)
    try:
        yield
    finally:
        for module in cut:
            del module.forward


class _Watching(TorchFunctionMode):
    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], changes: Mapping[str, Change]) -> None:
        super().__init__()
        self.found, self.where = Watched(), type(model).__name__
        self._changes = changes
        self._parameters: dict[int, tuple[str, nn.Parameter]] = {}
        for name, parameter in parameters.items():
            if parameter.numel():
                self._parameters.setdefault(parameter.untyped_storage().data_ptr(), (name, parameter))
        self._leaves: dict[int, Writer] = {}  # by storage
        self._bare: set[str] = set()
        self._readers: dict[int, tuple[str, Tensor]] = {}  # by identity: sites that read one tensor share an edge
        self._counts: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = widened(args, kwargs or {})
        func = CASTS.get(func, func)
        cut = self._cut(func, args, kwargs)
        if cut is not None:
            return cut
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        for tensor in tensors:
            self._fill(tensor)
        result = func(*args, **kwargs)
        self._note_use(tensors, result)
        return result

    # A weight: the product is not computed

    def _cut(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        axis, groups, dims, x, weight, bias = -1, 1, (0, 1), None, None, None
        if func in LINEAR or func in TABLES:
            x, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
            bias = _argument(args, kwargs, 2, "bias") if func in LINEAR else None
            if func is torch.embedding:
                x, weight = weight, x
            dims = (1, 0) if func in TABLES else (0, 1)
        elif func in CONVOLUTIONS or func in TRANSPOSED:
            x, weight, bias = (_argument(args, kwargs, i, n) for i, n in enumerate(("input", "weight", "bias")))
            groups = _argument(args, kwargs, 6 if func in CONVOLUTIONS else 6, "groups") or 1
            axis, dims = 1, ((0, 1) if func in CONVOLUTIONS else (1, 0))
        elif func in PRODUCTS or func in GROUPED:
            x, weight, dims = args[0], args[1], (-1, -2)
        elif func in ADDED:
            bias, x, weight, dims = args[0], args[1], args[2], (-1, -2)
        if not isinstance(weight, Tensor) or not isinstance(x, Tensor) or self._stored(weight) is None:
            return None
        name, parameter = self._stored(weight)  # type: ignore[misc]
        if parameter.dim() < 2 or name in self._bare or self._stored(x) is not None:
            return None
        out_port = _port(name, parameter, weight, dims[0], groups)
        in_port = _port(name, parameter, weight, dims[1], groups)
        if out_port is None or in_port is None:
            return None
        if axis == 1:
            meta = [a.to("meta") if isinstance(a, Tensor) else a for a in args]
            shape = tuple(func(*meta, **{k: v.to("meta") if isinstance(v, Tensor) else v for k, v in kwargs.items()}).shape)
        else:
            shape = (*(x.shape if func in TABLES else x.shape[:-1]), weight.shape[dims[0]])
        ports = [out_port]
        if isinstance(bias, Tensor) and (stored := self._stored(bias)) is not None:
            held = _port(*stored, bias, -1, 1)
            ports += [Port(held.parameter, held.dim, "bias", held.channels)] if held else []
        site = name.removesuffix(".weight")
        table = func in TABLES
        reader = "" if table else self._read(site, x, axis, (in_port,), "weight")
        writer = self._write(site, shape, axis, tuple(ports), "weight")
        role = "embedding" if table else "conv" if axis == 1 else "linear"
        self.found.cuts.append(
            Cut(site, name, role, out_port.dim, in_port.dim, reader, writer.name, groups)
        )  # fmt: skip
        return writer.tensor

    def norm_forward(self, name: str, module: nn.Module, norm: Norm) -> Callable[..., Any]:
        """What a norm does instead: report, and answer with a writer."""
        original = type(module).forward

        def forward(x: Tensor, *rest: Any, **kwargs: Any) -> Any:
            if any(isinstance(a, Tensor) for a in (*rest, *kwargs.values())) or x.shape[norm.axis] != norm.size:
                return original(module, x, *rest, **kwargs)
            ports = []
            for own, kind in ((norm.gain, "gain"), (norm.bias, "bias")):
                if own is not None:
                    path = f"{name}.{own}" if name else own
                    ports.append(Port(path, 0, kind, offset=norm.offset if kind == "gain" else 0.0))
            self.found.norms[name] = norm
            self._read(name, x, norm.axis, tuple(ports), "norm", norm)
            return self._write(name, tuple(x.shape), norm.axis, tuple(ports), "norm").tensor

        return forward

    def _read(
        self, site: str, x: Tensor, axis: int, ports: tuple[Port, ...], kind: str, norm: Norm | None = None
    ) -> str:  # fmt: skip
        known = self._readers.get(id(x))
        name = self._numbered(f"{site}:input")
        self.found.readers[name] = Reader(name, x, axis, ports, kind, norm)
        if known is None:
            self._readers[id(x)] = (name, x)
        return known[0] if known is not None else name

    def _write(self, site: str, shape: tuple[int, ...], axis: int, ports: tuple[Port, ...], kind: str) -> Writer:
        name = self._numbered(f"{site}:output")
        values = torch.randn(shape, generator=stream(0, name), dtype=torch.float64)
        change = self._changes.get(name)
        tensor = (change(values) if change else values).contiguous().requires_grad_(torch.is_grad_enabled())
        writer = Writer(name, tensor, axis, ports, kind)
        self.found.writers[name] = writer
        self._leaves[tensor.untyped_storage().data_ptr()] = writer
        self._readers.pop(id(tensor), None)
        return writer

    def _numbered(self, name: str) -> str:
        count = self._counts[name] = self._counts.get(name, -1) + 1
        return f"{name}#{count}" if count else name

    # A parameter that is used as it is

    def _stored(self, tensor: Tensor) -> tuple[str, nn.Parameter] | None:
        return self._parameters.get(tensor.untyped_storage().data_ptr()) if tensor.device.type == "cpu" else None

    def _fill(self, tensor: Tensor) -> None:
        """Give a parameter that enters the arithmetic by itself random values, and call it a writer."""
        stored = self._stored(tensor)
        if stored is None or stored[0] in self._bare or not tensor.is_floating_point():
            return
        name, parameter = stored
        self._bare.add(name)
        values = torch.randn(parameter.shape, generator=stream(0, name), dtype=torch.float64)
        change = self._changes.get(f"{name}:value")
        with torch.no_grad():
            parameter.data.copy_(change(values) if change else values)
        port = Port(name, parameter.dim() - 1, "vector")
        writer = Writer(f"{name}:value", parameter, -1, (port,), "vector")
        self.found.writers[writer.name] = writer
        self._leaves[parameter.untyped_storage().data_ptr()] = writer

    def _note_use(self, tensors: list[Tensor], result: Any) -> None:
        """Which channels of a writer an operation took by themselves (a third of a fused q, k, v, say)."""
        made = {t.untyped_storage().data_ptr() for t in tree_leaves(result) if _is_real(t)}
        if not made:
            return
        for tensor in tensors:
            if _is_real(tensor) and (place := tensor.untyped_storage().data_ptr()) not in made:
                writer = self._leaves.get(place)
                if writer is not None and tensor.numel() and writer.tensor.dim():
                    with suppress(RuntimeError):
                        writer.used.append(_channels(tensor, writer.tensor, writer.axis))


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str) -> Any:
    return args[index] if len(args) > index else kwargs.get(name)


def _port(name: str, parameter: Tensor, view: Tensor, dim: int, groups: int) -> Port | None:
    """Which dimension of a parameter a dimension of a view of it is, and which part of it; None if it is neither."""
    dim %= view.dim()
    if view.dim() == 1 and parameter.dim() == 1:
        stride, size = view.stride(0), view.shape[0]
        if stride != 1:
            return None
    else:
        stride, size = view.stride(dim), view.shape[dim]
    fits = [d for d in range(parameter.dim()) if parameter.stride(d) == stride and parameter.shape[d] >= size]
    if not fits:
        return None
    home = next((d for d in fits if parameter.shape[d] == size), fits[0])
    start = (view.storage_offset() // stride) % parameter.shape[home] if parameter.shape[home] != size else 0
    channels = None if parameter.shape[home] == size else tuple(range(start, start + size))
    return Port(name, home, "weight", channels, groups=groups)


def _channels(view: Tensor, base: Tensor, axis: int) -> frozenset[int]:
    """The channels of `base` that a view of it holds."""
    step, count = base.stride(axis), base.shape[axis]
    offsets = torch.tensor([view.storage_offset()])
    for size, stride in zip(view.shape, view.stride(), strict=True):
        if stride % (step * count):  # other dimensions move between tokens, not between channels
            offsets = (offsets[:, None] + torch.arange(size) * stride).flatten().unique()
    return frozenset(((offsets // step) % count).tolist())
