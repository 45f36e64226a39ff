"""A network whose linear weights are rounded as they are read: what plain rounding would do, without writing a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from pennyweight.formats import Grid, Scales
from pennyweight.network.network import Network
from pennyweight.network.sources.source import Derived, Source, TensorInfo, check_finite
from pennyweight.numerics.hashing import of_value


class RoundedSource(Derived):
    """Another source with some of its weights rounded to the nearest grid point.

    Scales are fitted on the first read and kept, a small part of the weights' size; codes are made on every read. So no
    more than one weight is in memory at once, as with the source itself.

    Args:
        source: where the weights are.
        grids: by the stored name of each tensor to be rounded, how. All other tensors are read as they are.
        search: whether each group's range is shrunk to the least squared error.

    Raises:
        InvalidModel: the source has no tensor of such a name (when it is read).
        InvalidFormat: a grid's groups do not divide the inputs (when it is read).
        InvalidWeights: a weight holds NaN or infinite values (when it is read).
    """

    def __init__(self, source: Source, grids: Mapping[str, Grid], *, search: bool = True) -> None:
        self.source = source
        self.grids = dict(grids)
        self.search = search
        self._scales: dict[str, Scales] = {}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Those of the source; a rounded one has the bytes it would take, without the padding of a container."""
        return {name: self._info(name, info) for name, info in self.source.tensors.items()}

    @property
    def fingerprint(self) -> str:
        """Hash of the source's own and of what is rounded how."""
        labels = sorted((name, grid.label()) for name, grid in self.grids.items())
        return of_value(["rounded", self.source.fingerprint, labels, self.search])

    @property
    def description(self) -> str:
        """What was rounded, and from what."""
        labels = ", ".join(sorted({grid.label() for grid in self.grids.values()}))
        return f"{len(self.grids)} tensors rounded in memory to {labels}; {self.source.description}"

    def read(self, name: str) -> Tensor:
        """A tensor as the source has it, or in float32 what its codes stand for `[out, in]`."""
        weight = self.source.read(name)
        grid = self.grids.get(name)
        if grid is None:
            return weight
        weight = weight.float()
        check_finite(name, weight)  # codes have no NaN: rounding would hide it
        if name not in self._scales:
            self._scales[name] = grid.fit(weight, search=self.search)
        scales = self._scales[name]
        return grid.decode(scales.part(scales.round(weight)).tensors, tuple(weight.shape))

    def _info(self, name: str, info: TensorInfo) -> TensorInfo:
        grid = self.grids.get(name)
        if grid is None:
            return info
        return replace(info, dtype="float32", bytes=-(-grid.stored_bits(info.shape) // 8))


def rounded(network: Network, grid: Grid, *, search: bool = True) -> Network:
    """The same network with the weights of its linear sites rounded to nearest; embeddings and head stay.

    Args:
        network: what is rounded; it is not changed.
        grid: the format. Where its groups do not divide a site's inputs, a row has one scale.
        search: whether each group's range is shrunk to the least squared error.
    """
    grids: dict[str, Grid] = {}
    kept = {network.stored_name(site.parameter) for site in network.sites if site.role != "linear"}
    for site in network.sites:
        name = network.stored_name(site.parameter)
        if name in kept:  # a tensor that the embedding shares is no linear weight alone
            continue
        fits = grid.group_size is None or site.shape[1] % grid.group_size == 0
        grids[name] = grid if fits else replace(grid, group_size=None)
    return replace(network, source=RoundedSource(network.source, grids, search=search))
