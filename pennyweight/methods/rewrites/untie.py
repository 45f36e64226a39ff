"""Give the output head a tensor of its own where it shares that of the embedding.

Source: common practice; a step of QuaRot (arXiv:2404.00456). The final norm's gain goes into the head alone, which a
shared tensor cannot take: it would scale the embedding too.
Bitwise: the same numbers are used, stored twice.

When: the head is to be rounded, rotated or scaled in another way than the embedding. Cost: the head's bytes once more.
Known failures: none; what shared a tensor counts twice in a budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from pennyweight.network.changing.fold import exact
from pennyweight.network.network import Network
from pennyweight.network.sources.source import Derived, Source, TensorInfo
from pennyweight.numerics.hashing import of_value
from pennyweight.promises import Deterministic, Promise


@dataclass(frozen=True, kw_only=True)
class Untie:
    """Store a tied tensor once for each of its names; costs the size of the embedding."""

    name: ClassVar[str] = "untie"
    paper: ClassVar[str] = "arXiv:2404.00456"
    needs: ClassVar[frozenset[str]] = frozenset()
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)

    def rewrite(self, network: Network) -> Network:
        """The same network without tied tensors; what it was if there are none."""
        if not network.tied:
            return network
        aliases = {name: network.stored_name(name) for names in network.tied for name in names}
        return replace(network, source=Untied(network.source, aliases), tied=())


class Untied(Derived):
    """Another source with some tensors under more than one name.

    Args:
        source: where the weights are.
        aliases: the stored name of every name.
    """

    def __init__(self, source: Source, aliases: Mapping[str, str]) -> None:
        self.source, self._aliases = source, dict(aliases)
        self._tensors: Mapping[str, TensorInfo] = {
            **source.tensors, **{name: replace(source.tensors[stored], name=name) for name, stored in aliases.items()}
        }  # fmt: skip

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Those of the source, under all their names."""
        return self._tensors

    @property
    def config(self) -> Mapping[str, Any]:
        """That of the source, with the tie undone."""
        return {**self.source.config, "tie_word_embeddings": False}

    @property
    def module(self) -> nn.Module | None:
        """A copy of the module in memory whose tied parameters are apart, if the source is one."""
        module = getattr(self.source, "module", None)
        return None if module is None else untied_module(module)

    @property
    def fingerprint(self) -> str:
        """Hash of the source's own and of the names."""
        return of_value(["untied", self.source.fingerprint, sorted(self._aliases.items())])

    @property
    def description(self) -> str:
        """What was untied, and of what."""
        return f"{len(self._aliases)} names untied; {self.source.description}"

    def read(self, name: str) -> Tensor:
        """A tensor under any of its names."""
        return self.source.read(self._aliases.get(name, name))

    def exact(self, name: str) -> Tensor:
        """The same, not rounded where the source was rewritten."""
        return exact(self.source, self._aliases.get(name, name))


def untied_module(module: nn.Module) -> nn.Module:
    """A copy in which every name has a parameter of its own."""
    import copy

    own, seen = copy.deepcopy(module), set[int]()
    for name, parameter in list(own.named_parameters(remove_duplicate=False)):
        if id(parameter) in seen:
            path, _, attribute = name.rpartition(".")
            copied = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            setattr(own.get_submodule(path), attribute, copied)
        seen.add(id(parameter))
    return own
