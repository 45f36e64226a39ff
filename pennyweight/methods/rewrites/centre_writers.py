"""Take the mean out of everything that is added to a residual stream.

Identity: with M = I - 1 1ᵀ / d, LayerNorm(M x) = LayerNorm(x), and M Σ (W h + b) = Σ (M W h + M b).
Source: Pre-RMSNorm (Jiang, Gu, Zhu and Pan, 2023, arXiv:2305.14858); a step of QuaRot's for LayerNorm networks.
Algebraic: equal in real arithmetic. M is a projection and has no inverse, but a stream that only LayerNorms read does
not need one. Doing it twice changes nothing.

When: before `layer_to_rms`, or a rotation of a network with LayerNorms. Cost: one pass over the writers' weights. Known
failures: a stream that something else than a LayerNorm reads does not let its mean go, and is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor

from pennyweight.errors import InvalidTransform
from pennyweight.network.changing.rebuild import Made, Read, Rebuilt, stored_dtype
from pennyweight.network.finding.edges import Atom, Edge, all_changed, find_edges, last, together
from pennyweight.network.finding.inputs import example
from pennyweight.network.finding.trace import skeleton
from pennyweight.network.finding.watch import Port, Reader, watch
from pennyweight.network.network import Network
from pennyweight.promises import Deterministic, Promise

CLOSE = 1e-10


@dataclass(frozen=True, kw_only=True)
class CentreWriters:
    """Subtract from every embedding, output weight and bias of a residual stream its mean over the stream's channels.

    Afterwards the stream has mean zero everywhere, and its LayerNorms compute what an RMSNorm would. A stream that
    something else reads too, that a norm writes (post-norm), or that is gated on its way stays as it is.
    """

    name: ClassVar[str] = "centre_writers"
    paper: ClassVar[str] = "arXiv:2305.14858"
    needs: ClassVar[frozenset[str]] = frozenset()
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)

    def rewrite(self, network: Network) -> Network:
        """The same network with centred writers; what it was if no stream can be centred.

        Raises:
            InvalidTransform: a writer shares its tensor with a layer that reads; untie first.
        """
        ports = [port for residual in residuals(network) for port in residual.ports]
        if not ports:
            return network
        made = {}
        for name in dict.fromkeys(port.parameter for port in ports):
            own = [port for port in ports if port.parameter == name]
            shape = network.source.tensors[network.stored_name(name)].shape
            made[network.stored_name(name)] = Made(shape, stored_dtype(network, name), _reading(network, name, own))
        return replace(network, source=Rebuilt(network.source, made, what=f"{len(made)} writers centred"))


@dataclass(frozen=True, eq=False)
class Residual:
    """Tensors that write a stream which only LayerNorms read, and the names of these norms."""

    ports: tuple[Port, ...]
    norms: tuple[str, ...]


def residuals(network: Network) -> tuple[Residual, ...]:
    """Every stream whose mean no norm looks at: found from derivatives, then tried.

    Raises:
        InvalidTransform: one of its tensors is read elsewhere.
    """
    model = skeleton(network.source)
    inputs = network.inputs or example(model)
    base = watch(model, inputs)
    found = [part for edge in find_edges(base) for part in _parts(edge) if _is_stream(*part)]
    seen = {reader.name: reader.tensor.detach() for _, readers in found for reader in readers}
    centring = together(*(all_changed(atoms, centred) for atoms, _ in found))
    new = {n: r.tensor for n, r in watch(model, inputs, changes=centring, grad=False).readers.items()} if found else {}
    reading = {(p.parameter, p.dim) for r in base.readers.values() if r.kind == "weight" for p in r.ports}
    result = []
    for atoms, readers in found:
        after = [(last(r, new[r.name]), centred(last(r, seen[r.name]))) for r in readers]
        if any(float((a - b).norm()) > CLOSE * float(b.norm()) for a, b in after):
            continue  # a gate or a scale lies between
        ports = tuple(port for atom in atoms for port in atom.ports)
        tied = next((port for port in ports if (port.parameter, port.dim) in reading), None)
        if tied is not None:
            raise InvalidTransform(
                f"{tied.parameter} writes the stream and reads as well: centred, it would read something else",
                expected="a tensor of its own for the output head", mend="rewrite with untie first",
                site=tied.parameter,
            )  # fmt: skip
        result.append(Residual(ports, tuple(dict.fromkeys(r.name.split(":input")[0] for r in readers))))
    return tuple(result)


def centred(x: Tensor) -> Tensor:
    """M x: the last dimension without its mean."""
    return x - x.mean(-1, keepdim=True)


def _parts(edge: Edge) -> list[tuple[list[Atom], list[Reader]]]:
    """The parts of an edge that derivatives hold together, and not only a tensor they share."""
    nodes = DisjointSet([*edge.atoms, *edge.readers])
    for reader in edge.readers:
        for atom in edge.atoms:
            if edge.reaches(atom, reader):
                nodes.merge(atom, reader)
    return [([a for a in edge.atoms if a in part], [r for r in edge.readers if r in part]) for part in nodes.subsets()]


def _is_stream(atoms: Sequence[Atom], readers: Sequence[Reader]) -> bool:
    """Whether all that is read of it is normalised with the mean removed, and all that writes it can be centred."""
    sizes = {reader.size for reader in readers} | {atom.size for atom in atoms}
    layered = all(reader.norm is not None and reader.norm.kind == "layer" for reader in readers)
    held = all(atom.holds and all(w.kind != "norm" and w.ports[0].groups == 1 for w in atom.writers) for atom in atoms)
    return bool(atoms) and bool(readers) and len(sizes) == 1 and layered and held


def _reading(network: Network, name: str, ports: Sequence[Port]) -> Callable[[Read], Tensor]:
    def of(read: Read) -> Tensor:
        tensor = read(network.stored_name(name))
        for port in ports:
            moved = tensor.movedim(port.dim, -1).clone()
            chosen = list(port.channels) if port.channels is not None else slice(None)
            moved[..., chosen] = centred(moved[..., chosen])
            tensor = moved.movedim(-1, port.dim).contiguous()
        return tensor

    return of
