"""What all rotations share: which edges let channels be mixed, and which gains have to leave the norms first.

Identity: for an orthogonal T, (W Tᵀ) (T x) = W x, and a norm without gain gives n(T x) = T n(x).
Source: QuaRot (Ashkboos et al., 2024, arXiv:2404.00456) and SpinQuant (Liu et al., 2024, arXiv:2405.16406): R1 turns
the residual stream, R2 the values of every head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pennyweight.errors import InvalidTransform
from pennyweight.methods.rewrites.fold_norms import FoldNorms
from pennyweight.network.changing.fold import EXACT, Fold, Rewritten, Transform
from pennyweight.network.finding.kinds import norm_of_edge
from pennyweight.network.finding.symmetry import INVERTIBLE, ORTHOGONAL, Symmetry
from pennyweight.network.sources.source import Source
from pennyweight.numerics.hadamard import keeping_mean

Draw = Callable[[int], Tensor]  # an orthogonal matrix of this order


@dataclass(frozen=True)
class Rotatable:
    """What can be rotated, once some gains are folded away.

    Args:
        folds: those that empty the norms, to be applied first.
        edges: whose channels may then be mixed.
    """

    folds: tuple[Fold, ...]
    edges: tuple[Symmetry, ...]


def rotatable(
    symmetries: Sequence[Symmetry], source: Source, generator: Generator, *, method: str, residual: bool, heads: bool,
    fold: bool,
) -> Rotatable:  # fmt: skip
    """Spaces of norms whose gains can leave, and edges whose channels mix in blocks.

    A space with a norm that adds its output to the stream keeps that norm's gain, and is left as it is.

    Args:
        symmetries: of the network.
        source: its weights, with everything folded in so far.
        generator: handed on.
        method: the name of who asks, for messages.
        residual: whether spaces are wanted.
        heads: whether blocks of channels are wanted.
        fold: whether gains may be folded; if not, spaces are taken as they are.

    Raises:
        InvalidTransform: a shared tensor keeps a gain from leaving, or nothing at all can be rotated.
    """
    spaces = [symmetry for symmetry in symmetries if symmetry.group == ORTHOGONAL and residual]
    named = {norm for space in spaces for norm in space.norms}
    fed = [s for s in symmetries if norm_of_edge(s) in named and fold]
    emptied = FoldNorms().choose(fed, source, {}, generator=generator)
    folds: list[Fold] = []
    edges: list[Symmetry] = []
    kept: list[str] = []
    for space in spaces:
        own = [one for one in emptied if norm_of_edge(one.symmetry) in space.norms]
        gains = gains_left(space, source, own) if fold else []
        _refuse_tie(space, gains, method)
        kept += gains
        folds += [] if gains else own
        edges += [] if gains else [space]
    edges += [symmetry for symmetry in symmetries if symmetry.group == INVERTIBLE and symmetry.block > 1 and heads]
    if not edges:
        raise InvalidTransform(
            f"the gain of {kept[0]} cannot leave: not only layers read it, and nothing else can be rotated"
            if kept else "nothing of this network can be rotated",
            expected="a residual stream whose norms are read by layers, or heads whose values an output layer reads",
            mend="leave rotations out; scales are let through by more edges", site=method,
        )  # fmt: skip
    return Rotatable(tuple(folds), tuple(edges))


def gains_left(space: Symmetry, source: Source, folds: Sequence[Fold]) -> list[str]:
    """Norms of a space that still multiply by something after these folds."""
    after, left = Rewritten(source, folds), []
    for side in space.sides:
        port, owner = side.port, side.port.parameter.rpartition(".")[0]
        if port.kind != "gain" or owner not in space.norms or owner in left:
            continue
        if float((after.exact(port.parameter) + port.offset - 1).abs().max()) > EXACT:
            left.append(owner)
    return left


def drawn(symmetry: Symmetry, draw: Draw) -> Tensor:
    """Orthogonal blocks `[blocks, b, b]` for an edge; for one that keeps the mean, of what is perpendicular to it."""
    if symmetry.fixes_mean:
        return draw(symmetry.size - 1)[None]
    return torch.stack([draw(symmetry.block) for _ in range(symmetry.size // symmetry.block)])


def rotation(symmetry: Symmetry, blocks: Tensor) -> Transform:
    """The transform of an edge that `drawn` blocks stand for."""
    return Transform(matrix=keeping_mean(blocks[0])[None] if symmetry.fixes_mean else blocks)


def _refuse_tie(space: Symmetry, gains: Sequence[str], method: str) -> None:
    """A gain that a shared tensor does not let go can leave once the tensor is no longer shared."""
    written = {(side.port.parameter, side.port.dim) for side in space.writers}
    tied = sorted({s.port.parameter for s in space.readers if (s.port.parameter, s.port.dim) in written})
    # A shared tensor reads the output of one norm; where more gains stay than that, untying would not let them go.
    if gains and len(gains) <= len(tied):
        raise InvalidTransform(
            f"the gain of {gains[0]} would go into {tied[0]}, which also writes to this edge",
            expected="a tensor of its own for the layer that reads the last norm",
            mend=f"--with untie,{method}: the output head gets a tensor of its own", site=space.name,
        )  # fmt: skip
