"""Turn LayerNorms into RMSNorms.

Identity: Var(x) = mean(x²) where mean(x) = 0, so on a residual stream whose writers are centred
g (x - mean(x)) / sqrt(Var(x) + eps) + b = g x / sqrt(mean(x²) + eps) + b.
Source: Pre-RMSNorm and Pre-CRMSNorm Transformers (Jiang, Gu, Zhu and Pan, 2023, arXiv:2305.14858).
Algebraic: equal in real arithmetic.

It lets the stream be rotated: an RMSNorm commutes with every rotation. It saves time only where the RMSNorm is the
faster kernel, which torch's is not on a processor (benchmarks/results/pre_rms_norm.json).

Compressed (CRMSNorm), the last channel is not stored either, since it is minus the sum of the others: `crms_norm`,
`compressed_writer` and `compressed_reader`. A width of d - 1 suits few kernels, so these are functions and no rewrite.

When: before a rotation of a network with LayerNorms. Cost: that of `centre_writers`. Known failures: a stream whose
writers cannot be centred keeps its LayerNorms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pennyweight.methods.rewrites.centre_writers import CentreWriters, residuals
from pennyweight.network.changing.fold import exact
from pennyweight.network.changing.rebuild import (
    Rebuilt,
    empty,
    reached_into,
    rebuilt,
    replace_module,
    shared,
    structure,
)
from pennyweight.network.network import Network
from pennyweight.promises import Deterministic, Promise

ROUNDING = 1e-14  # of a bias that was moved away, beside outputs of size 1


@dataclass(frozen=True, kw_only=True)
class LayerToRMS:
    """Centre the writers of every residual stream that only LayerNorms read, and replace these norms.

    The epsilon stays the norm's own. A bias that is not zero stays too: rewrite with `fold_norms` first to move it
    where the layers behind have one. Modules in memory only: a checkpoint's config.json says LayerNorm, and on centred
    writers that computes the same, so `centre_writers` alone is as exact there.
    """

    name: ClassVar[str] = "layer_to_rms"
    paper: ClassVar[str] = "arXiv:2305.14858"
    needs: ClassVar[frozenset[str]] = frozenset()
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)

    def rewrite(self, network: Network) -> Network:
        """The same network with RMSNorms; what it was if no LayerNorm can become one.

        Raises:
            InvalidTransform: the network is a checkpoint, or a writer shares its tensor with a layer that reads.
        """
        names = [name for residual in residuals(network) for name in residual.norms]
        if not names:
            return network
        module = structure(network, self.name, "use centre_writers: its LayerNorms then compute what RMSNorms would")
        norms = {name: norm for name in names if isinstance(norm := module.get_submodule(name), nn.LayerNorm)}
        plain = {name: norm for name, norm in norms.items() if type(norm).forward is nn.LayerNorm.forward}
        centre = CentreWriters().rewrite(network)
        asked, dropped = reached_into(network, list(plain)), set()
        for name, norm in plain.items():
            kept = norm.bias is not None and ("bias" in asked[name] or self._holds_bias(network, name))
            if norm.bias is not None and not kept:
                dropped.add(f"{name}.bias")
            replace_module(module, name, _rms(norm, kept))
        what = f"{len(plain)} LayerNorms became RMSNorms"
        return rebuilt(centre, Rebuilt(centre.source, {}, what=what, dropped=frozenset(dropped), module=module))

    @staticmethod
    def _holds_bias(network: Network, name: str) -> bool:
        """Whether there is more than what rounding left when the bias was folded."""
        bias = exact(network.source, network.stored_name(f"{name}.bias"))
        return shared(network, f"{name}.bias") or float(bias.abs().max()) > ROUNDING


class RMSNormWithBias(nn.RMSNorm):
    """An RMSNorm that adds a bias, for a norm whose readers cannot take it."""

    def __init__(self, shape: tuple[int, ...], eps: float, bias: nn.Parameter) -> None:
        super().__init__(shape, eps=eps, device="meta", dtype=bias.dtype)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """The RMSNorm of x, plus b."""
        return super().forward(x) + self.bias


def _rms(norm: nn.LayerNorm, biased: bool) -> nn.RMSNorm:
    shape, gained = tuple(norm.normalized_shape), norm.weight is not None
    if biased:
        new: nn.RMSNorm = RMSNormWithBias(shape, norm.eps, empty(shape, norm.bias))
    else:
        new = nn.RMSNorm(shape, eps=norm.eps, elementwise_affine=gained, device="meta")
    new.weight = empty(shape, norm.weight) if gained else None  # type: ignore[assignment]
    return new


# CRMSNorm: the stream without its last channel


def crms_norm(x: Float[Tensor, "... d-1"], eps: float) -> Float[Tensor, "... d-1"]:
    """The first d - 1 channels of the RMSNorm of the vector of mean zero that x is the beginning of."""
    square = x.square().sum(-1, keepdim=True) + x.sum(-1, keepdim=True).square()
    return x * torch.rsqrt(square / (x.shape[-1] + 1) + eps)


def compressed_writer(weight: Float[Tensor, "d ..."]) -> Float[Tensor, "d-1 ..."]:
    """The weight or bias of a centred writer without the output that the others tell; an embedding's, transposed."""
    return weight[:-1]


def compressed_reader(weight: Float[Tensor, "out d"]) -> Float[Tensor, "out d-1"]:
    """A weight that reads d - 1 channels instead of d: W x = Σ_i (w_i - w_d) x_i, since x_d = -Σ_i x_i."""
    return weight[:, :-1] - weight[:, -1:]
