"""Experiments on one edge: transforms are tried on what is written, and compared with what is read.

An explorer is a generator: it yields what it wants changed, is sent what all readers then saw, and returns what it
found. So the explorers of all edges share the same passes through the network.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pennyweight.network.finding.basis import (
    DIAGONAL,
    INVERTIBLE,
    PERMUTATION,
    POSITIVE,
    Symmetry,
    blockwise,
    contragredient,
    drawn_mix,
    grouped,
    in_whole_blocks,
    merged,
    mixed,
    reordered,
    scaled,
    shared,
    shifted,
)  # fmt: skip
from pennyweight.network.finding.edges import Atom, Edge, Maps, all_changed, last, together
from pennyweight.network.finding.watch import Change
from pennyweight.numerics.random import stream

CLOSE = 1e-8
MOST_ATOMS = 12  # of an edge that are tried one by one; a residual stream has hundreds, which only go together

Seen = Mapping[str, Tensor]
Explorer = Generator[dict[str, Change], Seen, list[Symmetry]]


@dataclass(frozen=True, eq=False)
class _Passed:
    group: str
    block: int
    shift: bool
    maps: Maps


def explore(edge: Edge) -> Explorer:
    """Everything that one edge lets through by itself; what its norms may let through is noted in `edge.joint`."""
    found: list[Symmetry] = []
    if any(reader.kind == "output" for reader in edge.readers):
        return found  # what the network returns has to stay what it is
    seen = {reader.name: last(reader, reader.tensor.detach()) for reader in edge.readers}
    counts: set[int] = set()
    free: list[Atom] = []
    for atoms in _candidates(edge):
        size = atoms[0].size
        whole = len(atoms) == sum(atom.size == size and not atom.chooses for atom in edge.atoms)
        passed = yield from _strongest(edge, atoms, seen)
        if passed is not None:
            counts.add(size // passed.block)
            if whole:
                edge.joint.setdefault(size, {})[passed.group if passed.block == size else DIAGONAL] = passed.maps
            found += _local(edge, atoms, passed)
        elif len(atoms) == 1:
            free += atoms
        if passed is None or passed.block < size or not all(atom.mixes for atom in atoms):
            permuted = yield from _permuted(edge, atoms, seen, passed)
            if permuted is not None:
                if whole:
                    edge.joint.setdefault(size, {})[PERMUTATION] = permuted.maps
                found += _local(edge, atoms, permuted)
    if len(edge.atoms) <= MOST_ATOMS:
        found += yield from _pairs(edge, free + _compounds(free), counts, seen)
        found += yield from _heads(edge, counts, seen)
    return found


def _candidates(edge: Edge) -> list[list[Atom]]:
    free = [atom for atom in edge.atoms if not atom.chooses]
    sizes = sorted({atom.size for atom in free})
    alike = [[atom for atom in free if atom.size == size] for size in sizes]
    several = [atoms for atoms in alike if len(atoms) > 1]
    if len(edge.atoms) <= MOST_ATOMS:
        return several + [[atom] for atom in free]
    return several + [atoms for atoms in alike if len(atoms) == 1]


def _compounds(atoms: Sequence[Atom]) -> list[Atom]:
    """Atoms of the same writers as one: even and odd channels that a rotation turns into each other."""
    by_writer: dict[tuple[str, int], list[Atom]] = {}
    for atom in atoms:
        if atom.channels is not None:
            by_writer.setdefault((atom.writers[0].name, atom.size), []).append(atom)
    found = []
    for parts in by_writer.values():
        if len(parts) > 1:
            channels = tuple(sorted(c for part in parts for c in part.channels or ()))
            name = " and ".join(part.name for part in parts)
            found.append(Atom(name, channels, parts[0].writers, tuple(parts)))
    return found


def _local(edge: Edge, atoms: Sequence[Atom], passed: _Passed) -> list[Symmetry]:
    """The symmetry, if every tensor that takes part holds a weight to take it with."""
    touched, size = edge.touched(passed.maps), atoms[0].size
    if any(reader.kind != "weight" for reader in touched) or not all(atom.holds for atom in atoms):
        return []
    if passed.group == PERMUTATION:
        narrow = any(port.groups > 1 for reader in touched for port in reader.ports)
        if narrow or not all(atom.mixes for atom in atoms):
            return []
    reading = edge.reader_sides(passed.maps)
    sides = merged(side for atom in atoms for side in atom.sides(torch.arange(size)))
    if sides is None or reading is None or not reading:
        return []
    group, block = passed.group, passed.block
    grouped_readers = any(side.port.groups > 1 for side in reading)
    if group == INVERTIBLE and (grouped_readers or not all(atom.mixes for atom in atoms)):
        group, block = DIAGONAL, 1
    # Zeros around a picture do not shift along.
    shift = passed.shift and not any(side.port.parameter in edge.convolutions for side in reading)
    name = atoms[0].name if len(atoms) == 1 else edge.name
    return [Symmetry(name, group, size, block, (*sides, *reading), shift)]


def _passes(edge: Edge, new: Seen, expected: Mapping[str, Tensor | None]) -> bool:
    return all((e := expected[r.name]) is not None and _close(last(r, new[r.name]), e) for r in edge.readers)


def _strongest(
    edge: Edge, atoms: list[Atom], seen: Seen
) -> Generator[dict[str, Change], Seen, _Passed | None]:  # fmt: skip
    """The strongest transforms of some atoms alone that all readers see alike."""
    size = atoms[0].size
    generator = stream(0, "symmetry", atoms[0].name)
    scales = torch.exp(torch.linspace(0.2, 1.4, size, dtype=torch.float64))[torch.randperm(size, generator=generator)]
    new = yield all_changed(atoms, lambda x: x * scales)
    maps = _followed(edge, seen, new, scales)
    if maps is None:
        return None
    signs = torch.where(torch.rand(size, generator=generator) < 0.5, -1.0, 1.0).double() * scales
    if size > 1 and bool((signs.sign() == signs[0].sign()).all()):
        signs[0] *= -1
    new = yield all_changed(atoms, lambda x: x * signs)
    if not _passes(edge, new, {n: scaled(seen[n], signs, m) for n, m in maps.items()}):
        return _Passed(POSITIVE, 1, False, maps)
    negative = True
    if size == 1:
        new = yield all_changed(atoms, lambda x: -x)
        negative = _passes(edge, new, {n: torch.where(m >= 0, -seen[n], seen[n]) for n, m in maps.items()})
    if not negative:
        return _Passed(POSITIVE, 1, False, maps)
    block = yield from _mixing(edge, atoms, seen, maps, generator)
    constant = torch.randn(size, generator=generator, dtype=torch.float64)
    new = yield all_changed(atoms, lambda x: x + constant)
    shift = _passes(edge, new, {n: shifted(seen[n], constant, m) for n, m in maps.items()})
    return _Passed(INVERTIBLE if block > 1 or size == 1 else DIAGONAL, block, shift, maps)


def _mixing(
    edge: Edge, atoms: list[Atom], seen: Seen, maps: Maps, generator: torch.Generator
) -> Generator[dict[str, Change], Seen, int]:
    """The largest blocks whose channels may be mixed; 1 when none may."""
    size = atoms[0].size
    divisors = [d for d in range(size, 1, -1) if size % d == 0]
    possible = [d for d in divisors if all(in_whole_blocks(m, d) for m in maps.values())]
    if not possible:
        return 1
    for block in [possible[-1], *possible[:-1]]:  # if even the smallest blocks do not mix, nothing does
        mix = drawn_mix(size // block, block, generator)
        new = yield all_changed(atoms, partial(blockwise, mix))
        passes = _passes(edge, new, {n: mixed(seen[n], mix, m) for n, m in maps.items()})
        if block == possible[-1] and not passes:
            return 1
        if passes and (block != possible[-1] or len(possible) == 1):
            return block
    return possible[-1]


def _permuted(
    edge: Edge, atoms: list[Atom], seen: Seen, passed: _Passed | None
) -> Generator[dict[str, Change], Seen, _Passed | None]:
    """Any order of the channels of some atoms together."""
    size, same = atoms[0].size, torch.arange(atoms[0].size)
    if size < 2 or (len(atoms) == 1 and len(edge.atoms) > 1):
        return None
    if passed is not None:
        maps = dict(passed.maps)
    else:
        reached = {r.name: any(edge.reaches(a, r) for a in atoms) for r in edge.readers}
        if any(reached[r.name] and r.size != size for r in edge.readers):
            return None
        maps = {r.name: same if reached[r.name] else torch.full((r.size,), -1) for r in edge.readers}
    order = torch.randperm(size, generator=stream(0, "order", atoms[0].name))
    new = yield all_changed(atoms, partial(_taken, order))
    if not _passes(edge, new, {n: reordered(seen[n], order, m) for n, m in maps.items()}):
        return None
    return _Passed(PERMUTATION, size, False, maps)


def _pairs(
    edge: Edge, free: list[Atom], counts: set[int], seen: Seen
) -> Generator[dict[str, Change], Seen, list[Symmetry]]:
    """Two writers that only meet in a product: one may take a transform if the other takes the inverse."""
    found = []
    for a in free:
        for b in free:
            several = a.size > b.size or (a.size == b.size and free.index(a) < free.index(b))
            if (
                a is b
                or set(a.parts) & {b}
                or set(b.parts) & {a}
                or not several
                or a.size % b.size
                or not (a.holds and b.holds)
            ):
                continue
            if not any(edge.reaches(a, r) and edge.reaches(b, r) for r in edge.readers):
                continue
            new = yield together(a.changed(partial(torch.mul, 1.5)), b.changed(partial(torch.mul, 1 / 1.5)))
            if _passes(edge, new, seen):
                found += yield from _pair(edge, a, b, counts, seen)
    return found


def _pair(
    edge: Edge, a: Atom, b: Atom, counts: set[int], seen: Seen
) -> Generator[dict[str, Change], Seen, list[Symmetry]]:
    heads = {b.size // c for c in counts if b.size % c == 0} | {b.size}
    if not counts:
        heads |= {d for d in range(2, b.size) if b.size % d == 0}
    ordered = sorted((head for head in heads if head > 1), reverse=True)
    ways = [("mixed", head) for head in ordered if a.mixes and b.mixes] + [("free", b.size)]
    ways += [(way, head) for head in ordered for way in ("halves", "neighbours")] + [("all", b.size)]
    for way, head in ways:
        generator = stream(0, "pair", a.name, b.name, way)
        for follows in _follows(a.size, b.size, head):
            if way == "mixed":
                mix = drawn_mix(b.size // head, head, generator)
                blocks = follows[::head] // head
                index = torch.arange(b.size)
                one = partial(blockwise, (mix[0][blocks], mix[1][blocks]))
                other = partial(blockwise, contragredient(mix))
                group, block = INVERTIBLE, head
            else:
                index = torch.zeros(b.size, dtype=torch.long) if way == "all" else shared(b.size, head, way)
                scale = torch.exp(torch.randn(int(index.max()) + 1, generator=generator, dtype=torch.float64) / 2)
                one, other = partial(torch.mul, scale[index[follows]]), partial(torch.mul, 1 / scale[index])
                group, block = DIAGONAL, 1
            new = yield together(a.changed(one), b.changed(other))
            if _passes(edge, new, seen):
                sides = merged([*a.sides(index[follows]), *b.sides(index, inverse=True)])
                name = f"{a.name} x {b.name}"
                return [Symmetry(name, group, int(index.max()) + 1, block, sides)] if sides is not None else []
    return []


def _follows(many: int, few: int, head: int) -> list[Tensor]:
    """Ways in which a larger side may go with a smaller: heads in groups, or one after the other."""
    first, second = grouped(many, few, head), torch.arange(many) % few
    return [first] if torch.equal(first, second) else [first, second]


def _heads(edge: Edge, counts: set[int], seen: Seen) -> Generator[dict[str, Change], Seen, list[Symmetry]]:
    """Whole blocks of channels in another order, everywhere at once: attention heads with their keys and values."""
    if len(edge.atoms) < 2 or any(r.kind != "weight" for r in edge.readers):
        return []
    sizes = [atom.size for atom in edge.atoms] + [r.size for r in edge.readers]
    if not all(atom.mixes and not atom.chooses for atom in edge.atoms):
        return []
    for count in sorted(counts - {1}, reverse=True):
        if any(size % count for size in sizes) or all(size == count for size in sizes):
            continue
        order = torch.randperm(count, generator=stream(0, "heads", edge.name))
        changes = [a.changed(partial(_block_taken, order)) for a in edge.atoms]
        new = yield together(*changes)
        maps = {r.name: torch.arange(r.size) // (r.size // count) for r in edge.readers}
        if _passes(edge, new, {r.name: reordered(seen[r.name], order, maps[r.name]) for r in edge.readers}):
            sides = merged(s for a in edge.atoms for s in a.sides(torch.arange(a.size) // (a.size // count)))
            reading = edge.reader_sides(maps)
            if sides is not None and reading:
                return [Symmetry(f"{edge.name} heads", PERMUTATION, count, count, (*sides, *reading))]
    return []


def _taken(order: Tensor, x: Tensor) -> Tensor:
    return x[..., order]


def _block_taken(order: Tensor, x: Tensor) -> Tensor:
    inner = x.shape[-1] // len(order)
    return x[..., (order[:, None] * inner + torch.arange(inner)).flatten()]


def _followed(edge: Edge, seen: Seen, new: Seen, scales: Tensor) -> dict[str, Tensor] | None:
    """For every channel of every reader, which scale it followed (-1: none); None if it did anything else."""
    maps, order = {}, scales.argsort()
    ordered = scales[order]
    for reader in edge.readers:
        if new[reader.name].shape != reader.tensor.shape:
            return None
        before = seen[reader.name].reshape(-1, reader.size)
        after = last(reader, new[reader.name]).reshape(-1, reader.size)
        unchanged = (before == after).all(0)
        if bool(unchanged.all()):
            silent = (before == 0).all(0)
            if bool(silent.any()) and any(edge.reach[reader.name]):
                return None
            maps[reader.name] = torch.full((reader.size,), -1)
            continue
        square = before.square().sum(0)
        ratio = (before * after).sum(0) / square.clamp(min=1e-300)
        near = torch.searchsorted(ordered, ratio).clamp(max=len(scales) - 1)
        below = (near - 1).clamp(min=0)
        closer = (ordered[below] - ratio).abs() < (ordered[near] - ratio).abs()
        index = order[torch.where(closer, below, near)]
        fits = (after - before * scales[index]).norm(dim=0) <= CLOSE * after.norm(dim=0) + 1e-300
        if not bool((fits | unchanged).all()):
            return None
        filled = _filled(torch.where(unchanged, -1, index), unchanged & (square == 0), len(scales))
        if filled is None:
            return None
        maps[reader.name] = filled
    return maps if any(bool((m >= 0).any()) for m in maps.values()) else None


def _filled(index: Tensor, silent: Tensor, size: int) -> Tensor | None:
    """A channel that was zero throughout tells nothing: it follows the pattern of the others, if they have one."""
    if not bool(silent.any()):
        return index
    tiled = torch.arange(len(index)) % size
    return tiled if bool((silent | (index == tiled)).all()) else None


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= CLOSE * b.norm() + 1e-300)
