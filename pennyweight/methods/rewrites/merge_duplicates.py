"""Merge channels and attention heads that are copies of each other.

Identity: w_i f(x) + w_j f(x) = (w_i + w_j) f(x) where the rows and biases that write channels i and j are equal.
Source: the inverse of Net2WiderNet (Chen, Goodfellow and Shlens, 2015, arXiv:1511.05641).
Algebraic: a column is the sum of several, rounded once.

An edge whose channels can be exchanged gives equal activations for equal inputs: exchanging i and j changes nothing
that is written, so it changes nothing that is read.

When: networks that were widened by copying. Cost: one comparison of rows an edge. Known failures: copies have to be
equal to the bit; those that were trained apart are not found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from pennyweight.network.changing.fold import exact, replaced_rows, rows
from pennyweight.network.changing.rebuild import Made, Read, Rebuilt, stored_dtype
from pennyweight.network.changing.shrink import Removal, exchangeable, noticed, shrunk
from pennyweight.network.finding.basis import Side, Symmetry
from pennyweight.network.network import Network
from pennyweight.promises import Deterministic, Promise


@dataclass(frozen=True, kw_only=True)
class MergeDuplicates:
    """Add the columns that read equal channels, and remove all of these channels but the first.

    Rows and biases have to be equal bit for bit in everything that writes the channel (gate and up, queries, keys and
    values). What cannot be removed (see `remove_dead_channels`) stays with columns of zeros.
    """

    name: ClassVar[str] = "merge_duplicates"
    paper: ClassVar[str] = "arXiv:1511.05641"
    needs: ClassVar[frozenset[str]] = frozenset()
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)

    def rewrite(self, network: Network) -> Network:
        """The smaller network; what it was if nothing occurs twice.

        Raises:
            InvalidTransform: something occurs twice in a checkpoint, and its config.json cannot say that it is gone.
        """
        edges = exchangeable(network)
        firsts = [_firsts(network, edge) for edge in edges]
        copies = [Removal(e, first != torch.arange(e.size)) for e, first in zip(edges, firsts, strict=True)]
        trials = noticed(network, copies)
        removals = [
            c if t.apart else Removal(c.symmetry, torch.zeros_like(c.channels))
            for c, t in zip(copies, trials, strict=True)
        ]
        merging = [(r.symmetry, first) for r, first in zip(removals, firsts, strict=True) if r.count]
        return shrunk(_merged(network, merging), removals) if merging else network


def _firsts(network: Network, edge: Symmetry) -> Int[Tensor, " size"]:
    """For every channel, the first whose rows are the same."""
    parts: list[list[bytes]] = [[] for _ in range(edge.size)]
    for side in edge.writers:
        values = rows(exact(network.source, network.stored_name(side.port.parameter)), side)
        for channel, own in enumerate(parts):
            own.append(values[:, side.index == channel].numpy().tobytes())
    first: dict[tuple[bytes, ...], int] = {}
    return torch.tensor([first.setdefault(tuple(own), channel) for channel, own in enumerate(parts)])


def _merged(network: Network, merging: list[tuple[Symmetry, Tensor]]) -> Network:
    """The network with the columns of copies added to those of the first, and zero after that."""
    made: dict[str, Made] = {}
    for edge, first in merging:
        for side in edge.readers:
            name = network.stored_name(side.port.parameter)
            info = network.source.tensors[name]
            earlier = made[name].of if name in made else None  # a tensor may read two edges
            made[name] = Made(info.shape, stored_dtype(network, name), _Added(name, side, first, earlier))
    return replace(network, source=Rebuilt(network.source, made, what=f"copies on {len(merging)} edges merged"))


@dataclass(frozen=True, eq=False)
class _Added:
    name: str
    side: Side
    first: Tensor
    earlier: Callable[[Read], Tensor] | None

    def __call__(self, read: Read) -> Tensor:
        tensor, index = self.earlier(read) if self.earlier else read(self.name), self.side.index
        values = rows(tensor, self.side)
        touched = (index >= 0).nonzero().flatten()
        places = touched[index[touched].argsort(stable=True)].reshape(len(self.first), -1)  # each channel's own columns
        added = values.clone()
        added[:, touched] = 0.0
        added.index_add_(1, places[self.first].flatten(), values[:, places.flatten()])
        return replaced_rows(tensor, self.side, added)
