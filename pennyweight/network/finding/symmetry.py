"""Which changes of basis an activation lets through, found by experiment.

`watch` leaves a network of writers and readers with no weights between them. Two of them belong to one *edge* when a
reader's derivative with respect to a writer is not nothing, or when they share a tensor. On every edge, transforms are
tried on the writers' numbers: if what the readers see is transformed alike, whatever lies between (a gate, a ReLU,
attention, a sum) lets them through, and the transform can be folded into the weights on one side and its inverse into
those on the other. Nothing is concluded from names or from kinds of operations; all edges are tried in the same passes.

What is tried, from weak to strong: positive scales, signs, whole blocks of channels mixed (heads are found that way),
permutations, shifts; on two writers at once, a scale and its inverse (queries and keys, with the pairs that rotary
positions tie together). Norms are equivariant to permutations, and to rotations where they hold no gain: edges that
meet in norms form a *space*, such as a residual stream, which is transformed as a whole or not at all. A convolution
that keeps every channel apart passes permutations on as a norm does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from scipy.cluster.hierarchy import DisjointSet
from torch import nn

from pennyweight.network.finding.basis import (
    DIAGONAL,
    INVERTIBLE,
    ORTHOGONAL,
    PERMUTATION,
    POSITIVE,
    Side,
    Symmetry,
    merged,
)  # fmt: skip
from pennyweight.network.finding.edges import Edge, Maps, find_edges, overlap, together
from pennyweight.network.finding.experiments import Explorer, Seen, explore
from pennyweight.network.finding.watch import Change, Port, Reader, Watched, watch

__all__ = [
    "DIAGONAL", "INVERTIBLE", "ORTHOGONAL", "PERMUTATION", "POSITIVE", "Side", "Symmetry", "symmetries",
]  # fmt: skip


def symmetries(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Symmetry, ...]:
    """Everything that can be changed about a network's basis without changing its function.

    Args:
        model: in evaluation mode; its weights are not looked at and may be on the meta device.
        inputs: keyword arguments of its forward: a few tokens, or a small image.

    Raises:
        InvalidModel: the forward pass cannot be followed.
    """
    base = watch(model, inputs)
    edges = find_edges(base)
    _freed(base)
    explorers = {index: explore(edge) for index, edge in enumerate(edges)}
    wishes: dict[int, dict[str, Change]] = {}
    found: dict[int, list[Symmetry]] = {}
    for index, explorer in explorers.items():
        _advance(index, explorer, None, wishes, found)
    while wishes:
        new = watch(model, inputs, changes=together(*wishes.values()), grad=False, like=base)
        seen = {name: reader.tensor for name, reader in new.readers.items()}
        for index in list(wishes):
            del wishes[index]
            _advance(index, explorers[index], seen, wishes, found)
    local = [symmetry for index in sorted(found) for symmetry in found[index]]
    audit = _Audit(edges, base)
    return tuple(s for s in [*_spaces(edges), *local] if audit.passes(s))


def _freed(base: Watched) -> None:
    """Derivatives are not needed any more."""
    base.choices.clear()
    for reader in base.readers.values():
        reader.tensor = reader.tensor.detach()


def _advance(
    index: int, explorer: Explorer, seen: Seen | None, wishes: dict[int, dict[str, Change]],
    found: dict[int, list[Symmetry]],
) -> None:  # fmt: skip
    try:
        wishes[index] = next(explorer) if seen is None else explorer.send(seen)
    except StopIteration as stop:
        found[index] = stop.value


class _Audit:
    """Every use of every tensor, so that no symmetry forgets one."""

    def __init__(self, edges: list[Edge], base: Watched) -> None:
        self._uses: dict[tuple[str, int], list[tuple[Port, bool]]] = {}
        for edge in edges:
            for atom in edge.atoms:
                for port in atom.ports:
                    self._uses.setdefault((port.parameter, port.dim), []).append((port, False))
            for reader in edge.readers:
                if reader.kind == "weight":
                    for port in reader.ports:
                        self._uses.setdefault((port.parameter, port.dim), []).append((port, True))
        # What is a weight here and a number there cannot be followed.
        self._frozen = base.bare & {cut.parameter for cut in base.cuts}

    def passes(self, symmetry: Symmetry) -> bool:
        """Whether all that uses the tensors it changes changes with them."""
        taken: dict[tuple[object, ...], list[Side]] = {}
        for side in symmetry.sides:
            taken.setdefault((side.port.parameter, side.port.dim, side.port.channels), []).append(side)
        for (parameter, *_), sides in taken.items():
            port = sides[0].port
            if parameter in self._frozen:
                return False
            uses = [use for use in self._uses.get((port.parameter, port.dim), []) if overlap(use[0], port)]
            if any(use.kind != port.kind or not _covers(port, use, reads) for use, reads in uses):
                return False
            if len({reads for _, reads in uses}) == 2:  # tied: it takes what is its own inverse transposed
                if symmetry.group not in (ORTHOGONAL, PERMUTATION) or len(sides) != 2:
                    return False
                if not torch.equal(sides[0].index, sides[1].index):
                    return False
            elif len(sides) != 1:
                return False
        return True


def _covers(port: Port, use: Port, reads: bool) -> bool:
    """Whether what changes along a port is all that a use of it uses."""
    if reads or port.channels is None or use.channels is None:
        return port.channels == use.channels
    return set(use.channels) <= set(port.channels)


# Spaces: edges joined by norms


def _spaces(edges: list[Edge]) -> list[Symmetry]:
    """What the activations before and after norms let through together."""
    home: dict[str, int] = {}
    for number, edge in enumerate(edges):
        for atom in edge.atoms:
            for writer in atom.writers:
                home.setdefault(writer.name, number)
    joined = DisjointSet(range(len(edges)))
    joints: list[tuple[int, Reader, int]] = []
    for number, edge in enumerate(edges):
        for reader in edge.readers:
            after = home.get(_behind(reader))
            if after is not None:
                joints.append((number, reader, after))
                joined.merge(number, after)
    found = []
    for members in joined.subsets():
        inside = [joint for joint in joints if joint[0] in members]
        if inside:
            found += _Space(edges, sorted(members), inside).symmetries()
    return found


def _behind(reader: Reader) -> str:
    """The writer that takes a reader's channels on one by one: a norm's, or that of a convolution of single ones."""
    single = reader.kind == "weight" and any(1 < port.groups == reader.size for port in reader.ports)
    return reader.name.replace(":input", ":output") if reader.kind == "norm" or single else ""


class _Space:
    """Edges that a change of basis goes through together, and where their channels are in it.

    The channels of an edge are those of the space, or several copies of them one after the other (a norm over four
    neighbouring tokens).
    """

    def __init__(self, edges: list[Edge], members: list[int], joints: list[tuple[int, Reader, int]]) -> None:
        self.edges = {number: edges[number] for number in members}
        self.joints = joints
        self.norms = [reader for _, reader, _ in joints if reader.kind == "norm"]
        self.kinds = {reader.norm.kind for reader in self.norms if reader.norm is not None}

    def symmetries(self) -> list[Symmetry]:
        """Rotations and orders of its channels, as far as everything in it allows."""
        if any(r.kind == "output" for edge in self.edges.values() for r in edge.readers):
            return []
        found = []
        if self.kinds and self.kinds <= {"rms", "layer"} and len(self.norms) == len(self.joints) and self._gains_fold():
            held = {r.name.split(":input")[0] for r in self.norms if r.ports}
            found += self._made(ORTHOGONAL, "layer" in self.kinds, tuple(sorted(held, key=self._place)))
        if self.kinds <= {"rms", "layer", "affine"}:
            found += self._made(PERMUTATION)
        return found

    def _place(self, norm: str) -> int:
        return next(i for i, reader in enumerate(self.norms) if reader.name.split(":input")[0] == norm)

    def _gains_fold(self) -> bool:
        """Whether every norm's gain and bias could be moved into the weights behind it."""
        for _, reader, after in self.joints:
            edge, name = self.edges[after], _behind(reader)
            own = [atom for atom in edge.atoms if any(w.name == name for w in atom.writers)]
            if not reader.ports:
                continue
            behind = [r for r in edge.readers if any(edge.reaches(atom, r) for atom in own)]
            if any(r.kind != "weight" for r in behind):
                return False
            if any(edge.reaches(a, r) for r in behind for a in edge.atoms if a not in own):
                return False
        return True

    def _made(self, group: str, fixes_mean: bool = False, norms: tuple[str, ...] = ()) -> list[Symmetry]:
        maps = {number: self._maps(edge, group) for number, edge in self.edges.items()}
        sizes = {number: self._size(number, maps[number]) for number in self.edges}
        size = min((s for s in sizes.values() if s), default=0)
        if size < 2 or any(not s for s in sizes.values()):
            return []
        same = torch.arange(size)
        index = {number: same for number, s in sizes.items() if s == size}
        for number, reader, after in self.joints:  # copies of the space
            if sizes[number] == size:
                follows = maps[number][size][reader.name]
                if sizes[after] != len(follows) or bool((follows < 0).any()):
                    return []
                if not torch.equal(index.setdefault(after, follows), follows):
                    return []
        sides: list[Side] = []
        for number, edge in self.edges.items():
            if number not in index:
                return []
            own, follow = sizes[number], index[number]
            here = {n: torch.where(m >= 0, follow[m.clamp(min=0)], -1) for n, m in maps[number][own].items()}
            for _, reader, after in (joint for joint in self.joints if joint[0] == number):
                if after not in index or not torch.equal(here[reader.name], index[after]):
                    return []
            reading = edge.reader_sides(here)
            if reading is None:
                return []
            for atom in edge.atoms:
                sides += atom.sides(follow) if atom.size == own and not atom.chooses else []
            sides += [side for side in reading if side.port.groups == 1 or side.port.groups != len(side.index)]
        for number, reader, after in self.joints:
            if reader.norm is not None and number in index:
                name = reader.name.split(":input")[0]
                sides += [Side(Port(f"{name}.{b}", 0, "buffer"), False, index[after]) for b in reader.norm.buffers]
        kept = merged(sides)
        if kept is None or any(s.port.groups > 1 and (s.inverse or group == ORTHOGONAL) for s in kept):
            return []
        if any(1 < s.port.groups != len(s.index) for s in kept):
            return []
        return [Symmetry(self.joints[0][1].name, group, size, size, kept, fixes_mean=fixes_mean, norms=norms)]

    @staticmethod
    def _maps(edge: Edge, group: str) -> dict[int, Maps]:
        """By size of its atoms: how readers follow a change of this group, where all of them do."""
        found: dict[int, Maps] = {}
        for size, passed in edge.joint.items():
            maps = passed.get(INVERTIBLE) or (passed.get(PERMUTATION) if group == PERMUTATION else None)
            if maps:
                found[size] = maps
        return found

    def _size(self, number: int, maps: dict[int, Maps]) -> int:
        """The size of the atoms of an edge that its norms read and that norms write; 0 if there is no such."""
        read = [reader for n, reader, _ in self.joints if n == number]
        written = {reader.size for _, reader, after in self.joints if after == number}
        for size, by_reader in maps.items():
            follows = [by_reader[reader.name] for reader in read]
            if written <= {size} and all(bool((f >= 0).all()) for f in follows):
                return size
        return 0
