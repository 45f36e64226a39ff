"""A network built otherwise: tensors computed from others as they are read, in a module whose structure may differ.

`Rewritten` multiplies invertible transforms into tensors and leaves every shape as it is. What is not invertible (a
mean that is taken out), what changes a shape (a channel less) or a layer (a norm that is gone) is said here: a formula
for each tensor that is new or different, and the module it belongs to. Formulas are float64 and computed when read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from pennyweight.errors import InvalidTransform, InvalidWeights
from pennyweight.network.changing.fold import STORED, exact
from pennyweight.network.finding.inputs import example
from pennyweight.network.finding.trace import skeleton, trace
from pennyweight.network.finding.watch import watch
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.source import Derived, Source, TensorInfo
from pennyweight.numerics.hashing import of_value

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Made:
    """A tensor that follows from tensors of another source.

    Args:
        shape: that it will have.
        dtype: that it is stored in.
        of: computes it in float64, given a function that reads the other source's tensors in float64.
    """

    shape: tuple[int, ...]
    dtype: str
    of: Callable[[Read], Tensor]


class Rebuilt(Derived):
    """Another source with some tensors made anew and some left out.

    Args:
        source: where the weights are.
        made: by name.
        what: what was done, with everything it depends on besides the source; part of the fingerprint.
        dropped: names of tensors that are gone.
        module: the structure that the tensors belong to, if in memory; its parameters may be on the meta device.
        config: that of the source, if None.
    """

    def __init__(
        self, source: Source, made: Mapping[str, Made], *, what: str, dropped: frozenset[str] = frozenset(),
        module: nn.Module | None = None, config: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.source, self._made, self._what, self._module, self._config = source, dict(made), what, module, config
        kept = {name: info for name, info in source.tensors.items() if name not in dropped}
        self._tensors: Mapping[str, TensorInfo] = kept | {
            name: TensorInfo(name, new.shape, new.dtype, prod(new.shape) * STORED[new.dtype].itemsize)
            for name, new in made.items()
        }

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What is left of the source's, and what was made."""
        return self._tensors

    @property
    def config(self) -> Mapping[str, Any]:
        """That of the source, or what it became."""
        return self.source.config if self._config is None else self._config

    @property
    def module(self) -> nn.Module | None:
        """The module in memory whose code runs, if the source is one."""
        return self._module if self._module is not None else getattr(self.source, "module", None)

    @property
    def fingerprint(self) -> str:
        """Hash of the source's own, of what was done and of the shapes it led to."""
        shapes = sorted([name, list(new.shape)] for name, new in self._made.items())
        return of_value(["rebuilt", self.source.fingerprint, self._what, shapes])

    @property
    def description(self) -> str:
        """What was done, and to what."""
        return f"{self._what}; {self.source.description}"

    def read(self, name: str) -> Tensor:
        """A tensor in the type it is stored in.

        Raises:
            InvalidWeights: a value is beyond what that type holds.
        """
        if name not in self._made:
            return self.source.read(name)
        made, dtype = self.exact(name), STORED[self._made[name].dtype]
        largest = float(made.abs().max()) if made.numel() else 0.0
        if not largest <= torch.finfo(dtype).max:
            raise InvalidWeights(
                f"a value of {largest:.3g} is beyond what {self._made[name].dtype} holds",
                expected=f"values below {torch.finfo(dtype).max:.3g}",
                mend="store the model in bfloat16 or float32", site=name,
            )  # fmt: skip
        return made.to(dtype)

    def exact(self, name: str) -> Tensor:
        """The same in float64, before it is rounded to the type it is stored in."""
        if name not in self._made:
            return exact(self.source, name)
        return self._made[name].of(lambda other: exact(self.source, other))


def rebuilt(network: Network, source: Rebuilt) -> Network:
    """The network of a source made from the network's own.

    Raises:
        InvalidModel: the new structure does not run, or tensors are missing.
    """
    inputs = network.inputs
    if inputs is None and source.module is not None:
        inputs = example(skeleton(network.source))  # what it takes is read off its layers, which may be others now
    return trace(skeleton(source), source, inputs)


def structure(network: Network, method: str, mend: str = "") -> nn.Module:
    """A copy of the network's module to change, its parameters on the meta device.

    Raises:
        InvalidTransform: the network is a checkpoint, whose structure is fixed by its config.json.
    """
    if getattr(network.source, "module", None) is None:
        raise InvalidTransform(
            f"{method} changes the structure of the network, and a checkpoint's follows from its config.json",
            expected="a module in memory", mend=mend or "load it with transformers and rewrite the module",
            site=str(network.source.path),
        )  # fmt: skip
    return skeleton(network.source)


def plain_layers(network: Network, module: nn.Module) -> Iterator[tuple[Site, nn.Module]]:
    """Layers that are their weight, and a bias if any, shared with nobody and used by nobody but through a call."""
    modules = dict(module.named_modules())
    found = []
    for site in network.sites:
        layer = modules.get(site.name)
        if layer is None or site.role == "embedding":
            continue
        own = {name for name, _ in layer.named_parameters()}
        if own <= {"weight", "bias"} and not any(shared(network, f"{site.name}.{name}") for name in own):
            found.append((site, layer))
    reached = reached_into(network, [site.name for site, _ in found])
    yield from ((site, layer) for site, layer in found if not reached[site.name])


def reached_into(network: Network, names: Sequence[str]) -> dict[str, set[str]]:
    """What other code asks of some modules besides calling them, and whether they answer more than their product."""
    module = skeleton(network.source)
    inputs = network.inputs or example(module)
    around = {name: _Asked(module.get_submodule(name)) for name in names}
    for name, wrapper in around.items():
        replace_module(module, name, wrapper)
    for wrapper in around.values():
        wrapper.asked.clear()
    writers = watch(module, inputs, grad=False).writers
    for name, wrapper in around.items():
        products = [
            writer.tensor.flatten()
            for key, writer in writers.items()
            if key.partition("#")[0] == f"{name}.inner:output"
        ]
        if not all(any(torch.equal(one, product) for product in products) for one in wrapper.returned):
            wrapper.asked.add("more than a product")  # a router that answers with its choice, say
    return {name: wrapper.asked for name, wrapper in around.items()}


class _Asked(nn.Module):
    """A module that notes what it is asked for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.asked, self.returned = inner, set[str](), list[Tensor]()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.inner(*args, **kwargs)
        self.returned.append(result.detach().flatten() if isinstance(result, Tensor) else torch.empty(0))
        return result

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            self.asked.add(name)
            return getattr(super().__getattr__("inner"), name)


def replace_module(module: nn.Module, name: str, new: nn.Module) -> None:
    """Put another module in the place of the one of this name."""
    path, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(path), attribute, new.train(module.training))


def empty(shape: tuple[int, ...], like: Tensor) -> nn.Parameter:
    """A parameter to be filled from the source."""
    return nn.Parameter(torch.empty(shape, dtype=like.dtype, device="meta"), requires_grad=False)


def stored_dtype(network: Network, parameter: str) -> str:
    """The type a tensor made from this one is stored in: its own, or float32 where codes are stored."""
    dtype = network.source.tensors[network.stored_name(parameter)].dtype
    return dtype if dtype in STORED and STORED[dtype].is_floating_point else "float32"


def shared(network: Network, parameter: str) -> bool:
    """Whether a tensor has several names."""
    return any(parameter in names for names in network.tied)
