"""Which changes of basis an activation lets through, found by experiment.

`watch` leaves a network of writers and readers with no weights between them. Two of them belong to one *edge* when a
reader's derivative with respect to a writer is not nothing, or when they share a tensor. On every edge, transforms are
tried on the writers' numbers: if what the readers see is transformed alike, whatever lies between (a gate, a ReLU,
attention, a sum) lets them through, and the transform can be folded into the weights on one side and its inverse into
those on the other. Nothing is concluded from names or from kinds of operations; all edges are tried in the same passes.

What is tried, from weak to strong: positive scales, signs, whole blocks of channels mixed (heads are found that way),
permutations, shifts; on two writers at once, a scale and its inverse (queries and keys, with the pairs that rotary
positions tie together). Norms are equivariant to permutations, and to rotations where they hold no gain: edges that meet
in norms form a *space*, such as a residual stream, which is transformed as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import torch
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor, nn

from pennyweight.network.watch import Change, Port, Reader, Watched, Writer, watch
from pennyweight.numerics.random import stream

CLOSE = 1e-8
MOST_ATOMS = 12  # of an edge that are tried one by one; a residual stream has hundreds, which only go together
INVERTIBLE, ORTHOGONAL, DIAGONAL, POSITIVE, PERMUTATION = (
    "invertible", "orthogonal", "diagonal", "positive", "permutation"
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Side:
    """A tensor that takes part in a change of basis.

    Args:
        port: the tensor and the dimension that carries the channels.
        inverse: whether it takes the inverse transposed (a reader, or the partner of a pair) and not the transform.
        index: for every channel of the port, which channel of the transform it follows, or -1 for none.
        bias: for a reader, the bias behind it, which a shift would go into; None where the layer has none.
    """

    port: Port
    inverse: bool
    index: Tensor
    bias: Port | None = None


@dataclass(frozen=True, eq=False)
class Symmetry:
    """A group of transforms that an edge lets through, and the tensors that take them.

    Args:
        name: of the edge; those of one edge are told apart by what is transformed, such as `mlp.up_proj:output`.
        group: `invertible`, `orthogonal`, `diagonal`, `positive` or `permutation`.
        size: channels of the transform.
        block: how many of them mix: transforms are block-diagonal with blocks of this size.
        sides: everything that has to change together.
        shift: whether adding a constant to the activation is let through as well.
        fixes_mean: the transform has to keep the vector of ones, for norms that subtract the mean.
        norms: names of norms that have to hold no gain and no bias first.
    """

    name: str
    group: str
    size: int
    block: int
    sides: tuple[Side, ...]
    shift: bool = False
    fixes_mean: bool = False
    norms: tuple[str, ...] = ()

    @property
    def writers(self) -> tuple[Side, ...]:
        """Sides that produce the activation."""
        return tuple(side for side in self.sides if not side.inverse)

    @property
    def readers(self) -> tuple[Side, ...]:
        """Sides that take the inverse."""
        return tuple(side for side in self.sides if side.inverse)

    def label(self) -> str:
        """Such as `invertible, 9 blocks of 64`."""
        blocks = f", {self.size // self.block} blocks of {self.block}" if 1 < self.block < self.size else ""
        shift = ", shift" if self.shift else ""
        return f"{self.group} ({self.size}{blocks}{shift})"


def symmetries(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Symmetry, ...]:
    """Everything that can be changed about a network's basis without changing its function.

    Args:
        model: its weights are not looked at and may be on the meta device.
        inputs: keyword arguments of its forward: a few tokens, or a small image.

    Raises:
        InvalidModel: the forward pass cannot be followed.
    """
    base = watch(model, inputs)
    edges = _edges(base)
    explorers = {index: _explore(edge, base) for index, edge in enumerate(edges)}
    wishes: dict[int, dict[str, Change]] = {}
    found: dict[int, list[Symmetry]] = {}
    for index, explorer in explorers.items():
        _advance(index, explorer, None, wishes, found)
    while wishes:
        merged: dict[str, Change] = {}
        for wish in wishes.values():
            merged |= wish
        seen = {name: r.tensor for name, r in watch(model, inputs, changes=merged, grad=False).readers.items()}
        for index in list(wishes):
            del wishes[index]
            _advance(index, explorers[index], seen, wishes, found)
    local = [symmetry for index in sorted(found) for symmetry in found[index]]
    return tuple(s for s in (_checked(s) for s in [*_spaces(edges, base), *local]) if s is not None)


Explorer = Generator[dict[str, Change], dict[str, Tensor], list[Symmetry]]


def _advance(
    index: int, explorer: Explorer, seen: dict[str, Tensor] | None, wishes: dict[int, dict[str, Change]],
    found: dict[int, list[Symmetry]],
) -> None:  # fmt: skip
    try:
        wishes[index] = next(explorer) if seen is None else explorer.send(seen)
    except StopIteration as stop:
        found[index] = stop.value


# Edges: who is connected with whom


@dataclass(eq=False)
class _Atom:
    """Channels that are written together: a layer's outputs, or the third of them that are the values."""

    name: str
    channels: tuple[int, ...] | None
    writers: list[Writer] = field(default_factory=list)

    @property
    def size(self) -> int:
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

    def sides(self, index: Tensor, inverse: bool = False) -> list[Side]:
        seen: dict[tuple[str, int], Side] = {}
        for writer in self.writers:
            for port in writer.ports:
                held = port
                if self.channels is not None:
                    inner = port.channels or range(writer.size)
                    held = Port(port.parameter, port.dim, port.kind, tuple(inner[c] for c in self.channels),
                                port.offset, port.groups)  # fmt: skip
                seen[(held.parameter, held.dim)] = Side(held, inverse, index)
        return list(seen.values())


@dataclass(eq=False)
class _Edge:
    """Atoms and readers that only change together, with what was found out about all of its atoms at once."""

    atoms: list[_Atom]
    readers: list[Reader]
    biases: dict[str, Port]
    joint: dict[int, str] = field(default_factory=dict)  # by size: the strongest group that passed for all atoms

    @property
    def name(self) -> str:
        return self.readers[0].name if self.readers else self.atoms[0].name


def _atoms(watched: Watched) -> list[_Atom]:
    made: dict[tuple[Any, ...], _Atom] = {}
    for writer in watched.writers.values():
        for channels in _parts(writer):
            port = writer.ports[0] if writer.ports else None
            key = (port.parameter, port.dim, port.channels, channels) if port else (writer.name, channels)
            label = writer.name if channels is None else f"{writer.name}[{channels[0]}:{channels[-1] + 1}]"
            made.setdefault(key, _Atom(label, channels)).writers.append(writer)
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
    return [None] if len(joined) < 2 else [tuple(sorted(part)) for part in sorted(joined, key=min)]


def _edges(watched: Watched) -> list[_Edge]:
    atoms, readers = _atoms(watched), list(watched.readers.values())
    by_writer: dict[str, list[int]] = {}
    for number, atom in enumerate(atoms):
        for writer in atom.writers:
            by_writer.setdefault(writer.name, []).append(number)
    nodes = DisjointSet([*(("atom", i) for i in range(len(atoms))), *(("reader", i) for i in range(len(readers)))])
    leaves = list(watched.writers.values())
    for number, reader in enumerate(readers):
        for leaf, gradient in zip(leaves, _gradients(reader, leaves), strict=True):
            if gradient is None:
                continue
            for part in by_writer[leaf.name]:
                channels = atoms[part].channels
                moved = gradient.movedim(leaf.axis, -1)
                if channels is None or bool((moved[..., list(channels)] != 0).any()):
                    nodes.merge(("reader", number), ("atom", part))
    homes: dict[tuple[Any, ...], tuple[str, int]] = {}  # the same dimension of the same tensor changes once
    for kind, ports in (
        *((("atom", i), atom.writers[0].ports) for i, atom in enumerate(atoms)),
        *((("reader", i), reader.ports if reader.kind == "weight" else ()) for i, reader in enumerate(readers)),
    ):
        for port in ports:
            first = homes.setdefault((port.parameter, port.dim, port.channels), kind)
            nodes.merge(first, kind)
    biases = _biases(watched)
    edges = []
    for members in nodes.subsets():
        edge = _Edge(
            [atoms[i] for i in sorted(i for kind, i in members if kind == "atom")],
            [readers[i] for i in sorted(i for kind, i in members if kind == "reader")],
            biases,
        )
        if edge.atoms and edge.readers:
            edges.append(edge)
    order = {id(reader): i for i, reader in enumerate(readers)}
    return sorted(edges, key=lambda edge: order[id(edge.readers[0])])


def _gradients(reader: Reader, leaves: Sequence[Writer]) -> Sequence[Tensor | None]:
    if not reader.tensor.requires_grad:
        return [None] * len(leaves)
    weights = torch.randn(reader.tensor.shape, generator=stream(0, "reach", reader.name), dtype=reader.tensor.dtype)
    tensors = [leaf.tensor for leaf in leaves]
    return torch.autograd.grad(reader.tensor, tensors, weights, retain_graph=True, allow_unused=True)


def _biases(watched: Watched) -> dict[str, Port]:
    """By reader: the bias added behind it."""
    found = {}
    for cut in watched.cuts:
        ports = [port for port in watched.writers[cut.writer].ports if port.kind == "bias"]
        if ports:
            found[f"{cut.name}:input"] = ports[0]
    return found


# Experiments on one edge


def _explore(edge: _Edge, base: Watched) -> Explorer:
    found: list[Symmetry] = []
    if any(reader.kind == "output" for reader in edge.readers):
        return found  # what the network returns has to stay what it is
    seen = {reader.name: reader.tensor.detach() for reader in edge.readers}
    blocks: set[int] = set()
    free: list[_Atom] = []
    candidates: list[list[_Atom]] = []
    sizes = sorted({atom.size for atom in edge.atoms})
    for size in sizes:
        alike = [atom for atom in edge.atoms if atom.size == size]
        if len(alike) > 1:
            candidates.append(alike)
    if len(edge.atoms) <= MOST_ATOMS:
        candidates += [[atom] for atom in edge.atoms]
    elif len(sizes) == len(edge.atoms):
        candidates += [[atom] for atom in edge.atoms]
    for atoms in candidates:
        size = atoms[0].size
        whole = len(atoms) == sum(atom.size == size for atom in edge.atoms)
        symmetry = yield from _one_set(edge, atoms, seen)
        if symmetry is None:
            free += atoms if len(atoms) == 1 else []
            if whole and len(atoms) * size:
                edge.joint[size] = ""
        else:
            blocks.add(symmetry.block)
            if whole:
                edge.joint[size] = symmetry.group if symmetry.block == symmetry.size else DIAGONAL
            if _is_local(edge, symmetry):
                found.append(symmetry)
        if symmetry is None or symmetry.block < symmetry.size:
            permuted = yield from _permuted(edge, atoms, seen)
            if permuted is not None:
                if whole and not edge.joint.get(size):
                    edge.joint[size] = PERMUTATION
                elif whole:
                    edge.joint[size] += f" {PERMUTATION}"
                if _is_local(edge, permuted):
                    found.append(permuted)
    if len(edge.atoms) <= MOST_ATOMS:
        found += yield from _pairs(edge, free, blocks, seen)
        found += yield from _heads(edge, blocks, seen)
    return found


def _is_local(edge: _Edge, symmetry: Symmetry) -> bool:
    """Whether every reader that saw a change holds a weight to undo it with."""
    held = {(side.port.parameter, side.port.dim) for side in symmetry.readers}
    touched = [r for r in edge.readers if r.kind != "weight"]
    return bool(held) and not touched if symmetry.readers else not touched


def _one_set(
    edge: _Edge, atoms: list[_Atom], seen: Mapping[str, Tensor]
) -> Generator[dict[str, Change], dict[str, Tensor], Symmetry | None]:
    """The strongest transforms of some atoms alone that all readers see alike."""
    size = atoms[0].size
    generator = stream(0, "symmetry", atoms[0].name)
    scales = torch.exp(torch.linspace(-0.7, 0.7, size, dtype=torch.float64))[torch.randperm(size, generator=generator)]
    if size == 1:
        scales = torch.tensor([1.5], dtype=torch.float64)
    new = yield _changed(atoms, lambda x: x * scales)
    maps = _followed(edge, seen, new, scales)
    if maps is None:
        return None
    group, block, shift = POSITIVE, 1, False
    signs = torch.where(torch.rand(size, generator=generator) < 0.5, -1.0, 1.0).double() * scales
    new = yield _changed(atoms, lambda x: x * signs)
    if all(_close(new[n], _scaled(edge, n, seen[n], signs, m)) for n, m in maps.items()):
        group = DIAGONAL
        block = yield from _mixing(edge, atoms, seen, maps, generator)
        group = INVERTIBLE if block > 1 or size == 1 else DIAGONAL
        constant = torch.randn(size, generator=generator, dtype=torch.float64)
        new = yield _changed(atoms, lambda x: x + constant)
        shift = all(_close(new[n], _shifted(edge, n, seen[n], constant, m)) for n, m in maps.items())
    sides = [side for atom in atoms for side in atom.sides(torch.arange(size))]
    sides += _reader_sides(edge, maps)
    return Symmetry(_name(edge, atoms), group, size, block, tuple(sides), shift)


def _mixing(
    edge: _Edge, atoms: list[_Atom], seen: Mapping[str, Tensor], maps: Mapping[str, Tensor], generator: torch.Generator
) -> Generator[dict[str, Change], dict[str, Tensor], int]:
    """The largest blocks whose channels may be mixed; 1 when none may."""
    size = atoms[0].size
    divisors = [d for d in range(size, 1, -1) if size % d == 0]
    possible = [d for d in divisors if all(_whole_blocks(m, d) for m in maps.values())]
    if not possible:
        return 1
    for block in [possible[-1], *possible[:-1]]:  # if even the smallest blocks do not mix, nothing does
        mix = _mix(size // block, block, generator)
        new = yield _changed(atoms, partial(_blockwise, mix))
        passes = all(_close(new[n], _mixed(edge, n, seen[n], mix, m)) for n, m in maps.items())
        if block == possible[-1] and not passes:
            return 1
        if passes and (block != possible[-1] or len(possible) == 1):
            return block
    return possible[-1]


def _permuted(
    edge: _Edge, atoms: list[_Atom], seen: Mapping[str, Tensor]
) -> Generator[dict[str, Change], dict[str, Tensor], Symmetry | None]:
    """Any order of the channels of some atoms together."""
    size = atoms[0].size
    readers = [r for r in edge.readers if r.size == size]
    if size < 2 or len(readers) < len(edge.readers) or (len(atoms) == 1 and len(edge.atoms) > 1):
        return None
    order = torch.randperm(size, generator=stream(0, "order", atoms[0].name))
    new = yield _changed(atoms, lambda x: x[..., order])
    for reader in readers:
        if not _close(_last(reader, new[reader.name]), _last(reader, seen[reader.name])[..., order]):
            return None
    same = torch.arange(size)
    sides = [side for atom in atoms for side in atom.sides(same)]
    sides += _reader_sides(edge, {r.name: same for r in readers})
    return Symmetry(_name(edge, atoms), PERMUTATION, size, size, tuple(sides))


def _pairs(
    edge: _Edge, free: list[_Atom], blocks: set[int], seen: Mapping[str, Tensor]
) -> Generator[dict[str, Change], dict[str, Tensor], list[Symmetry]]:
    """Two writers that only meet in a product: one may take a transform if the other takes the inverse."""
    found = []
    pairs = [(a, b) for i, a in enumerate(free) for j, b in enumerate(free)
             if i != j and a.size % b.size == 0 and (a.size > b.size or i < j)]  # fmt: skip
    for a, b in pairs:
        heads = sorted({d for d in (*blocks, b.size) if d > 1 and b.size % d == 0}, reverse=True)
        result = None
        ways = [("mixed", head) for head in heads] + [("free", b.size)]
        ways += [(way, head) for head in heads for way in ("halves", "neighbours")]
        for way, head in ways:
            follows = _grouped(a.size, b.size, head)
            generator = stream(0, "pair", a.name, b.name, way)
            if way == "mixed":
                mix = _mix(b.size // head, head, generator)
                contra = (-mix[1] / (1 + (mix[0] * mix[1]).sum(-1, keepdim=True)), mix[0])  # the inverse transposed
                spread = (mix[0][follows[::head] // head], mix[1][follows[::head] // head])
                index = torch.arange(b.size)
                one, other = partial(_blockwise, spread), partial(_blockwise, contra)
            else:
                index = _shared(b.size, head, way)
                scale = torch.exp(torch.randn(int(index.max()) + 1, generator=generator, dtype=torch.float64) / 2)
                one, other = partial(torch.mul, scale[index[follows]]), partial(torch.mul, 1 / scale[index])
            new = yield _merged(a.changed(one), b.changed(other))
            if all(_close(new[name], before) for name, before in seen.items()):
                sides = [*a.sides(index[follows]), *b.sides(index, inverse=True)]
                group, block = (INVERTIBLE, head) if way == "mixed" else (DIAGONAL, 1)
                result = Symmetry(f"{a.name} x {b.name}", group, int(index.max()) + 1, block, tuple(sides))
                break
        if result is not None and not any(r.kind != "weight" for r in edge.readers):
            found.append(result)
    return found


def _heads(
    edge: _Edge, blocks: set[int], seen: Mapping[str, Tensor]
) -> Generator[dict[str, Change], dict[str, Tensor], list[Symmetry]]:
    """Whole blocks of channels in another order, everywhere at once: attention heads with their keys and values."""
    found: list[Symmetry] = []
    if len({atom.size for atom in edge.atoms}) < 1 or len(edge.atoms) < 2 or any(r.kind != "weight" for r in edge.readers):
        return found
    smallest = min(atom.size for atom in edge.atoms)
    for block in sorted(blocks - {1}):
        count = smallest // block
        everything = [atom.size for atom in edge.atoms] + [r.size for r in edge.readers]
        if count < 2 or smallest % block or any(size % count for size in everything):
            continue
        order = torch.randperm(count, generator=stream(0, "heads", edge.name))
        parts = [atom.changed(partial(_taken, _block_order(order, atom.size))) for atom in edge.atoms]
        new = yield _merged(*parts)
        if all(
            _close(_last(r, new[r.name]), _last(r, seen[r.name])[..., _block_order(order, r.size)])
            for r in edge.readers
        ):  # fmt: skip
            sides = [s for a in edge.atoms for s in a.sides(torch.arange(a.size) // (a.size // count))]
            sides += _reader_sides(
                edge, {r.name: torch.arange(r.size) // (r.size // count) for r in edge.readers}
            )  # fmt: skip
            found.append(Symmetry(f"{edge.name} heads", PERMUTATION, count, count, tuple(sides)))
            break
    return found


# Spaces: edges joined by norms


def _spaces(edges: list[_Edge], base: Watched) -> list[Symmetry]:
    """What the activations before and after norms let through together."""
    home: dict[str, int] = {}
    for number, edge in enumerate(edges):
        for atom in edge.atoms:
            for writer in atom.writers:
                home[writer.name] = number
    joined = DisjointSet(range(len(edges)))
    readers = [(i, r) for i, edge in enumerate(edges) for r in edge.readers if r.kind == "norm"]
    for number, reader in readers:
        after = reader.name.replace(":input", ":output")
        if after in home:
            joined.merge(number, home[after])
    found = []
    for members in joined.subsets():
        norms = [r for i, r in readers if i in members]
        if norms and len({r.size for r in norms}) == 1:
            found += _space([edges[i] for i in sorted(members)], norms)
    return found


def _space(edges: list[_Edge], norms: list[Reader]) -> list[Symmetry]:
    size = norms[0].size
    kinds = {reader.norm.kind for reader in norms if reader.norm is not None}
    returned = [r for e in edges for r in e.readers if r.kind == "output"]
    single = [e.joint.get(size) for e in edges]
    if returned or any(not joint for joint in single) or any(r.size != size for e in edges for r in e.readers):
        return []
    same = torch.arange(size)
    sides: dict[tuple[str, int, bool], Side] = {}
    for edge in edges:
        for atom in edge.atoms:
            if atom.size == size:
                for side in atom.sides(same):
                    sides[(side.port.parameter, side.port.dim, False)] = side
        for side in _reader_sides(edge, {r.name: same for r in edge.readers}):
            sides[(side.port.parameter, side.port.dim, True)] = side
    name, everything = norms[0].name, tuple(sides.values())
    named = tuple(dict.fromkeys(r.name.split(":input")[0] for r in norms))
    if any(s.port.kind == "weight" and s.port.groups > 1 for s in everything):
        return []
    found = []
    if all(joint == INVERTIBLE for joint in single) and kinds <= {"rms", "layer"}:
        found.append(
            Symmetry(name, ORTHOGONAL, size, size, everything, fixes_mean="layer" in kinds, norms=named)
        )  # fmt: skip
    if all(joint is not None and (joint == INVERTIBLE or PERMUTATION in joint) for joint in single) and "group" not in kinds:
        found.append(Symmetry(name, PERMUTATION, size, size, everything))
    return found


def _checked(symmetry: Symmetry) -> Symmetry | None:
    """What the tensors can take: a gain takes no mixing, a tied tensor only what is its own inverse transposed."""
    group, block = symmetry.group, symmetry.block
    writers = {(s.port.parameter, s.port.dim) for s in symmetry.writers}
    tied = writers & {(s.port.parameter, s.port.dim) for s in symmetry.readers}
    if tied and group not in (ORTHOGONAL, PERMUTATION):
        return None
    narrow = any(s.port.kind == "gain" or s.port.groups > 1 for s in symmetry.sides)
    if narrow and group == INVERTIBLE:
        group, block = DIAGONAL, 1
    if any(s.port.groups > 1 for s in symmetry.sides) and group == PERMUTATION:
        return None
    if group == symmetry.group and block == symmetry.block:
        return symmetry
    return Symmetry(
        symmetry.name, group, symmetry.size, block, symmetry.sides, symmetry.shift, symmetry.fixes_mean, symmetry.norms
    )  # fmt: skip


# Small things


def _name(edge: _Edge, atoms: list[_Atom]) -> str:
    return atoms[0].name if len(atoms) == 1 else edge.name


def _changed(atoms: Iterable[_Atom], change: Change) -> dict[str, Change]:
    return _merged(*(atom.changed(change) for atom in atoms))


def _merged(*parts: Mapping[str, Change]) -> dict[str, Change]:
    """Changes of several atoms; those of one writer follow each other."""
    changes: dict[str, Change] = {}
    for part in parts:
        for name, change in part.items():
            first = changes.get(name)
            changes[name] = change if first is None else partial(_both, first, change)
    return changes


def _both(first: Change, second: Change, x: Tensor) -> Tensor:
    return second(first(x))


def _taken(order: Tensor, x: Tensor) -> Tensor:
    return x[..., order]


def _reader_sides(edge: _Edge, maps: Mapping[str, Tensor]) -> list[Side]:
    sides: dict[tuple[str, int], Side] = {}
    for reader in edge.readers:
        index = maps.get(reader.name)
        if reader.kind == "weight" and index is not None and bool((index >= 0).any()):
            for port in reader.ports:
                bias = edge.biases.get(reader.name.split("#")[0])
                sides[(port.parameter, port.dim)] = Side(port, True, index, bias)
    return list(sides.values())


def _last(reader: Reader, tensor: Tensor) -> Tensor:
    return tensor.movedim(reader.axis, -1)


def _reader(edge: _Edge, name: str) -> Reader:
    return next(reader for reader in edge.readers if reader.name == name)


def _followed(
    edge: _Edge, seen: Mapping[str, Tensor], new: Mapping[str, Tensor], scales: Tensor
) -> dict[str, Tensor] | None:
    """For every channel of every reader, which scale it followed (-1: none); None if it did anything else."""
    maps, order = {}, scales.argsort()
    for reader in edge.readers:
        if reader.name not in new or new[reader.name].shape != seen[reader.name].shape:
            return None
        before = _last(reader, seen[reader.name]).reshape(-1, reader.size)
        after = _last(reader, new[reader.name]).reshape(-1, reader.size)
        square = before.square().sum(0)
        ratio = (before * after).sum(0) / square.clamp(min=1e-300)
        unchanged = (before == after).all(0)
        near = torch.searchsorted(scales[order], ratio).clamp(max=len(scales) - 1)
        below = (near - 1).clamp(min=0)
        closer = (scales[order][below] - ratio).abs() < (scales[order][near] - ratio).abs()
        index = order[torch.where(closer, below, near)]
        silent = unchanged & (square == 0)
        index = torch.where(unchanged, -1, index)
        fits = (after - before * scales[index]).norm(dim=0) <= CLOSE * after.norm(dim=0) + 1e-300
        if not bool((fits | unchanged).all()):
            return None
        maps[reader.name] = _fill_silent(index, silent, len(scales))
    return maps if any(bool((m >= 0).any()) for m in maps.values()) else None


def _fill_silent(index: Tensor, silent: Tensor, size: int) -> Tensor:
    """A channel that was zero throughout (a ReLU that never fired) follows what its neighbours suggest."""
    for j in silent.nonzero().flatten().tolist():
        if len(index) == size:
            index[j] = j
        elif j and int(index[j - 1]) >= 0:
            index[j] = (int(index[j - 1]) + 1) % size
    return index


def _scaled(edge: _Edge, name: str, tensor: Tensor, scales: Tensor, index: Tensor) -> Tensor:
    reader = _reader(edge, name)
    factor = torch.where(index >= 0, scales[index.clamp(min=0)], 1.0)
    return (_last(reader, tensor) * factor).movedim(-1, reader.axis)


def _shifted(edge: _Edge, name: str, tensor: Tensor, constant: Tensor, index: Tensor) -> Tensor:
    reader = _reader(edge, name)
    added = torch.where(index >= 0, constant[index.clamp(min=0)], 0.0)
    return (_last(reader, tensor) + added).movedim(-1, reader.axis)


def _mixed(edge: _Edge, name: str, tensor: Tensor, mix: Mix, index: Tensor) -> Tensor:
    reader, block = _reader(edge, name), mix[0].shape[-1]
    last = _last(reader, tensor).clone()
    chosen = (index >= 0).nonzero().flatten()
    if len(chosen) == 0:
        return tensor
    blocks = index[chosen][::block] // block
    last[..., chosen] = _blockwise((mix[0][blocks], mix[1][blocks]), last[..., chosen])
    return last.movedim(-1, reader.axis)


def _whole_blocks(index: Tensor, block: int) -> bool:
    """Whether the channels that follow the transform do so in whole blocks, in order."""
    chosen = index[index >= 0]
    if len(chosen) % block:
        return False
    rows = chosen.reshape(-1, block)
    return bool((rows[:, :1] % block == 0).all()) and bool((rows == rows[:, :1] + torch.arange(block)).all())


Mix = tuple[Tensor, Tensor]  # u and v [blocks, b] of the matrices I + u vᵀ: full matrices, at the cost of vectors


def _mix(blocks: int, size: int, generator: torch.Generator) -> Mix:
    u, v = torch.rand(2, blocks, size, generator=generator, dtype=torch.float64) / size**0.5
    return u, v


def _blockwise(mix: Mix, x: Tensor) -> Tensor:
    """Every block of channels of x times its matrix from the left."""
    u, v = mix
    parts = x.reshape(*x.shape[:-1], *u.shape)
    return (parts + (parts * v).sum(-1, keepdim=True) * u).reshape(x.shape)


def _grouped(many: int, few: int, head: int) -> Tensor:
    """For every channel of the larger side, which of the smaller it goes with: heads share keys group by group."""
    share, j = many // few, torch.arange(many)
    return (j // head // share) * head + j % head


def _shared(size: int, head: int, way: str) -> Tensor:
    """Which scale each channel takes, when channels that rotate together must share one."""
    j = torch.arange(size)
    if way == "free":
        return j
    half = max(1, head // 2)
    inside = j % head
    pair = inside % half if way == "halves" else inside // 2
    return (j // head) * half + pair


def _block_order(order: Tensor, size: int) -> Tensor:
    inner = size // len(order)
    return (order[:, None] * inner + torch.arange(inner)).flatten()


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= CLOSE * b.norm() + 1e-300)
