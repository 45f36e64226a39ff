"""Multiply batch norms into the convolution or linear layer they stand behind.

Identity: g (W x + c - m) / sqrt(v + eps) + b = (s W) x + s (c - m) + b with s = g / sqrt(v + eps).
Source: Jacob et al., 2017, arXiv:1712.05877, section 3.2; every converter for inference does it.
Algebraic: equal in real arithmetic. In evaluation the statistics m, v are constants: the norm is a scale and a shift.

When: always, before weights of a convolution are rounded: they are what an engine multiplies with. Cost: none. Known
failures: a norm whose input is read elsewhere too stays; one that is trained further must not be folded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pennyweight.network.changing.rebuild import (
    Made,
    Read,
    Rebuilt,
    empty,
    rebuilt,
    replace_module,
    shared,
    stored_dtype,
    structure,
)
from pennyweight.network.finding.inputs import example
from pennyweight.network.finding.trace import skeleton
from pennyweight.network.finding.watch import Cut, Watched, watch
from pennyweight.network.network import Network
from pennyweight.numerics.random import stream
from pennyweight.promises import Deterministic, Promise


@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm:
    """Put an identity in the place of every batch norm that a layer alone feeds and that alone reads it.

    The layer gets a bias where it has none. A norm in front of its layer, one whose layer is read by something else
    too, and one whose layer runs twice stay as they are.
    """

    name: ClassVar[str] = "fold_batch_norm"
    paper: ClassVar[str] = "arXiv:1712.05877"
    needs: ClassVar[frozenset[str]] = frozenset()
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)

    def rewrite(self, network: Network) -> Network:
        """The same network without those norms; what it was if there are none.

        Raises:
            InvalidTransform: the network is a checkpoint and holds such norms.
        """
        model = skeleton(network.source)
        found = [
            (cut, name) for cut, name in pairs(watch(model, network.inputs or example(model)))
            if _foldable(network, model, cut, name)
        ]  # fmt: skip
        if not found:
            return network
        module = structure(network, self.name)
        made: dict[str, Made] = {}
        dropped: set[str] = set()
        for cut, name in found:
            layer, norm = module.get_submodule(cut.name), module.get_submodule(name)
            assert isinstance(norm, _BatchNorm)
            made |= _folded(network, cut, layer, name, norm)
            if layer.bias is None:
                layer.bias = empty((norm.num_features,), layer.weight)
            replace_module(module, name, nn.Identity())
            dropped |= {f"{name}.{own}" for own in norm.state_dict()}
        what = f"{len(found)} batch norms folded"
        return rebuilt(network, Rebuilt(network.source, made, what=what, dropped=frozenset(dropped), module=module))


def pairs(watched: Watched) -> Iterator[tuple[Cut, str]]:
    """Layers with the name of the norm that reads what they write, where nothing else does.

    A random combination of everything that is read is differentiated once. If a norm is the only reader of an
    activation, the derivative is the norm's own random weights, bit for bit.
    """
    readers = [r for r in watched.readers.values() if r.tensor.requires_grad]
    draws = {r.name: torch.randn(r.tensor.shape, generator=stream(0, r.name), dtype=r.tensor.dtype) for r in readers}
    total = torch.stack([(r.tensor * draws[r.name]).sum() for r in readers]).sum()
    leaves = [watched.writers[cut.writer] for cut in watched.cuts]
    slopes = torch.autograd.grad(total, [leaf.tensor for leaf in leaves], allow_unused=True)
    for cut, leaf, slope in zip(watched.cuts, leaves, slopes, strict=True):
        for reader in readers:
            if reader.kind != "norm" or slope is None or slope.shape != reader.tensor.shape:
                continue
            if torch.equal(slope, draws[reader.name]) and torch.equal(reader.tensor, leaf.tensor):
                yield cut, reader.name.removesuffix(":input")


def _foldable(network: Network, model: nn.Module, cut: Cut, name: str) -> bool:
    """Whether both are plain modules of torch that run once, with tensors of their own."""
    modules = dict(model.named_modules(remove_duplicate=False))
    layer, norm = modules.get(cut.name), modules.get(name)
    if not isinstance(norm, _BatchNorm) or type(norm).forward is not _BatchNorm.forward:
        return False  # one that does more than normalise, such as a rectifier behind it
    if not isinstance(layer, nn.Linear | _ConvNd) or not type(layer).forward.__module__.startswith("torch.nn"):
        return False
    own = [
        *(f"{cut.name}.{n}" for n, _ in layer.named_parameters()),
        *(f"{name}.{n}" for n, _ in norm.named_parameters()),
    ]
    return not any(shared(network, parameter) for parameter in own) and cut.writer == f"{cut.name}:output"


def _folded(network: Network, cut: Cut, layer: nn.Module, name: str, norm: _BatchNorm) -> dict[str, Made]:
    size, eps = norm.num_features, norm.eps
    gained, shifted = norm.weight is not None, norm.bias is not None
    weight, bias, biased = f"{cut.name}.weight", f"{cut.name}.bias", layer.bias is not None
    shape = tuple(layer.weight.shape)  # type: ignore[arg-type]

    def scale(read: Read) -> Tensor:
        return (read(f"{name}.weight") if gained else 1.0) / (read(f"{name}.running_var") + eps).sqrt()

    def scaled(read: Read) -> Tensor:
        factor, stored = scale(read), read(weight)
        if isinstance(layer, _ConvTransposeNd):  # [in, out / groups, ...]: input i feeds the outputs of its group
            factor = factor.reshape(cut.groups, 1, -1).expand(-1, shape[0] // cut.groups, -1).reshape(shape[0], -1)
            return stored * factor.reshape(*factor.shape, *[1] * (stored.dim() - 2))
        return stored * factor.reshape(-1, *[1] * (stored.dim() - 1))

    def moved(read: Read) -> Tensor:
        constant = (read(bias) if biased else 0.0) - read(f"{name}.running_mean")
        return scale(read) * constant + (read(f"{name}.bias") if shifted else 0.0)

    dtype = stored_dtype(network, weight)
    return {weight: Made(shape, dtype, scaled), bias: Made((size,), dtype, moved)}
