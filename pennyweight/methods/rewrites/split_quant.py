"""Split a layer into three whose weights lie in narrow ranges and add up to its own.

Identity: W x + c = Σ_k (W_k x + c_k), where each weight and bias stands in one of the parts and the others hold zero.
Source: SplitQuant: Layer Splitting for Low-Bit Neural Network Quantization (2025, arXiv:2501.12428).
Bitwise in the weights: the three add up to the original exactly. Algebraic in the outputs, which are sums of three.

A format for the parts has to hold zero exactly, or each adds an offset where another part has the weight. Three parts
of b bits are a codebook of 3 · 2^b values: compare them with a format of b + log2(3) bits.

When: to compare, for an engine that has no groups. Cost: three layers in place of one, at run time too. Known failures:
bits for bits it stays behind a codebook.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

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
from pennyweight.network.network import Network
from pennyweight.numerics.clusters import split_parts
from pennyweight.promises import Deterministic, Promise

PARTS = ("lower", "middle", "upper")


@dataclass(frozen=True, kw_only=True)
class SplitQuant:
    """Put three layers in the place of every linear layer and convolution; norms and embeddings stay.

    Clusters are those of k-means over the weights of a layer, of a convolution kernel by kernel, and over its bias. A
    layer whose weight something else uses too stays whole. Three times the weights to store, until they are packed.

    Args:
        convolutions: split them too.
    """

    name: ClassVar[str] = "split_quant"
    paper: ClassVar[str] = "arXiv:2501.12428"
    needs: ClassVar[frozenset[str]] = frozenset()
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    convolutions: bool = True

    def rewrite(self, network: Network) -> Network:
        """The network with its layers in three parts.

        Raises:
            InvalidTransform: the network is a checkpoint.
        """
        module = structure(network, self.name)
        made: dict[str, Made] = {}
        dropped: set[str] = set()
        for site, layer in plain_layers(network, module):
            kernels = site.role == "conv"
            if kernels and (not self.convolutions or isinstance(layer, _ConvTransposeNd)):
                continue
            for own, value in list(layer.named_parameters()):
                stored = f"{site.name}.{own}"
                dropped.add(stored)
                for number, part in enumerate(PARTS):
                    formula = _Part(stored, number, kernels and value.dim() > 1)
                    made[f"{site.name}.{part}.{own}"] = Made(tuple(value.shape), stored_dtype(network, stored), formula)
            replace_module(module, site.name, Split(layer))
        if not made:
            return network
        what = f"{len(dropped)} tensors split in three"
        return rebuilt(network, Rebuilt(network.source, made, what=what, dropped=frozenset(dropped), module=module))


class Split(nn.Module):
    """The sum of three layers of one kind.

    Args:
        layer: the kind; its parameters are not looked at.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for part in PARTS:
            own = copy.deepcopy(layer)
            for name, parameter in list(own.named_parameters()):
                own.register_parameter(name, empty(tuple(parameter.shape), parameter))
            self.add_module(part, own)

    def forward(self, x: Tensor) -> Tensor:
        """lower(x) + middle(x) + upper(x)."""
        lower, middle, upper = (self.get_submodule(part)(x) for part in PARTS)
        return lower + middle + upper  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Part:
    stored: str
    number: int
    kernels: bool

    def __call__(self, read: Read) -> Tensor:
        tensor = read(self.stored)
        if not self.kernels:
            return split_parts(tensor)[self.number]
        return torch.stack([split_parts(kernel)[self.number] for kernel in tensor])
