"""Run a network on small inputs, in float64 and with unrounded weights: what proofs compare.

A causal language model on disk is run block by block, so that a large one fits; anything else is run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pennyweight.network.changing.fold import exact as exact_value
from pennyweight.network.finding.inputs import example
from pennyweight.network.finding.trace import skeleton
from pennyweight.network.finding.watch import returned
from pennyweight.network.network import Network
from pennyweight.network.running.rounding import install, roundings_of
from pennyweight.network.running.stream import Stream
from pennyweight.network.sources.source import Source
from pennyweight.numerics.double import Float64, to_double
from pennyweight.numerics.memory import release

Read = Callable[[str], Tensor]


class Watcher(Protocol):
    """Somebody who looks on while a network runs."""

    def looking(self, batch: int, parameters: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
        """A context in which a batch runs; these weights are in memory, by name."""
        ...

    def block(self, batch: int, name: str, hidden: Tensor) -> None:
        """Called with what a block returned."""
        ...


def unrounded(source: Source) -> Read:
    """Reads tensors as they are before they are rounded to the type they are stored in, where the source knows."""
    return partial(exact_value, source)


def outputs(network: Network, inputs: Mapping[str, Any] | None = None, *, exact: bool = True) -> Tensor:
    """Every float that the network returns for these inputs, one after the other, in float64.

    Args:
        network: whatever its source is.
        inputs: keyword arguments of its forward; made up by default.
        exact: whether rewritten weights are used before they are rounded to the type they are stored in.
    """
    given = inputs or network.inputs or example(skeleton(network.source))
    return passes(network, [given], read=unrounded(network.source) if exact else network.source.read)[0]


def passes(
    network: Network, batches: Sequence[Mapping[str, Any]], *, read: Read, watcher: Watcher | None = None
) -> list[Tensor]:
    """Every float that the network returns for each batch, in float64; weights are read once for all of them.

    Args:
        network: whatever its source is.
        batches: keyword arguments of its forward.
        read: gives tensors by the name they are stored under.
        watcher: told about what goes on inside.
    """
    with torch.no_grad():
        if streams(network, batches):
            return _streamed(network, [batch["input_ids"] for batch in batches], read, watcher)
        return _whole(network, batches, read, watcher)


def streams(network: Network, batches: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the network is run block by block: a language model whose weights are on disk, fed with tokens alone."""
    plain = all("input_ids" in batch and batch.keys() <= {"input_ids", "use_cache"} for batch in batches)
    in_memory = getattr(network.source, "module", None) is not None
    return plain and not in_memory and bool(network.blocks) and any(site.role == "head" for site in network.sites)


def _streamed(network: Network, windows: Sequence[Tensor], read: Read, watcher: Watcher | None) -> list[Tensor]:
    runner = Stream(network, dtype=torch.float64, read=read)

    @contextmanager
    def looking(batch: int, names: Sequence[str]) -> Iterator[None]:
        held = {name: parameter for name in names if not (parameter := runner.parameter(name)).is_meta}
        with Float64(), watcher.looking(batch, held) if watcher else nullcontext():
            yield

    # Tensors are read outside of the mode: it would answer the reader's own requests in float64 too.
    hidden: list[Tensor] = []
    with runner.beginning() as begin:
        for number, ids in enumerate(windows):
            with looking(number, network.outer):
                hidden.append(begin(ids))
    release()
    for index, block in enumerate(network.blocks):
        with runner.block(index) as run:
            for number, before in enumerate(hidden):
                with looking(number, block.parameters):
                    hidden[number] = run(before)
                if watcher:
                    watcher.block(number, block.name, hidden[number])
        release()
    found: list[Tensor] = []
    with runner.end() as finish:
        for number, last in enumerate(hidden):
            with looking(number, network.outer):
                found.append(torch.stack([finish(row) for row in last]).flatten())
    return found


def _whole(network: Network, batches: Sequence[Mapping[str, Any]], read: Read, watcher: Watcher | None) -> list[Tensor]:
    found: list[Tensor] = []
    with materialised(network, read=read) as model:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for number, batch in enumerate(batches):
            looking = watcher.looking(number, parameters) if watcher else nullcontext()
            with _blocks_reported(model, network, number, watcher), Float64(), looking:
                result = model(**{name: to_double(value) for name, value in batch.items()})
            found.append(torch.cat([t.double().flatten() for t in returned(result).values()]))
    return found


@contextmanager
def _blocks_reported(model: nn.Module, network: Network, batch: int, watcher: Watcher | None) -> Iterator[None]:
    handles = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def report(_: nn.Module, __: Any, output: Any) -> None:
            assert watcher is not None
            watcher.block(batch, name, output[0] if isinstance(output, tuple) else output)

        return report

    for block in network.blocks if watcher else ():
        handles.append(model.get_submodule(block.name).register_forward_hook(hook(block.name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def change(before: Tensor, after: Tensor) -> float:
    """Relative change of all outputs together: the length of the difference over that of the first."""
    return float((after - before).norm() / before.norm().clamp(min=1e-300))


@contextmanager
def materialised(
    network: Network, *, exact: bool = True, dtype: torch.dtype = torch.float64, read: Read | None = None
) -> Iterator[nn.Module]:
    """The whole module with the network's weights in memory, to call as usual.

    Args:
        network: whatever its source is.
        exact: whether rewritten weights are used before they are rounded to the type they are stored in.
        dtype: of the weights in memory.
        read: another way to get a tensor by the name it is stored under.
    """
    model = skeleton(network.source)
    read = read or (unrounded(network.source) if exact else network.source.read)
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
                full = f"{path}.{name}" if path else name
                kept = full in network.source.tensors and name not in module._non_persistent_buffers_set
                module._buffers[name] = (read(full) if kept else buffer).to(dtype)
    install(model, roundings_of(network.source))
    yield model
