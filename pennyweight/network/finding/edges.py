"""Edges: what is written and read together, found from derivatives and from tensors that are shared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import torch
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor

from pennyweight.network.finding.basis import Side, merged
from pennyweight.network.finding.watch import Change, Port, Reader, Watched, Writer
from pennyweight.numerics.random import stream

Maps = Mapping[str, Tensor]  # by reader: which channel of a transform each of its channels follows


@dataclass(eq=False)
class Atom:
    """Channels that are written together: a layer's outputs, or the third of them that are the values."""

    name: str
    channels: tuple[int, ...] | None
    writers: list[Writer] = field(default_factory=list)
    parts: tuple[Atom, ...] = ()  # if it is several atoms of the same writers
    chooses: bool = False  # something is picked by it, which a small change turns upside down

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.channels) if self.channels is not None else self.writers[0].size

    def changed(self, change: Change) -> dict[str, Change]:
        """What to do to every writer, so that these channels (last) are changed and no others."""

        def of(writer: Writer) -> Change:
            def apply(values: Tensor) -> Tensor:
                moved = values.movedim(writer.axis, -1).clone()
                if self.channels is None:
                    moved = change(moved)
                else:
                    chosen = torch.tensor(self.channels)
                    moved[..., chosen] = change(moved[..., chosen])
                return moved.movedim(-1, writer.axis)

            return apply

        return {writer.name: of(writer) for writer in self.writers}

    @property
    def ports(self) -> list[Port]:
        """Where its channels are stored."""
        found = []
        for writer in self.writers:
            for port in writer.ports:
                inner = port.channels or range(writer.size)
                own = port.channels if self.channels is None else tuple(inner[c] for c in self.channels)
                found.append(replace(port, channels=own))
        return list(dict.fromkeys(found))

    @property
    def holds(self) -> bool:
        """Whether every writer has a tensor that can take a change."""
        return all(writer.ports for writer in self.writers)

    @property
    def mixes(self) -> bool:
        """Whether channels may change places and be mixed: not those of a norm or of a grouped convolution."""
        return self.holds and all(w.kind != "norm" and w.ports[0].groups == 1 for w in self.writers)

    def sides(self, index: Tensor, inverse: bool = False) -> list[Side]:
        """Its tensors as sides of a symmetry."""
        return [Side(port, inverse, index) for port in self.ports]


@dataclass(eq=False)
class Edge:
    """Atoms and readers that only change together, with what was found out about all of its atoms at once."""

    atoms: list[Atom]
    readers: list[Reader]
    reach: dict[str, set[int]]  # by reader: the ids of atoms that change what it sees
    biases: dict[str, Port]
    convolutions: set[str]
    joint: dict[int, dict[str, Maps]] = field(default_factory=dict)  # by size: groups that passed for all atoms

    @property
    def name(self) -> str:
        """That of its first reader."""
        return self.readers[0].name

    def reaches(self, atom: Atom, reader: Reader) -> bool:
        """Whether a reader sees an atom."""
        return any(id(part) in self.reach[reader.name] for part in atom.parts or (atom,))

    def reader_sides(self, maps: Maps) -> tuple[Side, ...] | None:
        """Readers as sides of a symmetry; None when a layer that is used twice would have to change in two ways."""
        sides = []
        for reader in self.readers:
            if reader.kind == "weight":
                index = maps.get(reader.name, torch.full((reader.size,), -1))
                bias = self.biases.get(reader.name.split("#")[0])
                sides += [Side(port, True, index, bias) for port in reader.ports]
        found = merged(sides)
        return None if found is None else tuple(side for side in found if bool((side.index >= 0).any()))

    def touched(self, maps: Maps) -> list[Reader]:
        """Readers that see a change."""
        return [r for r in self.readers if r.name in maps and bool((maps[r.name] >= 0).any())]


def last(reader: Reader, tensor: Tensor) -> Tensor:
    """What a reader sees, channels last."""
    return tensor.movedim(reader.axis, -1)


def all_changed(atoms: Iterable[Atom], change: Change) -> dict[str, Change]:
    """The same change to several atoms."""
    return together(*(atom.changed(change) for atom in atoms))


def together(*parts: Mapping[str, Change]) -> dict[str, Change]:
    """Changes of several atoms; those of one writer follow each other."""
    changes: dict[str, Change] = {}
    for part in parts:
        for name, change in part.items():
            first = changes.get(name)
            changes[name] = change if first is None else partial(_both, first, change)
    return changes


def _both(first: Change, second: Change, x: Tensor) -> Tensor:
    return second(first(x))


def find_edges(watched: Watched) -> list[Edge]:
    """The edges of a network, in the order in which they are read."""
    atoms, readers = _atoms(watched), list(watched.readers.values())
    nodes = DisjointSet([*(("atom", i) for i in range(len(atoms))), *(("reader", i) for i in range(len(readers)))])
    reach = _reach(watched, atoms, readers)
    number = {id(atom): i for i, atom in enumerate(atoms)}
    for atom in _choosing(watched, atoms):
        atom.chooses = True
    for i, reader in enumerate(readers):
        for seen in reach[reader.name]:
            nodes.merge(("reader", i), ("atom", number[seen]))
    # The same part of the same dimension of the same tensor changes once.
    homes: dict[tuple[str, int], list[tuple[Port, tuple[str, int]]]] = {}
    users = [(("atom", i), atom.ports) for i, atom in enumerate(atoms)]
    users += [(("reader", i), list(r.ports)) for i, r in enumerate(readers) if r.kind == "weight"]
    for node, ports in users:
        for port in ports:
            known = homes.setdefault((port.parameter, port.dim), [])
            for other, first in known:
                if overlap(port, other):
                    nodes.merge(first, node)
            known.append((port, node))
    biases = _biases(watched)
    convolutions = {cut.parameter for cut in watched.cuts if cut.role == "conv"}
    edges = []
    for members in nodes.subsets():
        edge = Edge(
            [atoms[i] for i in sorted(i for kind, i in members if kind == "atom")],
            [readers[i] for i in sorted(i for kind, i in members if kind == "reader")],
            reach, biases, convolutions,
        )  # fmt: skip
        if edge.atoms and edge.readers:
            edges.append(edge)
    order = {id(reader): i for i, reader in enumerate(readers)}
    return sorted(edges, key=lambda edge: order[id(edge.readers[0])])


def overlap(a: Port, b: Port) -> bool:
    """Whether two ports of one dimension of one tensor have channels in common."""
    if a.channels is None or b.channels is None or a.channels == b.channels:
        return True
    return not set(a.channels).isdisjoint(b.channels)


def _atoms(watched: Watched) -> list[Atom]:
    made: dict[tuple[Any, ...], Atom] = {}
    for writer in watched.writers.values():
        for channels in _parts(writer):
            port = writer.ports[0] if writer.ports else None
            key = (port.parameter, port.dim, port.channels, channels) if port else (writer.name, channels)
            label = writer.name if channels is None else f"{writer.name}[{channels[0]}:{channels[-1] + 1}]"
            made.setdefault(key, Atom(label, channels)).writers.append(writer)
    return list(made.values())


def _parts(writer: Writer) -> list[tuple[int, ...] | None]:
    """Disjoint sets of channels that are always used apart; one, None, where something uses them all together."""
    whole = frozenset(range(writer.size))
    joined: list[set[int]] = []
    for used in set(writer.used):
        if used == whole:
            return [None]
        touching = [s for s in joined if s & used]
        joined = [s for s in joined if not s & used] + [reduce(set.union, touching, set(used))]
    rest = whole - set().union(*joined)
    joined += [set(rest)] if rest and joined else []
    return [None] if len(joined) < 2 else [tuple(sorted(part)) for part in sorted(joined, key=min)]


def _reach(watched: Watched, atoms: Sequence[Atom], readers: Sequence[Reader]) -> dict[str, set[int]]:
    """By reader: the ids of atoms that its derivative says it depends on."""
    known: dict[int, set[int]] = {}
    for reader in readers:
        if id(reader.tensor) not in known:
            known[id(reader.tensor)] = {id(atom) for atom in _behind(reader.tensor, watched, atoms)}
    return {reader.name: known[id(reader.tensor)] for reader in readers}


def _choosing(watched: Watched, atoms: Sequence[Atom]) -> list[Atom]:
    return [atom for tensor in watched.choices for atom in _behind(tensor, watched, atoms)]


def _behind(tensor: Tensor, watched: Watched, atoms: Sequence[Atom]) -> list[Atom]:
    """The atoms that a tensor's derivative says it depends on."""
    if not tensor.requires_grad:
        return []
    leaves = list(watched.writers.values())
    weights = torch.randn(tensor.shape, generator=stream(0, "reach"), dtype=tensor.dtype)
    gradients = torch.autograd.grad(
        tensor, [leaf.tensor for leaf in leaves], weights, retain_graph=True, allow_unused=True
    )  # fmt: skip
    by_writer = {leaf.name: gradient for leaf, gradient in zip(leaves, gradients, strict=True) if gradient is not None}
    found = []
    for atom in atoms:
        for writer in atom.writers:
            gradient = by_writer.get(writer.name)
            if gradient is not None:
                moved = gradient.movedim(writer.axis, -1)
                if atom.channels is None or bool((moved[..., list(atom.channels)] != 0).any()):
                    found.append(atom)
                    break
    return found


def _biases(watched: Watched) -> dict[str, Port]:
    """By reader: the bias added behind it."""
    found = {}
    for cut in watched.cuts:
        ports = [port for port in watched.writers[cut.writer].ports if port.kind == "bias"]
        if ports:
            found[f"{cut.name}:input"] = ports[0]
    return found
