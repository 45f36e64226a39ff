"""Run a network one block at a time, with the weights of one block in memory.

The model's own code does everything: to run its beginning, every block is made to record what it is called with and to
pass its input on; to run its end, the blocks are made to return the hidden states we give them. So masks, position
embeddings, soft caps and whatever a family does around its blocks need no code here.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from pennyweight.errors import InvalidModel
from pennyweight.network.finding.trace import skeleton
from pennyweight.network.network import Network
from pennyweight.network.running.rounding import install, roundings_of
from pennyweight.network.sources.source import check_finite
from pennyweight.numerics.double import to_double
from pennyweight.numerics.linear import linear
from pennyweight.numerics.memory import release

Hidden = Float[Tensor, "windows length size"]


CHUNK_TOKENS = 1024  # activations of a block at once: enough for the matrix products, and no more memory than a block


class _Stop(Exception):
    """Raised inside the model's code to leave it early."""


@dataclass(eq=False)
class Stream:
    """Runs a network block by block.

    Args:
        network: what to run.
        dtype: of weights and activations; a 16-bit one shows what rounding in the arithmetic does.
        chunk_tokens: tokens run through a block at once, at least one window.
        read: another way to get a tensor by the name it is stored under than to ask the network's source.
    """

    network: Network
    dtype: torch.dtype = torch.float32
    chunk_tokens: int = CHUNK_TOKENS
    read: Callable[[str], Tensor] | None = None
    _model: nn.Module = field(init=False)
    _calls: dict[tuple[int, ...], list[tuple[tuple[Any, ...], dict[str, Any]]]] = field(
        init=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        self._model = skeleton(self.network.source)
        for module in self._model.modules():
            if type(module) is nn.Linear:
                module.forward = fast_forward(module)  # type: ignore[method-assign, assignment]
            if self.dtype == torch.float64:  # narrower types leave buffers as the model's own code made them
                for name, buffer in module._buffers.items():
                    module._buffers[name] = to_double(buffer)
        install(self._model, roundings_of(self.network.source))

    @contextmanager
    def beginning(self) -> Iterator[Callable[[Int[Tensor, "windows length"]], Hidden]]:
        """Everything before the first block: yields token ids -> hidden states."""
        blocks = [self._model.get_submodule(block.name) for block in self.network.blocks]
        as_tuple = self.network.blocks[0].returns_tuple
        with self._materialised(self._embedding_names()):

            def begin(ids: Int[Tensor, "windows length"]) -> Hidden:
                hidden: list[Tensor] = []
                calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

                def record(*args: Any, **kwargs: Any) -> Any:
                    first, args, kwargs = _take_hidden(args, kwargs)
                    hidden.append(first)
                    calls.append((args, kwargs))
                    if len(calls) == len(blocks):
                        raise _Stop
                    return (first,) if as_tuple else first

                with _forwards(dict.fromkeys(blocks, record)):
                    self._run(ids)
                self._calls[tuple(ids.shape)] = calls
                return hidden[0]

            yield begin

    @contextmanager
    def block(self, index: int) -> Iterator[Callable[[Hidden], Hidden]]:
        """One block with its weights in memory: yields hidden states -> hidden states.

        `beginning` must have run on ids of the same shape: it records what the block is called with.
        """
        block = self.network.blocks[index]
        module = self._model.get_submodule(block.name)
        with self._materialised(block.parameters):

            def run(hidden: Hidden) -> Hidden:
                args, kwargs = self._calls[tuple(hidden.shape[:2])][index]
                output = module(hidden, *args, **kwargs)
                result: Tensor = output[0] if isinstance(output, tuple) else output
                return result

            yield run

    def replaced(
        self, index: int, hidden: Hidden, weights: Mapping[str, Tensor], added: Mapping[str, Tensor] | None = None
    ) -> Hidden:
        """Run a block that is in memory with other weights in place of some; gradients flow to them.

        Args:
            index: of the block.
            hidden: what goes in; `beginning` must have run on ids of the same shape.
            weights: by the name of the parameter; those of other blocks are not looked at.
            added: vectors added to what modules return, by the name of their weight.
        """
        block = self.network.blocks[index]
        own = {name: weights[name] for name in block.parameters if name in weights}
        local = {name.removeprefix(f"{block.name}."): weight for name, weight in own.items()}
        args, kwargs = self._calls[tuple(hidden.shape[:2])][index]
        with ExitStack() as stack:
            for name, vector in (added or {}).items():
                if name in block.parameters:
                    module = self._model.get_submodule(name.rpartition(".")[0])
                    stack.callback(module.register_forward_hook(partial(_plus, vector)).remove)
            output = functional_call(self._model.get_submodule(block.name), local, (hidden, *args), kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @contextmanager
    def reading(self, names: Collection[str], *, leave: bool) -> Iterator[dict[str, Float[Tensor, "tokens n"]]]:
        """A context that fills with what modules read, by the name of their weight.

        Args:
            names: of weights; one that no module has as its `weight` is never seen.
            leave: it as soon as all have read.
        """
        seen = dict[str, Tensor]()

        def see(name: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen[name] = inputs[0].flatten(0, -2)
            if leave and len(seen) == len(names):
                raise _Stop

        with ExitStack() as stack:
            for name in names:
                path, _, attribute = name.rpartition(".")
                if attribute == "weight":
                    hook = partial(see, name)
                    stack.callback(self._model.get_submodule(path).register_forward_pre_hook(hook).remove)
            try:
                yield seen
            except _Stop as stop:
                traceback.clear_frames(stop.__traceback__)

    @contextmanager
    def end(self) -> Iterator[Callable[[Float[Tensor, "tokens size"]], Float[Tensor, "tokens vocabulary"]]]:
        """Everything after the last block: yields hidden states of single tokens -> logits."""
        blocks = [self._model.get_submodule(block.name) for block in self.network.blocks]
        as_tuple = self.network.blocks[0].returns_tuple
        embedding = self._model.get_input_embeddings()  # type: ignore[operator]

        with self._materialised(self._end_names()):

            def finish(hidden: Float[Tensor, "tokens size"]) -> Float[Tensor, "tokens vocabulary"]:
                given = hidden[None]

                def answer(*_: Any, **__: Any) -> Any:
                    return (given,) if as_tuple else given

                # The embedding is not needed: whatever it returns is replaced by what the blocks return.
                with _forwards({**dict.fromkeys(blocks, answer), embedding: lambda *_, **__: given}):
                    output = self._model(input_ids=torch.zeros(given.shape[:2], dtype=torch.long), use_cache=False)
                logits: Tensor = output.logits[0]
                return logits

            yield finish

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The model with all its weights in memory at once, to write text with: yields the module, to call as usual."""
        with self._materialised(tuple(name for name, _ in self._model.named_parameters(remove_duplicate=False))):
            yield self._model

    def module(self, name: str) -> nn.Module:
        """A module of the tree, for hooks."""
        return self._model.get_submodule(name)

    def parameter(self, name: str) -> Tensor:
        """A parameter as it is now: on the meta device unless its block is in memory."""
        return self._model.get_parameter(name)

    def forward(self, ids: Int[Tensor, "windows length"]) -> Hidden:
        """Hidden states after the last block; each block is read once, and run on a few windows at a time."""
        chunks = torch.split(ids, max(1, self.chunk_tokens // ids.shape[1]))
        with torch.no_grad():
            with self.beginning() as begin:
                hidden = [begin(chunk) for chunk in chunks]
            release()
            for index in range(len(self.network.blocks)):
                with self.block(index) as run:
                    for i, chunk in enumerate(hidden):
                        hidden[i] = run(chunk)
                release()
        return torch.cat(hidden)

    def _run(self, ids: Tensor) -> None:
        try:
            self._model(input_ids=ids, use_cache=False)
        except _Stop as stop:
            # The frames it went through hold activations and weights, in a cycle that only the collector would find.
            traceback.clear_frames(stop.__traceback__)
            return
        raise InvalidModel(
            "the model finished without calling its last block",
            expected="every block called once a pass",
            mend="report the architecture",
            site=str(self.network.source.path),
        )

    def _embedding_names(self) -> tuple[str, ...]:
        heads = {site.parameter for site in self.network.sites if site.role == "head"}
        return tuple(name for name in self.network.outer if name not in heads)

    def _end_names(self) -> tuple[str, ...]:
        table = self._model.get_input_embeddings().weight  # type: ignore[operator]
        heads = {site.parameter for site in self.network.sites if site.role == "head"}
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        return tuple(name for name in self.network.outer if name in heads or parameters[name] is not table)

    @contextmanager
    def _materialised(self, names: tuple[str, ...]) -> Iterator[None]:
        """Read parameters into the module tree in the stream's dtype; put them back on the meta device afterwards."""
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        before = {name: parameters[name] for name in names}
        try:
            place(self._model, self.network, names, self.dtype, self.read)
            yield
        finally:
            for name, parameter in before.items():
                _set(self._model, name, parameter)


def place(
    model: nn.Module, network: Network, names: Iterable[str], dtype: torch.dtype,
    read: Callable[[str], Tensor] | None = None,
) -> None:  # fmt: skip
    """Read parameters into a module tree; what two names share is in memory once.

    Args:
        model: its tree.
        network: whose source has the tensors.
        names: of parameters.
        dtype: of them in memory.
        read: another way to get a tensor by the name it is stored under.

    Raises:
        InvalidWeights: one of them is not finite.
    """
    read_stored, placed = read or network.source.read, dict[str, nn.Parameter]()
    for name in names:
        stored = network.stored_name(name)
        if stored not in placed:
            tensor = read_stored(stored).to(dtype)
            check_finite(name, tensor)
            placed[stored] = nn.Parameter(tensor, requires_grad=False)
        _set(model, name, placed[stored])


def _set(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, parameter)


def fast_forward(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The layer's forward by `numerics.linear`."""

    def forward(x: Tensor) -> Tensor:
        return linear(x, module.weight, module.bias)

    return forward


def _plus(vector: Tensor, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output + vector.to(output.dtype)


def _take_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest


@contextmanager
def _forwards(replacements: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward of some modules; attributes that the model's code looks up on them stay."""
    before = {module: module.__dict__.get("forward") for module in replacements}
    for module, replacement in replacements.items():
        module.forward = replacement
    try:
        yield
    finally:
        for module, own in before.items():
            if own is None:
                del module.forward
            else:
                module.forward = own
