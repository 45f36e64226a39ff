"""Watch one forward pass in which every weight is cut out: what each tensor writes, what each reads, what lies between.

The model's own code runs once on a few tokens. Wherever it multiplies by a weight (a linear layer, a convolution, a
table of embeddings, experts stacked in one tensor, whatever module or function does it) the product is not computed:
the activation that came in is noted as a *reader*, and random numbers of the right shape go on as a *writer*. Norms are
cut the same way. What is left between writers and readers holds no weights, costs nothing at any size of model, and can
be run again with other numbers: that is how `symmetry` finds out what passes through it. No architecture is named here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pennyweight.errors import InvalidModel
from pennyweight.network.finding.norms import Norm, norm_of
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
COPIES = {
    torch.Tensor.contiguous, torch.Tensor.clone, torch.clone, torch.Tensor.reshape, torch.reshape, torch.flatten,
    torch.Tensor.flatten, torch.Tensor.to, torch.Tensor.double, torch.Tensor.type_as, torch.roll, torch.index_select,
    torch.Tensor.__getitem__, torch.Tensor.index_select, torch.repeat_interleave, torch.Tensor.repeat_interleave,
}  # fmt: skip
VIEWS = {
    "view", "view_as", "reshape", "flatten", "unflatten", "transpose", "t", "permute", "movedim", "swapaxes",
    "unsqueeze", "squeeze", "expand", "expand_as", "chunk", "split", "narrow", "select", "unbind", "detach",
    "contiguous", "to", "double", "type", "type_as", "alias", "tensor_split", "split_with_sizes", "adjoint", "swapdims",
    "moveaxis", "__getitem__",
}  # fmt: skip
QUESTIONS = {
    "__get__", "size", "dim", "numel", "stride", "is_contiguous", "is_floating_point", "is_complex", "get_device",
    "data_ptr", "element_size", "ndimension", "nelement", "storage_offset", "untyped_storage", "__len__",
    "requires_grad_",
}  # fmt: skip
SHAPED = {
    "new_empty", "new_zeros", "new_ones", "new_full", "new_tensor", "empty_like", "zeros_like", "ones_like",
    "full_like", "randn_like", "rand_like",
}  # fmt: skip
CHOICES = {"topk", "sort", "argsort", "argmax", "argmin", "multinomial"}
OVERWRITES = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"}
INSIDE = ("hidden_state", "past_key", "attention", "cache", "router")  # what a model returns about itself


@dataclass(frozen=True)
class Port:
    """One side of a stored tensor: the dimension along which it meets an activation.

    Args:
        parameter: its name.
        dim: the dimension that carries the channels.
        kind: `weight`, `bias`, `gain` (of a norm), `vector` (added or multiplied as it is) or `buffer` (statistics of a
            norm, which can only change places).
        channels: which indices along that dimension, in the order of the activation; None for all.
        offset: the stored value is the one used minus this (a gain stored as w and used as 1 + w).
        groups: of a convolution that keeps groups of channels apart; along dimension 1 it stores one group's length.
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
    bare: set[str] = field(default_factory=set)  # parameters that entered the arithmetic as they are
    choices: list[Tensor] = field(default_factory=list)  # what a choice was made by (of experts, say): all or nothing


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
                if buffer is not None and buffer.device.type != "meta":
                    buffers.append((module, name, buffer))
                    stored = name not in module._non_persistent_buffers_set
                    module._buffers[name] = _general(f"{path}.{name}", buffer) if stored else _cloned(buffer)
        yield named
    finally:
        for module, name, parameter in before:
            module._parameters[name] = parameter
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


def _cloned(buffer: Tensor) -> Tensor:
    return buffer.double() if buffer.is_floating_point() else buffer.clone()


def _general(name: str, buffer: Tensor) -> Tensor:
    """A buffer in float64; one that a checkpoint may fill and that is all zeros or ones as yet gets other values."""
    copied = _cloned(buffer)
    if (
        copied.dtype == torch.float64
        and copied.dim()
        and copied.numel()
        and bool((copied == copied.flatten()[0]).all())
    ):
        copied += torch.rand(copied.shape, generator=stream(0, name), dtype=copied.dtype) / 8
    return copied


@contextmanager
def transparent() -> Iterator[None]:
    """Python functions of torch show what they are made of: no mode is asked about them, only about what they call."""
    names = [name for name in vars(F) if name.startswith("has_torch_function")]
    before = {name: getattr(F, name) for name in names}
    try:
        for name in names:
            setattr(F, name, lambda *_: False)
        yield
    finally:
        for name, function in before.items():
            setattr(F, name, function)


def returned(output: Any) -> dict[str, Tensor]:
    """What a network returns and has to go on returning: floats, without states it reports about its inside.

    A dictionary's own tensors count, those of dictionaries inside it do not; hidden states, attentions and caches only
    count where nothing else is returned, or where they come first.
    """
    if isinstance(output, Mapping):
        own = {str(k): v for k, v in output.items() if isinstance(v, Tensor)}
        first = next(iter(own), "")
        chosen = {k: v for k, v in own.items() if not any(part in k for part in INSIDE)}
        if any(part in first for part in INSIDE):
            chosen = {first: own[first], **chosen}
        found = chosen or own
    else:
        found = {str(i): leaf for i, leaf in enumerate(tree_leaves(output)) if isinstance(leaf, Tensor)}
    return {k: v for k, v in found.items() if v.is_floating_point() and v.dim() > 0}


def watch(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    changes: Mapping[str, Change] | None = None,
    grad: bool = True,
    like: Watched | None = None,
) -> Watched:
    """Run the model once on these inputs with every weight cut out.

    Args:
        model: its parameters may be on the meta device; they are not looked at.
        inputs: keyword arguments of its forward; floats are used in float64.
        changes: by the name of a writer, what to do with the numbers it would write.
        grad: whether the tensors of readers can be differentiated with respect to those of writers.
        like: an earlier pass, whose numbers are taken instead of being drawn again; they are the same.

    Raises:
        InvalidModel: its code cannot be followed.
    """
    with emptied(model) as parameters:
        mode = _Watching(model, parameters, changes or {}, like)
        with _norms_cut(model, mode), transparent(), torch.set_grad_enabled(grad), warnings.catch_warnings():
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
    for name, tensor in returned(output).items():
        mode.found.readers[f"output {name}"] = Reader(f"output {name}", tensor, -1, (), "output")
    return mode.found


@contextmanager
def _norms_cut(model: nn.Module, mode: _Watching) -> Iterator[None]:
    """Let every norm of the model report what it reads, and answer with a fresh writer."""
    cut: list[nn.Module] = []
    for name, module in model.named_modules():
        norm = norm_of(module)
        if norm is not None and "forward" not in module.__dict__:
            module.forward = mode.norm_forward(name, module, norm)
            cut.append(module)
    try:
        yield
    finally:
        for module in cut:
            del module.forward


class _Watching(TorchFunctionMode):
    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], changes: Mapping[str, Change],
        like: Watched | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.found, self.where = Watched(), type(model).__name__
        self._changes, self._like = changes, like
        self._parameters: dict[int, tuple[str, nn.Parameter]] = {}  # by storage
        for name, parameter in parameters.items():
            if parameter.numel():
                self._parameters.setdefault(_place(parameter), (name, parameter))
        self._gathered: dict[int, Tensor] = {}  # by storage: matrices of a stack, picked by numbers
        self._origins: dict[int, _Origin] = {}  # by storage: what holds numbers of a writer and nothing else
        self._readers: dict[int, tuple[str, Tensor]] = {}  # by identity: sites that read one tensor share an edge
        self._counts: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = widened(args, kwargs or {})
        func = CASTS.get(func, func)
        cut = self._picked(args) if func is torch.Tensor.__getitem__ else self._cut(func, args, kwargs)
        if cut is not None:
            return cut
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if any(self._holds(t) for t in tensors) and (looked := self._looked(func, args, kwargs)) is not None:
            return looked[0]
        for tensor in tensors:
            self._fill(tensor)
        if _changes_in_place(func) and isinstance(args[0], Tensor):
            self._note_use(tensors, None)
            self._overwritten(args[0])
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in CHOICES and _is_real(args[0]) and args[0].requires_grad:
            self.found.choices.append(args[0])
        if name not in SHAPED and not self._copied(func, args, kwargs, result):
            self._note_use(tensors, result)
        return result

    def _looked(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
        """The answer of an operation that only asks about a parameter or shows it from another side."""
        name = getattr(func, "__name__", "")
        if name in QUESTIONS:
            return (func(*args, **kwargs),)
        if name not in VIEWS or not self._holds(args[0]):
            return None
        result = func(*args, **kwargs)
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return (result,) if all(_place(leaf) == _place(args[0]) for leaf in leaves) else None

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
            groups = _argument(args, kwargs, 6, "groups") or 1
            axis = -1 - (CONVOLUTIONS.get(func) or TRANSPOSED[func])
            dims = (0, 1) if func in CONVOLUTIONS else (1, 0)
        elif func in PRODUCTS or func in GROUPED:
            x, weight, dims = args[0], _argument(args, kwargs, 1, "mat2"), (-1, -2)
            if func in PRODUCTS and self._holds(x) and not self._holds(weight):
                x, weight, axis, dims = weight, x, -2, (-2, -1)
        elif func in ADDED and not kwargs.keys() & {"alpha", "beta"}:
            bias, x, weight, dims = args[0], args[1], args[2], (-1, -2)
        stored = self._stored(weight) if isinstance(weight, Tensor) else None
        if stored is None or not isinstance(x, Tensor) or (axis == -2 and x.dim() < 2):
            return None
        assert isinstance(weight, Tensor)
        name, parameter = stored
        if parameter.dim() < 2 or name in self.found.bare:
            return None
        product = func not in TABLES and func not in CONVOLUTIONS and func not in TRANSPOSED
        if product and x.shape[axis] != weight.shape[dims[1]]:
            return None  # let it say so itself
        out_port = _port(name, parameter, weight, dims[0], groups)
        in_port = _port(name, parameter, weight, dims[1], groups)
        if out_port is None or in_port is None:
            return None
        self._fill(x)
        ports, added = [out_port], None
        if isinstance(bias, Tensor):
            owner = self._stored(bias)
            held = None if owner is None else _port(owner[0], owner[1], bias, -1, 1)
            whole = bias.dim() == 1 and held is not None and held.parameter not in self.found.bare
            ports += [Port(held.parameter, held.dim, "bias", held.channels)] if held is not None and whole else []
            added = None if whole else bias
        if axis < -1 and func not in PRODUCTS:
            meta = [a.to("meta") if isinstance(a, Tensor) else a for a in args]
            more = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in kwargs.items()}
            shape = tuple(func(*meta, **more).shape)
        elif func in PRODUCTS and weight.dim() > 2:
            batch = torch.broadcast_shapes(x.shape[:-2], weight.shape[:-2])  # type: ignore[no-untyped-call]
            ends = (x.shape[-2], weight.shape[-1]) if axis == -1 else (weight.shape[-2], x.shape[-1])
            shape = (*batch, *ends)
        elif axis == -2:
            shape = (*x.shape[:-2], weight.shape[-2], x.shape[-1])
        else:
            shape = (*(x.shape if func in TABLES else x.shape[:-1]), weight.shape[dims[0]])
        site, table = name.removesuffix(".weight"), func in TABLES
        reader = "" if table else self._read(site, x, axis, (in_port,), "weight")
        writer, result = self._write(site, shape, axis, tuple(ports), "weight")
        role = "embedding" if table else "conv" if func in CONVOLUTIONS or func in TRANSPOSED else "linear"
        self.found.cuts.append(Cut(site, name, role, out_port.dim, in_port.dim, reader, writer.name, groups))
        if added is not None:
            self._fill(added)
            along = added if axis == -1 or added.dim() > 1 else added.reshape(-1, *[1] * (-1 - axis))
            self._note_use([result, added], None)
            return result + along
        return result

    def _picked(self, args: tuple[Any, ...]) -> Tensor | None:
        """Matrices of a stack, picked by a tensor of numbers: as much a weight as the stack is."""
        stack, index = args[0], args[1]
        if not isinstance(index, Tensor) or index.is_floating_point() or index.dtype == torch.bool:
            return None
        if not self._holds(stack) or stack.dim() < 3 or stack.shape[0] == 1 or not stack.is_contiguous():
            return None
        name, parameter = self._stored(stack)  # type: ignore[misc]
        if name in self.found.bare or index.dim() > 1:
            return None
        chosen = torch.empty(*index.shape, *stack.shape[1:], dtype=stack.dtype)
        if chosen.numel() == 0 or index.dim() == 0:
            return None
        self._gathered[_place(chosen)] = chosen
        self._parameters[_place(chosen)] = (name, parameter)
        return chosen

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
            return self._write(name, tuple(x.shape), norm.axis, tuple(ports), "norm")[1]

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

    def _write(
        self, site: str, shape: tuple[int, ...], axis: int, ports: tuple[Port, ...], kind: str
    ) -> tuple[Writer, Tensor]:
        """A writer, and what the network goes on with: a copy, since it may be overwritten."""
        name = self._numbered(f"{site}:output")
        known = self._like.writers.get(name) if self._like else None
        if known is not None and known.tensor.shape == shape:
            values = known.tensor.detach()
        else:
            values = _balanced(torch.randn(shape, generator=stream(0, name), dtype=torch.float64), axis)
        change = self._changes.get(name)
        leaf = (change(values) if change else values).contiguous().requires_grad_(torch.is_grad_enabled())
        writer = Writer(name, leaf, axis, ports, kind)
        self.found.writers[name] = writer
        result = leaf.clone()
        self._origins[_place(result)] = _Origin(writer, result)
        return writer, result

    def _numbered(self, name: str) -> str:
        count = self._counts[name] = self._counts.get(name, -1) + 1
        return f"{name}#{count}" if count else name

    # A parameter that is used as it is

    def _stored(self, tensor: Tensor) -> tuple[str, nn.Parameter] | None:
        return self._parameters.get(_place(tensor)) if tensor.device.type == "cpu" else None

    def _holds(self, value: Any) -> bool:
        return isinstance(value, Tensor) and self._stored(value) is not None

    def _fill(self, tensor: Tensor) -> None:
        """Give a parameter that enters the arithmetic by itself random values, and call it a writer."""
        stored = self._stored(tensor)
        if stored is None or stored[0] in self.found.bare or not tensor.is_floating_point():
            return
        name, parameter = stored
        if _place(tensor) in self._gathered:
            raise NotImplementedError(f"matrices picked from {name} meet something other than a product")
        self.found.bare.add(name)
        values = torch.randn(parameter.shape, generator=stream(0, name), dtype=torch.float64)
        change = self._changes.get(f"{name}:value")
        with torch.no_grad():
            parameter.data.copy_(change(values) if change else values)
        if parameter.dim():
            port = Port(name, parameter.dim() - 1, "vector")
            writer = Writer(f"{name}:value", parameter, -1, (port,), "vector")
            self.found.writers[writer.name] = writer
            self._origins[_place(parameter)] = _Origin(writer, parameter)

    # Which channels go where

    def _overwritten(self, tensor: Tensor) -> None:
        """Before an operation in place: what was read of this tensor keeps the numbers it had."""
        place = _place(tensor)
        for reader in self.found.readers.values():
            if _is_real(reader.tensor) and _place(reader.tensor) == place:
                reader.tensor = reader.tensor.clone()
        self._readers = {key: read for key, read in self._readers.items() if _place(read[1]) != place}
        self._origins.pop(place, None)

    def _copied(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> bool:
        """Whether an operation only copied numbers of a writer; where they came from is then known of the copy too."""
        if func not in COPIES or not isinstance(result, Tensor) or not torch.is_grad_enabled():
            return False
        origin = self._origins.get(_place(args[0])) if _is_real(args[0]) else None
        if origin is None or _place(result) == _place(args[0]) or args[0].numel() == 0:
            return False
        if func in (torch.Tensor.to, torch.Tensor.double, torch.Tensor.type_as):
            moved = origin.numbers(args[0]).contiguous()
        else:
            moved = func(origin.numbers(args[0]), *args[1:], **kwargs).contiguous()
        if result.is_contiguous():
            self._origins[_place(result)] = _Origin(origin.writer, result, moved.flatten())
        return result.is_contiguous()

    def _note_use(self, tensors: list[Tensor], result: Any) -> None:
        """Which channels of a writer an operation took by themselves (a third of a fused q, k, v, say)."""
        if not torch.is_grad_enabled():
            return
        made = {_place(t) for t in tree_leaves(result) if _is_real(t)}
        if result is not None and not made:
            return
        for tensor in tensors:
            if _is_real(tensor) and tensor.numel() and _place(tensor) not in made:
                origin = self._origins.get(_place(tensor))
                if origin is not None:
                    origin.writer.used.append(origin.channels(tensor))


class _Origin:
    """A storage that holds a writer's numbers, and of which channel each of them is."""

    def __init__(self, writer: Writer, held: Tensor, channel: Tensor | None = None) -> None:
        self.writer, self._held, self._channel = writer, held, channel  # held: so that its address stays its own

    def numbers(self, view: Tensor) -> Tensor:
        """The channel of every element of a view."""
        if self._channel is None:
            whole = self.writer.tensor
            shape = [1] * whole.dim()
            shape[self.writer.axis] = -1
            self._channel = torch.arange(self.writer.size).reshape(shape).expand(whole.shape).contiguous().flatten()
        return self._channel.as_strided(view.shape, view.stride(), view.storage_offset())

    def channels(self, view: Tensor) -> frozenset[int]:
        """The channels in a view."""
        if view.numel() == self.writer.tensor.numel():
            return frozenset(range(self.writer.size))
        return frozenset(self.numbers(view).unique().tolist())  # type: ignore[no-untyped-call]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"


def _changes_in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name in OVERWRITES


def _balanced(values: Tensor, axis: int) -> Tensor:
    """Every channel with a number above zero and one below, so that no rectifier hides a channel altogether."""
    if not values.dim():
        return values
    rows = values.movedim(axis, -1)
    flat = rows.reshape(-1, rows.shape[-1])
    if len(flat) > 1:
        flat = torch.cat([flat[:1].abs(), -flat[1:2].abs(), flat[2:]])
    return flat.reshape(rows.shape).movedim(-1, axis)


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
    same = [d for d in fits if parameter.shape[d] == size]
    home = dim if dim in same and view.dim() == parameter.dim() else same[0] if same else fits[0]
    if parameter.shape[home] == size:
        return Port(name, home, groups=groups)
    start = (view.storage_offset() // stride) % parameter.shape[home]
    return Port(name, home, channels=tuple(range(start, start + size)), groups=groups)
