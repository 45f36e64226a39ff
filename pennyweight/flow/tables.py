"""The price of storing what lies outside the blocks, an embedding table or a head, found by measuring it.

What an error of a table costs is not in the statistics: an embedding changes what every block sees, a head changes the
output directly, and where both are one tensor it does both. So it is done: the table is stored in each format and the
network is run on the windows that the backward pass ran on. Rounding to nearest is all a table gets; in most models it
is read as embedding, a row at a time, and has no gram matrix to sweep by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pennyweight.formats import Format
from pennyweight.methods.quantization import RoundToNearest
from pennyweight.network.network import Network, Site
from pennyweight.network.running.stream import Stream
from pennyweight.network.sources.source import Derived, Source, TensorInfo, check_finite
from pennyweight.numerics.memory import release

METHOD = RoundToNearest.name
ROWS = 64  # positions whose log-probabilities of the whole vocabulary are in memory at once


class WithTable(Derived):
    """A source one of whose tensors is another one.

    Args:
        source: of all others.
        name: of the tensor.
        values: of it.
    """

    def __init__(self, source: Source, name: str, values: Tensor) -> None:
        self.source, self._name, self._values = source, name, values

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Those of the source."""
        info = self.source.tensors[self._name]
        return {**self.source.tensors, self._name: replace(info, dtype="float32", bytes=4 * self._values.numel())}

    @property
    def fingerprint(self) -> str:
        """That of the source: nothing is kept of this one."""
        return self.source.fingerprint

    @property
    def description(self) -> str:
        """What it is."""
        return f"{self.source.description}, with another {self._name}"

    def read(self, name: str) -> Tensor:
        """The values, or what the source has."""
        return self._values.clone() if name == self._name else self.source.read(name)


@torch.no_grad()
def prices(network: Network, site: Site, formats: Sequence[Format], ids: Tensor) -> list[float]:
    """Mean KL(network || the same with one table stored in a format), nats per token, for each format.

    Args:
        network: that is compressed.
        site: an embedding or a head; both, where they are one tensor.
        formats: to store it in.
        ids: windows `[n, length]` of token ids.
    """
    name = network.stored_name(site.parameter)
    weight = network.source.read(name).float()
    check_finite(name, weight)
    usual = Stream(network)
    states = usual.forward(ids)
    found = []
    for format in formats:
        part = format.store(weight)
        values = format.decode(part.tensors, tuple(weight.shape))
        other = Stream(replace(network, source=WithTable(network.source, name, values)))
        found.append(_kl(usual, states, other, other.forward(ids) if site.role == "embedding" else states))
        release()
    return found


def _kl(usual: Stream, states: Tensor, other: Stream, changed: Tensor) -> float:
    total, before, after = 0.0, states.flatten(0, 1), changed.flatten(0, 1)
    with usual.end() as finish, other.end() as finish_other:
        for row in range(0, len(before), ROWS):
            p = finish(before[row : row + ROWS]).double().log_softmax(-1)
            q = finish_other(after[row : row + ROWS]).double().log_softmax(-1)
            total += float((p.exp() * (p - q)).sum())
    return max(total / len(before), 0.0)
