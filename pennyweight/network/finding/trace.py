"""Find sites, edges, blocks and ties by watching one forward pass without any weights.

`watch` cuts every weight out of the pass: what is multiplied by one tensor is a site, whatever module or function does
it. Two sites that receive the very same activation read the same edge; an activation that a module returned names its
producer. Blocks are the module list whose members pass one tensor from each to the next. No architecture is named here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pennyweight.errors import InvalidModel, PennyweightError
from pennyweight.network.finding.inputs import example
from pennyweight.network.finding.symmetry import Symmetry, symmetries
from pennyweight.network.finding.watch import Cut, Watched, watch
from pennyweight.network.network import Block, Edge, Network, Site
from pennyweight.network.sources.module import ModuleSource
from pennyweight.network.sources.source import Source, TensorInfo

MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)  # from sizes
LEAST = 1 << 26  # elements that any model may make a tensor of: masks, tables of positions
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
LAYERS = 1000  # that any model may have


def load_network(source: Source) -> Network:
    """Trace the network a source holds.

    Raises:
        InvalidModel: the architecture is unknown, or its code cannot be followed, or tensors are missing.
    """
    network = trace(skeleton(source), source)
    if not network.blocks:
        raise InvalidModel(
            f"{network.source.config.get('model_type')} has no chain of blocks",
            expected="a stack of layers, each reading what the one before it wrote",
            mend="such a network cannot be streamed block by block; compress it in memory with pw.compress_module",
            site=str(source.path),
        )
    return network


def network_of(module: nn.Module, inputs: Mapping[str, Any] | None = None, *, name: str = "") -> Network:
    """The network of a module in memory, whatever it computes.

    Args:
        module: is not changed.
        inputs: keyword arguments of a small forward pass; None makes some up where the model says what it takes.
        name: what to call it in messages.

    Raises:
        InvalidModel: its code cannot be followed on these inputs, or none could be made up.
    """
    source = ModuleSource(module, name=name)
    return trace(skeleton(source), source, inputs)


@lru_cache(maxsize=8)
def symmetries_of(network: Network) -> tuple[Symmetry, ...]:
    """Every change of basis a network's edges let through; weights are not looked at. Found once for each network.

    Raises:
        InvalidModel: its code cannot be followed.
    """
    model = skeleton(network.source)
    return symmetries(model, network.inputs or example(model))


def skeleton(source: Source) -> nn.Module:
    """The model's module tree with every parameter on the meta device; buffers are real.

    Raises:
        InvalidModel: transformers knows no model of this type.
    """
    module = getattr(source, "module", None)
    if isinstance(module, nn.Module):
        memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in module.parameters()}
        return copy.deepcopy(module, memo).eval()
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    config = {k: v for k, v in source.config.items() if k != "quantization_config"}
    _check_depth(source)
    try:
        named = next(iter(source.config.get("architectures") or ()), "")
        parsed = AutoConfig.for_model(**config)
        parsed.dtype = torch.float32
        with _parameters_on_meta(), _Plausible(source):
            kind: Any = getattr(transformers, named, None)
            if getattr(kind, "config_class", None) is not type(parsed):
                kind = AutoModelForCausalLM
            make = kind.from_config if kind is AutoModelForCausalLM else kind._from_config
            model: nn.Module = make(parsed, dtype=torch.float32)
        model.tie_weights()  # type: ignore[operator]
    except PennyweightError:
        raise
    except Exception as error:  # code of every architecture meets a configuration from anywhere
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidModel(
            f"transformers cannot build a causal language model of type {source.config.get('model_type')!r}: {said}",
            expected="a model_type and a config.json that the installed transformers knows",
            mend="check config.json; for a new architecture, a newer transformers may know it",
            site=str(source.path),
        ) from error
    return model.eval().requires_grad_(False)


class _Plausible(TorchFunctionMode):
    """Refuse to make a tensor that is larger than the whole model: a size in config.json is wrong, or meant to harm."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.site = str(source.path)
        held = sum(math.prod(info.shape) for info in _files(source).values())
        self.most = max(LEAST, held) if held else math.inf

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what makes tensors from sizes; let everything else pass."""
        if function in MAKERS and (size := _elements(args, kwargs or {})) > self.most:
            raise InvalidModel(
                f"config.json asks for a tensor of {size} numbers", expected=f"at most {self.most}, as the files hold",
                mend="check that config.json and the weights belong to the same model", site=self.site,
            )  # fmt: skip
        return function(*args, **(kwargs or {}))


def _elements(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    sizes = args or (kwargs.get("size", ()),)
    if len(sizes) > 0 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    return math.prod(size for size in sizes if isinstance(size, int))


def _files(source: Source) -> Mapping[str, TensorInfo]:
    """What the files hold; nothing is known of a program, or of a configuration alone."""
    return getattr(source, "tensors", {})


def _check_depth(source: Source) -> None:
    """Refuse a configuration with more layers than the files can hold, before anything is made for each of them."""
    held = len(_files(source))
    for key in DEPTHS:
        depth = source.config.get(key)
        if held and isinstance(depth, int) and depth > max(LAYERS, held):
            raise InvalidModel(
                f"config.json has {key} = {depth}, and the files hold {held} tensors",
                expected="at least one tensor a layer",
                mend="check that config.json and the weights belong to the same model", site=str(source.path),
            )  # fmt: skip


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Send every parameter to the meta device the moment it is registered; buffers stay real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def trace(model: nn.Module, source: Source, inputs: Mapping[str, Any] | None = None) -> Network:
    """Sites, edges, blocks and ties of a model whose parameters are on the meta device."""
    tied = _tied(model)
    _check_complete(model, source, tied)
    calls, watched = _watch(model, inputs or example(model))
    blocks = _blocks(model, calls)
    sites, edges = _sites(model, watched, calls, blocks)
    site_parameters = {site.parameter for site in sites}
    inside = {name for block in blocks for name in block.parameters}
    untouched = {}
    for name, parameter in model.named_parameters():
        if name not in site_parameters:
            untouched[name] = "a vector: norm gain or bias" if parameter.dim() < 2 else "nothing multiplies by it"
    return Network(
        source=source, blocks=blocks, sites=sites, edges=edges, tied=tied, untouched=untouched, inputs=inputs,
        outer=tuple(n for n, _ in model.named_parameters(remove_duplicate=False) if n not in inside),
    )  # fmt: skip


class _Call:
    """One call of one module: what went in and what came out, kept alive so that identity means something."""

    def __init__(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        self.name, self.module, self.inputs = name, module, inputs
        self.output: Tensor | None = first if isinstance(first, Tensor) else None
        self.is_tuple = isinstance(output, tuple)


def _watch(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[list[_Call], Watched]:
    calls: list[_Call] = []
    handles = []

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            tensors = tuple(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
            calls.append(_Call(name, module, tensors, output))

        return record

    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(hook(name), with_kwargs=True))
    try:
        return calls, watch(model, inputs, grad=False)
    finally:
        for handle in handles:
            handle.remove()


def _blocks(model: nn.Module, calls: list[_Call]) -> tuple[Block, ...]:
    """The module list whose members pass one tensor from each to the next, and that holds the most weights."""
    by_name = {call.name: call for call in calls}
    best: tuple[int, tuple[Block, ...]] = (0, ())
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        members = [by_name.get(f"{name}.{i}") for i in range(len(module))]
        if any(call is None or call.output is None for call in members):
            continue
        if not all(a and b and any(t is a.output for t in b.inputs) for a, b in pairwise(members)):
            continue
        blocks = tuple(
            Block(
                name=f"{name}.{i}",
                parameters=tuple(f"{name}.{i}.{p}" for p, _ in block.named_parameters()),
                returns_tuple=by_name[f"{name}.{i}"].is_tuple,
            )  # fmt: skip
            for i, block in enumerate(module)
        )
        weights = sum(p.numel() for p in module.parameters())
        best = max(best, (weights, blocks), key=lambda pair: pair[0])
    return best[1]


def _sites(
    model: nn.Module, watched: Watched, calls: list[_Call], blocks: tuple[Block, ...]
) -> tuple[tuple[Site, ...], dict[str, Edge]]:
    producer: dict[int, str] = {}
    for call in calls:
        # Inner modules finish first: the innermost module that returned a tensor is its producer.
        if call.output is not None:
            producer.setdefault(id(call.output), call.name)
    block_of = {parameter: i for i, block in enumerate(blocks) for parameter in block.parameters}
    head, modules = _head_name(model), dict(model.named_modules())
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    aliases = {name: names for names in _tied(model) for name in names}
    edges: dict[str, Edge] = {}
    sites: dict[str, Site] = {}
    for cut in watched.cuts:
        for name, parameter, role in _owners(cut, aliases, modules, head):
            if name in sites:
                continue
            read = watched.readers[cut.reader].tensor if cut.reader else None
            made_by = producer.get(id(read)) if read is not None else None
            edge = f"{made_by}:output" if made_by else cut.reader or f"{name}:input"
            shape, layout = _matrix_shape(shapes[parameter], cut, role)
            sites[name] = Site(
                name=name, block=block_of.get(parameter), shape=shape, reads=edge, writes=f"{name}:output", role=role,
                tensor="" if parameter == f"{name}.weight" else parameter, layout=layout,
            )  # fmt: skip
            before = edges.get(edge)
            edges[edge] = Edge(
                name=edge, size=1 if read is None else int(read.shape[1 if role == "conv" else -1]),
                producers=(made_by,) if made_by else (), consumers=(*(before.consumers if before else ()), name),
            )  # fmt: skip
    return tuple(sites.values()), edges


def _owners(
    cut: Cut, aliases: Mapping[str, tuple[str, ...]], modules: Mapping[str, nn.Module], head: str | None
) -> Iterator[tuple[str, str, str]]:
    """Name, tensor and role of the site a product belongs to; a tied tensor has several names, told apart by use."""
    parameter = cut.parameter
    if cut.role != "embedding" and parameter in aliases:
        uses = [n for n in aliases[parameter] if not isinstance(modules.get(n.rpartition(".")[0]), nn.Embedding)]
        parameter = uses[0] if uses else parameter
    name = parameter.removesuffix(".weight")
    owner = modules.get(name)
    if cut.role == "embedding":
        role = "embedding"
    elif name == head:
        role = "head"
    elif isinstance(owner, nn.Linear):
        role = "linear"
    elif cut.role == "conv":
        role = "conv"
    else:
        role = "experts" if max(cut.out_dim, cut.in_dim) == 2 else "transposed" if cut.out_dim else "matrix"
    yield name, parameter, role


def _matrix_shape(stored: tuple[int, ...], cut: Cut, role: str) -> tuple[tuple[int, int], str]:
    """Outputs and inputs of the matrix a tensor stands for, and how it is stored."""
    if role == "embedding":
        return (stored[0], stored[1]), "out in"
    if role == "conv":
        rest = 1
        for length in (n for d, n in enumerate(stored) if d != cut.out_dim):
            rest *= length
        return (stored[cut.out_dim], rest), "conv" if cut.out_dim == 0 else "conv transposed"
    if len(stored) == 3:
        return (stored[0] * stored[cut.out_dim], stored[cut.in_dim]), (
            "experts out in" if cut.out_dim == 1 else "experts in out"
        )
    return (stored[cut.out_dim], stored[cut.in_dim]), "out in" if cut.out_dim == 0 else "in out"


def _head_name(model: nn.Module) -> str | None:
    get = getattr(model, "get_output_embeddings", None)
    try:
        head = get() if get is not None else None
    except NotImplementedError:
        head = None
    return next((name for name, module in model.named_modules() if module is head and head is not None), None)


def _tied(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    shared: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    return tuple(tuple(names) for names in shared.values() if len(names) > 1)


def _check_complete(model: nn.Module, source: Source, tied: tuple[tuple[str, ...], ...]) -> None:
    aliases = {name: names for names in tied for name in names}
    missing, wrong = [], []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        stored = next((n for n in aliases.get(name, (name,)) if n in source.tensors), None)
        if stored is None:
            missing.append(name)
        elif source.tensors[stored].shape != tuple(parameter.shape):
            wrong.append(f"{name} is {list(source.tensors[stored].shape)}, not {list(parameter.shape)}")
    if missing or wrong:
        raise InvalidModel(
            "the checkpoint and config.json do not fit together: "
            + "; ".join([*(f"{name} is missing" for name in missing[:3]), *wrong[:3]])
            + (f"; and {len(missing) + len(wrong) - 3} more" if len(missing) + len(wrong) > 3 else ""),
            expected="every tensor that config.json asks for, in its shape",
            mend="use the config.json that was saved with these weights, or download the model again",
            site=str(source.path),
        )
