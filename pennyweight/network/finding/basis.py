"""Changes of basis: groups of transforms, the tensors that take them, and trial transforms of channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pennyweight.network.finding.watch import Port

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
        norms: names of norms that have to hold no gain first.
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


def merged(sides: Iterable[Side]) -> tuple[Side, ...] | None:
    """The sides without repetitions; None when one tensor would have to change in two ways."""
    kept: dict[tuple[object, ...], Side] = {}
    for side in sides:
        port = side.port
        first = kept.setdefault((port.parameter, port.dim, port.channels, side.inverse), side)
        if not torch.equal(first.index, side.index) or first.port != port:
            return None
    return tuple(kept.values())


# Trial transforms of the last dimension

Mix = tuple[Tensor, Tensor]  # u and v [blocks, b] of the matrices I + u vᵀ: full matrices, at the cost of vectors


def drawn_mix(blocks: int, size: int, generator: torch.Generator) -> Mix:
    """Matrices that mix every channel of a block with every other, far from singular."""
    u, v = torch.rand(2, blocks, size, generator=generator, dtype=torch.float64) / size**0.5
    return u, v


def contragredient(mix: Mix) -> Mix:
    """The inverse transposed."""
    u, v = mix
    return -v / (1 + (u * v).sum(-1, keepdim=True)), u


def blockwise(mix: Mix, x: Tensor) -> Tensor:
    """Every block of channels of x times its matrix from the left."""
    u, v = mix
    parts = x.reshape(*x.shape[:-1], *u.shape)
    return (parts + (parts * v).sum(-1, keepdim=True) * u).reshape(x.shape)


def mixed(x: Tensor, mix: Mix, index: Tensor) -> Tensor:
    """Channels that follow a transform in whole blocks, mixed as it says."""
    block, chosen = mix[0].shape[-1], (index >= 0).nonzero().flatten()
    if len(chosen) == 0:
        return x
    blocks, last = index[chosen][::block] // block, x.clone()
    last[..., chosen] = blockwise((mix[0][blocks], mix[1][blocks]), x[..., chosen])
    return last


def scaled(x: Tensor, scales: Tensor, index: Tensor) -> Tensor:
    """Every channel times the scale it follows."""
    return x * torch.where(index >= 0, scales[index.clamp(min=0)], 1.0)


def shifted(x: Tensor, constant: Tensor, index: Tensor) -> Tensor:
    """Every channel plus the constant it follows."""
    return x + torch.where(index >= 0, constant[index.clamp(min=0)], 0.0)


def reordered(x: Tensor, order: Tensor, index: Tensor) -> Tensor | None:
    """Channels that follow an order of what they belong to; None where those do not have equally many each."""
    if bool((index < 0).all()):
        return x
    chosen = (index >= 0).nonzero().flatten()
    counts = torch.bincount(index[chosen], minlength=len(order))
    if len(counts) != len(order) or bool((counts != counts[0]).any()):
        return None
    places = chosen[index[chosen].argsort(stable=True)].reshape(len(order), -1)
    moved = x.clone()
    moved[..., places.flatten()] = x[..., places[order].flatten()]
    return moved


def in_whole_blocks(index: Tensor, block: int) -> bool:
    """Whether the channels that follow a transform do so in whole blocks, in order."""
    chosen = index[index >= 0]
    if len(chosen) % block:
        return False
    rows = chosen.reshape(-1, block)
    return bool((rows[:, :1] % block == 0).all()) and bool((rows == rows[:, :1] + torch.arange(block)).all())


def grouped(many: int, few: int, head: int) -> Tensor:
    """For every channel of the larger side, which of the smaller it goes with: heads share keys group by group."""
    share, j = many // few, torch.arange(many)
    return (j // head // share) * head + j % head


def shared(size: int, head: int, way: str) -> Tensor:
    """Which scale each channel takes, when channels that rotate together must share one."""
    j = torch.arange(size)
    if way == "free":
        return j
    half, inside = max(1, head // 2), j % head
    pair = inside % half if way == "halves" else inside // 2
    return (j // head) * half + pair
