"""Remove channels and attention heads that contribute nothing.

Identity: Σ_j w_j f_j(x) without the terms in which the column w_j of the reader is zero, or f_j(x) is.
Source: magnitude pruning leaves such channels (Han et al., 2015, arXiv:1506.02626, "dead neurons"); structured pruning
makes them on purpose.
Algebraic: the terms left out are zero; sums over fewer terms may round in another order.

Three ways to be dead, by what the edge's symmetries say. The columns of all readers are zero. The rows and biases of
all writers are zero, and what lies between makes zero of zero (tried). The rows of a writer are zero that the
activation is proportional to, such as the values of a head or the branch beside a gate.

When: after pruning. Cost: one look at every weight. Known failures: channels that are nearly dead stay; heads of
queries leave with the keys they share, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from pennyweight.network.changing.fold import channel_values, exact
from pennyweight.network.changing.shrink import Removal, exchangeable, noticed, shrunk
from pennyweight.network.finding.basis import PERMUTATION, Side, Symmetry
from pennyweight.network.finding.kinds import is_pair
from pennyweight.network.finding.trace import symmetries_of
from pennyweight.network.network import Network
from pennyweight.promises import Deterministic, Promise


@dataclass(frozen=True, kw_only=True)
class RemoveDeadChannels:
    """Make layers smaller by their dead channels, and attention by its dead heads (with the keys they share).

    In a module in memory every layer loses its own; where the code does not run without them (a size is written into
    it) they are left, and the description of the source says so. A checkpoint has one number for all layers in
    config.json, so each loses as many as the layer with the fewest. One channel of an edge always stays.
    """

    name: ClassVar[str] = "remove_dead_channels"
    paper: ClassVar[str] = "arXiv:1506.02626"
    needs: ClassVar[frozenset[str]] = frozenset()
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)

    def rewrite(self, network: Network) -> Network:
        """The smaller network; what it was if nothing is dead.

        Raises:
            InvalidTransform: something is dead in a checkpoint, and its config.json cannot say that it is gone.
        """
        edges = exchangeable(network)
        unread = [_all(network, edge.readers, edge.size) for edge in edges]
        unwritten = [_all(network, edge.writers, edge.size) for edge in edges]
        scaled = [_scaled_by_zero(network, edge) for edge in edges]
        trials = noticed(
            network, [Removal(e, a | b | c) for e, a, b, c in zip(edges, unread, unwritten, scaled, strict=True)]
        )
        removals = []
        for edge, read, written, zero, trial in zip(edges, unread, unwritten, scaled, trials, strict=True):
            dead = read | zero | written if trial.silent else read | zero
            if bool(dead.all()):
                dead[0] = False
            removals.append(Removal(edge, dead if trial.apart else torch.zeros_like(dead)))
        return shrunk(network, removals)


def _all(network: Network, sides: Sequence[Side], size: int) -> Bool[Tensor, " size"]:
    """Channels for which every one of some tensors holds nothing but zeros."""
    dead = torch.ones(size, dtype=torch.bool)
    for side in sides:
        tensor = exact(network.source, network.stored_name(side.port.parameter))
        dead &= channel_values(tensor, side, size) == 0
    return dead


def _scaled_by_zero(network: Network, edge: Symmetry) -> Bool[Tensor, " size"]:
    """Channels whose every column reads an activation that is proportional to rows of zeros."""
    silent = {(s.port.parameter, s.port.dim): torch.zeros(len(s.index), dtype=torch.bool) for s in edge.readers}
    for other in symmetries_of(network):
        if other.group == PERMUTATION or is_pair(other) or other.norms:
            continue
        if not all((s.port.parameter, s.port.dim) in silent and s.port.groups == 1 for s in other.readers):
            continue
        zero = _all(network, other.writers, other.size)
        for side in other.readers:
            held = silent[(side.port.parameter, side.port.dim)]
            if len(held) == len(side.index):
                held |= (side.index >= 0) & zero[side.index.clamp(min=0)]
    dead = torch.ones(edge.size, dtype=torch.bool)
    for side in edge.readers:
        alive = ~silent[(side.port.parameter, side.port.dim)] & (side.index >= 0)
        dead[side.index[alive]] = False
    return dead
