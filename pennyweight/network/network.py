"""Sites and edges: what of a network can be compressed, and the activations between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pennyweight.network.sources.source import Source


@dataclass(frozen=True, kw_only=True)
class Site:
    """One tensor that can be compressed.

    Args:
        name: of the module, such as `model.layers.0.self_attn.q_proj`.
        block: index of the block it lives in; None outside the blocks.
        shape: `[out, in]`; for an embedding `[tokens, size]`.
        reads: the edge whose activation it multiplies.
        writes: the edge it produces.
        role: `linear` (a layer engines can load packed), `embedding`, `head`, or what only we understand: `transposed`
            (inputs first), `experts` (stacked in one tensor), `conv`, `matrix` (a bare parameter).
        tensor: its name in the checkpoint, where that is not `name.weight`.
        layout: how the matrix lies in it: `out in`, `in out`, `experts out in`, `experts in out`, `conv` or
            `conv transposed`.
    """

    name: str
    block: int | None
    shape: tuple[int, int]
    reads: str
    writes: str
    role: str
    tensor: str = ""
    layout: str = "out in"

    @property
    def parameter(self) -> str:
        """Name of its tensor in the checkpoint."""
        return self.tensor or f"{self.name}.weight"

    def matrix(self, stored: Tensor) -> Tensor:
        """The stored tensor as a matrix `[out, in]`; stacked experts one below the other, kernels flattened."""
        if self.layout == "in out":
            return stored.T
        if self.layout == "experts in out":
            return stored.transpose(1, 2).reshape(self.shape)
        return (stored.transpose(0, 1) if self.layout == "conv transposed" else stored).reshape(self.shape)

    def restored(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """The matrix as it is stored, in a tensor of this shape: the inverse of `matrix`."""
        if self.layout == "in out":
            return matrix.T.contiguous()
        if self.layout == "experts in out":
            return matrix.reshape(shape[0], shape[2], shape[1]).transpose(1, 2).contiguous()
        if self.layout == "conv transposed":
            return matrix.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1).contiguous()
        return matrix.reshape(tuple(shape))

    @property
    def elements(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One activation; sites that read the same edge share its statistics, and engines fuse them.

    Args:
        name: `module:output` of the module that made it, or `module:input` of the first that reads it.
        size: of its last dimension.
        producers: modules whose output it is; empty when it comes out of arithmetic between modules.
        consumers: sites that read it, in the order they do.
    """

    name: str
    size: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One of the modules a network repeats: materialised, run and freed as a whole.

    Args:
        name: of the module.
        parameters: full names of its tensors.
        returns_tuple: whether its forward returns a tuple whose first member is the hidden states.
    """

    name: str
    parameters: tuple[str, ...]
    returns_tuple: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A network as a value; the weights stay in `source` until they are asked for.

    Args:
        source: where the tensors are.
        blocks: in the order data flows through them.
        sites: everything that can be compressed.
        edges: activations read by sites.
        tied: sets of tensors that share storage; the first name is the one the checkpoint keeps.
        untouched: tensors nothing here understands, with the reason; they are kept as they are.
        outer: tensors outside the blocks.
        inputs: keyword arguments of a small forward pass, where the kind of model does not tell them.
    """

    source: Source
    blocks: tuple[Block, ...]
    sites: tuple[Site, ...]
    edges: Mapping[str, Edge]
    tied: tuple[tuple[str, ...], ...]
    untouched: Mapping[str, str]
    outer: tuple[str, ...]
    inputs: Mapping[str, Any] | None = None

    @property
    def by_name(self) -> Mapping[str, Site]:
        """Sites by name."""
        return {site.name: site for site in self.sites}

    def stored_name(self, parameter: str) -> str:
        """The name a tensor is stored under: its own, or that of the tensor it shares storage with."""
        if parameter in self.source.tensors:
            return parameter
        for names in self.tied:
            if parameter in names:
                return next(name for name in names if name in self.source.tensors)
        return parameter

    def groups(self) -> tuple[tuple[Site, ...], ...]:
        """Sites that get one decision: those that read one edge of a block (an engine fuses them), or share storage."""
        sets: dict[str, list[Site]] = {}
        for site in self.sites:
            stored = self.stored_name(site.parameter)
            key = f"tied {stored}" if any(stored in names for names in self.tied) else f"{site.block} {site.reads}"
            sets.setdefault(key, []).append(site)
        return tuple(tuple(group) for group in sets.values())
