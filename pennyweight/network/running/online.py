"""Rotations that cannot be folded: applied to what a layer reads while the network runs, undone in its weights.

    y = R(x) R(W)ᵀ = x Wᵀ        for any R that multiplies rows by one orthogonal matrix

QuaRot's R4 turns the input of a down projection, which a gate keeps from being turned beforehand; R3 turns queries and
keys after their positions have. An engine has to do the same at run time, and no format here tells it to: this is a
context in which a whole module computes what such an engine would, with rounding put where its integers would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from pennyweight.errors import InvalidModel
from pennyweight.network.finding.watch import ADDED, CONVOLUTIONS, GROUPED, PRODUCTS, transparent
from pennyweight.network.running.observe import LAYERS
from pennyweight.numerics.hadamard import transform

Rotation = Callable[[Tensor], Tensor]  # of the last dimension; `numerics.hadamard.transform` is one
Rounding = Callable[[str, Tensor], Tensor]  # of a site's input, or of its weight with inputs last
QUERIES_AND_KEYS = F.scaled_dot_product_attention


def in_blocks(size: int) -> Rotation:
    """A Hadamard rotation of every run of so many channels, such as those of a head.

    Raises:
        InvalidMethod: no Hadamard matrix of that order can be built (when it is used).
    """
    return partial(_in_blocks, size)


@contextmanager
def online(
    model: nn.Module, rotations: Mapping[str, Rotation], *, attention: Rotation | None = None,
    round_inputs: Rounding | None = None, round_weights: Rounding | None = None,
    round_keys: Callable[[Tensor], Tensor] | None = None,
    round_probabilities: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[nn.Module]:  # fmt: skip
    """The model, whose named sites rotate what they read for as long as the context lasts; nothing of it is changed.

    Args:
        model: run it inside the context, as often as needed.
        rotations: by the name of a site, such as `model.layers.0.mlp.down_proj`; `identity` only rounds it, and is
            all that a convolution takes.
        attention: turns queries and keys where they meet, if their product is PyTorch's scaled_dot_product_attention.
        round_inputs: applied to what a named site reads, channels last, after its rotation.
        round_weights: applied to the weight of a named site, after its rotation; once for each.
        round_keys: applied to keys, after their rotation.
        round_probabilities: applied to what the softmax of attention gives, before it meets the values; attention is
            then computed step by step.

    Raises:
        InvalidModel: a site is not one of the model's, or it was never seen to multiply anything.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {site: parameters.get(f"{site}.weight", parameters.get(site)) for site in rotations}
    unknown = [site for site, parameter in found.items() if parameter is None]
    if unknown:
        raise InvalidModel(
            f"there is no weight called {unknown[0]}", expected="names of sites, such as those of network.sites",
            mend="pw.network_of(model).by_name lists them", site=type(model).__name__,
        )  # fmt: skip
    named = {p.untyped_storage().data_ptr(): site for site, p in found.items() if p is not None}
    mode = _Online(named, rotations, attention, round_inputs, round_weights, round_keys, round_probabilities)
    with transparent(), mode:
        yield model
    missing = [site for site in rotations if site not in mode.seen]
    if missing or ((attention or round_probabilities) and not mode.attended):
        raise InvalidModel(
            f"{missing[0] if missing else 'attention'} was never seen to multiply anything: nothing was changed there",
            expected="layers, convolutions that are not turned, and attention by "
            "torch.nn.functional.scaled_dot_product_attention",
            mend="attn_implementation='sdpa', and sites that the inputs reach; leave the others out",
            site=type(model).__name__,
        )  # fmt: skip


def identity(x: Tensor) -> Tensor:
    """No rotation, for a site that is only rounded."""
    return x


class _Online(TorchFunctionMode):
    def __init__(
        self, named: Mapping[int, str], rotations: Mapping[str, Rotation], attention: Rotation | None,
        round_inputs: Rounding | None, round_weights: Rounding | None, round_keys: Rotation | None,
        round_probabilities: Rotation | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.seen: set[str] = set()
        self.attended = False
        self._named, self._rotations, self._attention = named, rotations, attention
        self._round_inputs, self._round_weights, self._round_keys = round_inputs, round_weights, round_keys
        self._round_probabilities = round_probabilities
        self._folded: dict[tuple[Any, ...], Tensor] = {}  # weights that were rotated once, by where they lie

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is QUERIES_AND_KEYS and (self._attention or self._round_keys or self._round_probabilities):
            return self._attend(*args, **kwargs)
        if func in CONVOLUTIONS:
            return self._convolve(func, args, kwargs)
        first = 1 if func in ADDED else 0
        if func in LAYERS or func in PRODUCTS or func in GROUPED or func in ADDED:
            given = list(args)
            for place, name in ((first, "input"), (first + 1, "weight")):
                if len(given) == place and name in kwargs:
                    given.append(kwargs.pop(name))
            x, weight = (given[first], given[first + 1]) if len(given) > first + 1 else (None, None)
            site = self._named.get(weight.untyped_storage().data_ptr()) if isinstance(weight, Tensor) else None
            if site is not None and isinstance(x, Tensor) and isinstance(weight, Tensor):
                given[first] = self._input(site, x)
                given[first + 1] = self._weight(site, weight, rows=func in LAYERS)
            args = tuple(given)
        return func(*args, **kwargs)

    def _convolve(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A convolution whose input and kernel are rounded, channels last; one that is to be turned is left alone."""
        given = dict(zip(("input", "weight"), args, strict=False)) | kwargs
        site = self._named.get(given["weight"].untyped_storage().data_ptr())
        if site is not None and self._rotations[site] is identity:
            channels = -1 - CONVOLUTIONS[func]
            given["input"] = self._input(site, given["input"].movedim(channels, -1)).movedim(-1, channels)
            given["weight"] = self._weight(site, given["weight"].movedim(1, -1), rows=True).movedim(-1, 1)
        return func(given.pop("input"), given.pop("weight"), *args[2:], **given)

    def _input(self, site: str, x: Tensor) -> Tensor:
        self.seen.add(site)
        turned = self._rotations[site](x)
        return self._round_inputs(site, turned) if self._round_inputs else turned

    def _weight(self, site: str, weight: Tensor, *, rows: bool) -> Tensor:
        """The weight with its inputs rotated; they are the last dimension, or the last but one where not `rows`."""
        place = (site, weight.storage_offset(), tuple(weight.shape), weight.stride(), weight.dtype)
        if place not in self._folded:
            turned = self._rotations[site](weight if rows else weight.mT)
            turned = self._round_weights(site, turned) if self._round_weights else turned
            self._folded[place] = turned if rows else turned.mT
        return self._folded[place]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        self.attended = True
        if self._attention:
            query, key = self._attention(query), self._attention(key)
        key = self._round_keys(key) if self._round_keys else key
        if self._round_probabilities:
            return _step_by_step(self._round_probabilities, query, key, value, *rest, **kwargs)
        return QUERIES_AND_KEYS(query, key, value, *rest, **kwargs)


def _step_by_step(
    change: Rotation, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """PyTorch's attention as its documentation writes it out, with something done to the probabilities."""
    if enable_gqa:
        copies = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(copies, -3), value.repeat_interleave(copies, -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return F.dropout(change(scores.softmax(-1)), dropout_p) @ value


def _in_blocks(size: int, x: Tensor) -> Tensor:
    result: Tensor = transform(x.reshape(*x.shape[:-1], -1, size)).reshape(x.shape)
    return result
