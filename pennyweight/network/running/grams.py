"""What of an activation a change of basis leaves as it is: the inner products between its rows, token by token.

(x T)(x T)ᵀ = x xᵀ for every orthogonal T and every permutation: two networks in different bases can be compared where
the basis was only turned. That is so wherever a norm reads, for norms let nothing else through, and what a network
returns is not turned at all. A norm that subtracts the mean lets that change too; there the products are taken of rows
without their mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pennyweight.network.finding.edges import Edge, find_edges
from pennyweight.network.finding.inputs import example
from pennyweight.network.finding.trace import skeleton
from pennyweight.network.finding.watch import ADDED, CONVOLUTIONS, GROUPED, PRODUCTS, TABLES, TRANSPOSED, watch
from pennyweight.network.network import Network
from pennyweight.network.running.observe import LAYERS

ROWS = 256  # of an activation that are compared, evenly spread; an image has many more


class Grams:
    """Inner products of the rows of every activation that a weight writes or a block returns; see `run.Watcher`."""

    def __init__(self) -> None:
        self.batches: dict[int, dict[str, list[Float[Tensor, "2 rows rows"]]]] = {}

    @contextmanager
    def looking(self, batch: int, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """A context in which the outputs of these weights are looked at."""
        with _Looking(self, batch, parameters):
            yield

    def block(self, batch: int, name: str, hidden: Tensor) -> None:
        """Look at what a block returned."""
        self.add(batch, f"{name}:output", hidden)

    def add(self, batch: int, name: str, x: Tensor) -> None:
        """Keep the products of an activation, channels last, as it is and without its mean."""
        rows = x.detach().reshape(-1, x.shape[-1]).double()
        rows = rows[:: -(-len(rows) // ROWS) or 1]
        centred = rows - rows.mean(-1, keepdim=True)
        products = torch.stack([rows @ rows.T, centred @ centred.T])
        self.batches.setdefault(batch, {}).setdefault(name, []).append(products)

    def names(self) -> tuple[str, ...]:
        """Of all activations, in the order in which they were first written."""
        return tuple(dict.fromkeys(name for batch in self.batches.values() for name in batch))

    def change(self, other: Grams, name: str, centred: tuple[bool, bool] = (False, False)) -> float:
        """Largest relative change of an activation's products over all batches; infinite where its shape differs.

        Args:
            other: of the network after.
            name: of the activation.
            centred: whether rows are taken without their mean, here and there.
        """
        largest = 0.0
        for number, batch in self.batches.items():
            before, after = batch.get(name, []), other.batches.get(number, {}).get(name, [])
            if len(before) != len(after):
                return torch.inf
            for one, two in zip(before, after, strict=True):
                if one.shape != two.shape:
                    return torch.inf
                a, b = one[int(centred[0])], two[int(centred[1])]
                moved = float((b - a).norm() / a.norm().clamp(min=1e-300))
                largest = max(largest, moved if moved == moved else torch.inf)
        return largest


class _Looking(TorchFunctionMode):
    def __init__(self, grams: Grams, batch: int, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._grams, self._batch = grams, batch
        held = [(p.untyped_storage().data_ptr(), name.removesuffix(".weight")) for name, p in parameters.items()]
        self._tables = dict(reversed(held))  # a tied tensor is called by its first name where it is looked up
        self._layers = dict(held)  # and by its last one where something is multiplied by it

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in LAYERS or func in CONVOLUTIONS or func in TRANSPOSED or func in PRODUCTS or func in GROUPED:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
        elif func in ADDED:
            weight = args[2]
        elif func in TABLES:
            weight = kwargs["weight"] if "weight" in kwargs else args[0 if func is torch.embedding else 1]
        else:
            return result
        if isinstance(weight, Tensor) and weight.dim() > 1:
            names = self._tables if func in TABLES else self._layers
            name = names.get(weight.untyped_storage().data_ptr())
            if name is not None:
                axis = 1 if func in CONVOLUTIONS or func in TRANSPOSED else -1
                self._grams.add(self._batch, f"{name}:output", result.movedim(axis, -1))
        return result


def comparable(network: Network) -> dict[str, bool]:
    """Activations whose basis can only be turned, by the names `Grams` gives them, and whether their mean is free.

    Args:
        network: its weights are not looked at.

    Raises:
        InvalidModel: its code cannot be followed.
    """
    model = skeleton(network.source)
    watched = watch(model, network.inputs or example(model))
    edges = [edge for edge in find_edges(watched) if any(r.kind in ("norm", "output") for r in edge.readers)]
    tied = {name: names for names in network.tied for name in names}
    by_writer = {cut.writer: cut for cut in watched.cuts}
    found: dict[str, bool] = {}
    for edge in edges:
        for writer in (writer for atom in edge.atoms for writer in atom.writers):
            cut = by_writer.get(writer.name)
            if cut is not None:
                names = tied.get(cut.parameter, (cut.parameter,))
                name = names[0 if cut.role == "embedding" else -1].removesuffix(".weight")
                found[f"{name}:output"] = _mean_is_free(edge)
    widest = max(edges, key=lambda edge: len(edge.atoms), default=None)  # what the blocks hand on to each other
    found |= {f"{block.name}:output": widest is not None and _mean_is_free(widest) for block in network.blocks}
    return found


def _mean_is_free(edge: Edge) -> bool:
    kinds = {reader.norm.kind for reader in edge.readers if reader.norm is not None}
    return kinds == {"layer"} and not any(reader.kind == "output" for reader in edge.readers)
