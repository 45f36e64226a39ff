"""Find sites, edges, blocks and ties by watching one forward pass without any weights.

The model's own code runs once on eight tokens, with every parameter a zero that takes no memory and every linear layer
and embedding answering zeros without arithmetic. (The meta device will not do: attention masks look at numbers.) Two
modules that receive the very same tensor read the same edge; a tensor that a module returned names its producer. No
architecture is named here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pennyweight.errors import InvalidModel
from pennyweight.network.network import Block, Edge, Network, Site
from pennyweight.network.source import Source

TRACE_LENGTH = 8


def load_network(source: Source) -> Network:
    """Trace the network a source holds.

    Raises:
        InvalidModel: the architecture is unknown, or its code cannot be followed, or tensors are missing.
    """
    return trace(skeleton(source), source)


def skeleton(source: Source) -> nn.Module:
    """The model's module tree in float32 with every parameter on the meta device; buffers are real.

    Raises:
        InvalidModel: transformers knows no causal language model of this type.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    config = {k: v for k, v in source.config.items() if k != "quantization_config"}
    try:
        parsed = AutoConfig.for_model(**config)
        parsed.dtype = torch.float32
        with _parameters_on_meta():
            model: nn.Module = AutoModelForCausalLM.from_config(parsed, dtype=torch.float32)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidModel(
            f"transformers cannot build a causal language model of type {source.config.get('model_type')!r}: "
            + str(error).splitlines()[0],
            expected="a model_type and a config.json that the installed transformers knows",
            mend="check config.json; for a new architecture, a newer transformers may know it",
            site=str(source.path),
        ) from error
    model.tie_weights()  # type: ignore[operator]
    return model.eval().requires_grad_(False)


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


def trace(model: nn.Module, source: Source) -> Network:
    """Sites, edges, blocks and ties of a model whose parameters are on the meta device."""
    calls = _watch(model)
    blocks = _blocks(model, calls, source)
    tied = _tied(model)
    _check_complete(model, source, tied)
    sites, edges = _sites(model, calls, blocks)
    site_parameters = {site.parameter for site in sites}
    inside = {name for block in blocks for name in block.parameters}
    untouched = {}
    for name, parameter in model.named_parameters():
        if name not in site_parameters:
            untouched[name] = (
                "a vector: norm gain or bias" if parameter.dim() < 2 else "not a linear layer we understand"
            )
    return Network(
        source=source, blocks=blocks, sites=sites, edges=edges, tied=tied, untouched=untouched,
        outer=tuple(n for n, _ in model.named_parameters(remove_duplicate=False) if n not in inside),
    )  # fmt: skip


class _Call:
    """One call of one module: what went in and what came out, kept alive so that identity means something."""

    def __init__(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        self.name, self.module, self.inputs = name, module, inputs
        self.output: Tensor | None = first if isinstance(first, Tensor) else None
        self.is_tuple = isinstance(output, tuple)


def _watch(model: nn.Module) -> list[_Call]:
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
        with torch.no_grad(), warnings.catch_warnings(), _weightless(model):
            warnings.simplefilter("ignore")
            model(input_ids=torch.zeros(1, TRACE_LENGTH, dtype=torch.long), use_cache=False)
    except (RuntimeError, TypeError, NotImplementedError, ValueError) as error:
        raise InvalidModel(
            f"the forward pass of {type(model).__name__} cannot be followed: {str(error).splitlines()[0]}",
            expected="a causal language model whose forward pass depends on shapes only",
            mend="report the architecture; until it is understood it cannot be compressed",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def _weightless(model: nn.Module) -> Iterator[None]:
    """Zeros without storage for parameters, and answers without arithmetic from the layers that hold most of them."""

    def answer(size: int) -> Any:
        def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
            return torch.zeros(*(x.shape if x.dtype == torch.long else x.shape[:-1]), size)

        return forward

    before = []
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                before.append((module, name, parameter))
                # Stacked experts go through products that refuse a stride of zero; untouched zeros cost little too.
                flat = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                zeros = flat if parameter.dim() < 3 else torch.zeros(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
        if isinstance(module, nn.Linear):
            module.forward = answer(module.out_features)  # type: ignore[method-assign]
        elif isinstance(module, nn.Embedding):
            module.forward = answer(module.embedding_dim)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module, name, parameter in before:
            module._parameters[name] = parameter
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                del module.forward


def _blocks(model: nn.Module, calls: list[_Call], source: Source) -> tuple[Block, ...]:
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
    if not best[1]:
        raise InvalidModel(
            f"{type(model).__name__} has no chain of blocks",
            expected="a stack of layers, each reading what the one before it wrote",
            mend="such a network cannot be streamed block by block yet",
            site=str(source.path),
        )
    return best[1]


def _sites(model: nn.Module, calls: list[_Call], blocks: tuple[Block, ...]) -> tuple[tuple[Site, ...], dict[str, Edge]]:
    producer: dict[int, str] = {}
    for call in calls:
        # Inner modules finish first: the innermost module that returned a tensor is its producer.
        if call.output is not None:
            producer.setdefault(id(call.output), call.name)
    block_of = {parameter: i for i, block in enumerate(blocks) for parameter in block.parameters}
    head = _head_name(model)
    edge_names: dict[int, str] = {}
    edges: dict[str, Edge] = {}
    sites: list[Site] = []
    for call in calls:
        if not isinstance(call.module, nn.Linear | nn.Embedding) or not call.inputs or call.output is None:
            continue
        read = call.inputs[0]
        made_by = producer.get(id(read))
        name = edge_names.setdefault(id(read), f"{made_by}:output" if made_by else f"{call.name}:input")
        weight = call.module.weight
        role = "embedding" if isinstance(call.module, nn.Embedding) else "head" if call.name == head else "linear"
        sites.append(
            Site(
                name=call.name,
                block=block_of.get(f"{call.name}.weight"),
                shape=(weight.shape[0], weight.shape[1]),
                reads=name,
                writes=f"{call.name}:output",
                role=role,
            )  # fmt: skip
        )
        before = edges.get(name)
        edges[name] = Edge(
            name=name, size=1 if role == "embedding" else read.shape[-1], producers=(made_by,) if made_by else (),
            consumers=(*(before.consumers if before else ()), call.name),
        )  # fmt: skip
    return tuple(sites), edges


def _head_name(model: nn.Module) -> str | None:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return next((name for name, module in model.named_modules() if module is head), None)


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
