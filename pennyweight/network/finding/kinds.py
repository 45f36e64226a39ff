"""Questions about symmetries that several methods ask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pennyweight.network.finding.basis import DIAGONAL, INVERTIBLE, POSITIVE, Side, Symmetry


def is_pair(symmetry: Symmetry) -> bool:
    """Whether two writers that only meet in a product undo each other's transform, as queries and keys do."""
    return " x " in symmetry.name


def norm_of_edge(symmetry: Symmetry) -> str:
    """The norm whose gain alone writes an edge that layers read; empty where there is none."""
    gains = {side.port.parameter.rpartition(".")[0] for side in symmetry.writers if side.port.kind == "gain"}
    owners = {side.port.parameter.rpartition(".")[0] for side in symmetry.writers}
    return gains.pop() if len(gains) == 1 and owners == gains and not is_pair(symmetry) else ""


def takes_scales(symmetry: Symmetry) -> bool:
    """Whether every channel may have a positive scale of its own, undone by the layers that read it."""
    return symmetry.group in (DIAGONAL, INVERTIBLE, POSITIVE) and not is_pair(symmetry)


def holds_shift(symmetry: Symmetry) -> bool:
    """Whether a constant is let through, and biases can take it in on one side and take it away on the other."""
    written = any(side.port.kind == "bias" for side in symmetry.writers)
    return symmetry.shift and written and all(side.bias is not None for side in symmetry.readers)


def apart(symmetries: Iterable[Symmetry]) -> Iterator[Symmetry]:
    """Those that share no channel of a tensor with one before: what was observed stays true for each of them."""
    taken: set[tuple[str, int, int]] = set()
    for symmetry in symmetries:
        places = {place for side in symmetry.sides for place in _places(side)}
        if not places & taken:
            taken |= places
            yield symmetry


def _places(side: Side) -> Iterator[tuple[str, int, int]]:
    port = side.port
    for channel in (side.index >= 0).nonzero().flatten().tolist():
        yield port.parameter, port.dim, channel if port.channels is None else port.channels[channel]
