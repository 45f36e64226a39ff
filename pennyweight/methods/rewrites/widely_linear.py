"""Write linear layers in complex numbers: y = U x + V conj(x), halves of a vector being real and imaginary parts.

Identity: [[A11, A12], [A21, A22]] [x1; x2] is U x + V conj(x) with x = x1 + i x2 (see `numerics.fairy2i`).
Source: Fairy2i: Training Complex LLMs from Real LLMs with All Parameters in {±1, ±i} (2025, arXiv:2512.02901).
Algebraic: equal in real arithmetic; U and V are halves of sums of two weights, rounded once.

It changes what a quantizer sees and nothing else. As a codebook after training it gains nothing over signs of real
numbers.

When: to look at weights as {±1, ±i} codes do. Cost: sums of two halves of a weight. Known failures: an odd number of
channels cannot be paired.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pennyweight.network.changing.rebuild import (
    Made,
    Read,
    Rebuilt,
    empty,
    plain_layers,
    rebuilt,
    replace_module,
    stored_dtype,
    structure,
)
from pennyweight.network.network import Network, Site
from pennyweight.numerics.fairy2i import to_widely_linear
from pennyweight.promises import Deterministic, Promise

PARTS = ("u_real", "u_imag", "v_real", "v_imag")


@dataclass(frozen=True, kw_only=True)
class WidelyLinear:
    """Put its widely-linear form in the place of every linear layer with even numbers of outputs and inputs.

    The four real matrices U and V are made of hold as many numbers as the layer did. A layer with an odd side, or
    whose weight something else uses too, stays real, as embeddings and convolutions do.
    """

    name: ClassVar[str] = "widely_linear"
    paper: ClassVar[str] = "arXiv:2512.02901"
    needs: ClassVar[frozenset[str]] = frozenset()
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)

    def rewrite(self, network: Network) -> Network:
        """The network with complex layers.

        Raises:
            InvalidTransform: the network is a checkpoint.
        """
        module = structure(network, self.name)
        made: dict[str, Made] = {}
        dropped: set[str] = set()
        for site, layer in plain_layers(network, module):
            (out, inner), weight = site.shape, layer.get_parameter("weight")
            if site.role == "conv" or out % 2 or inner % 2:
                continue
            for part in PARTS:
                shape, dtype = (out // 2, inner // 2), stored_dtype(network, site.parameter)
                made[f"{site.name}.{part}.weight"] = Made(shape, dtype, _Part(site, part))
            dropped.add(site.parameter)
            replace_module(module, site.name, WidelyLinearLayer((out, inner), weight, getattr(layer, "bias", None)))
        if not made:
            return network
        what = f"{len(dropped)} layers made widely linear"
        return rebuilt(network, Rebuilt(network.source, made, what=what, dropped=frozenset(dropped), module=module))


class WidelyLinearLayer(nn.Module):
    """y = U x + V conj(x) + c in real arithmetic: four products of half the size, each with both halves of x.

    Args:
        shape: numbers of outputs and inputs, both even.
        weight: of the type that parameters have.
        bias: c, if there is one.
    """

    def __init__(self, shape: tuple[int, int], weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        for part in PARTS:
            half = nn.Linear(shape[1] // 2, shape[0] // 2, bias=False, device="meta")
            half.weight = empty((shape[0] // 2, shape[1] // 2), weight)
            self.add_module(part, half)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Real part U_r x1 - U_i x2 + V_r x1 + V_i x2, imaginary part U_r x2 + U_i x1 + V_i x1 - V_r x2."""
        halves = torch.stack(x.chunk(2, -1))
        ur, ui, vr, vi = (self.get_submodule(part)(halves) for part in PARTS)
        y = torch.cat([ur[0] + vr[0] + vi[1] - ui[1], ur[1] + ui[0] + vi[0] - vr[1]], -1)
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class _Part:
    site: Site
    part: str

    def __call__(self, read: Read) -> Tensor:
        u, v = to_widely_linear(self.site.matrix(read(self.site.parameter)))
        whole = u if self.part.startswith("u") else v
        return (whole.real if self.part.endswith("real") else whole.imag).contiguous()
