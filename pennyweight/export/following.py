"""Follow a network's code by torch.export without its weights: they are inputs of the program, as tokens are.

A weight is a zero that is spread over its shape, so a model of any size is followed in the memory of its largest
activation, and nothing that folds constants finds a weight among them.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.func import functional_call

from pennyweight.errors import InvalidModel
from pennyweight.network.finding.trace import skeleton
from pennyweight.network.sources.source import Derived, Source

BATCH, LENGTH, PAST = 2, 3, 5  # of the pass that is followed; unlike each other and unlike one: none is a constant
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")  # what configurations call their number


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A decoder as a program of tokens, of keys and values before, and of its weights.

    Args:
        program: it gives logits, then keys and values of every layer.
        texts: names of the inputs that come first.
        layers: that keep keys and values; the inputs after the texts, keys and values in turn.
        weights: names of the parameters; the last inputs. Tensors that are tied come once.
    """

    program: ExportedProgram
    texts: tuple[str, ...]
    layers: int
    weights: tuple[str, ...]


class _Fewer(Derived):
    """A source whose configuration has another number of layers; its weights are never read."""

    fingerprint = description = ""

    def __init__(self, source: Source, config: Mapping[str, Any]) -> None:
        self.source, self._config = source, config

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    def read(self, name: str) -> Tensor:
        return self.source.read(name)


class _Decoder(nn.Module):
    """The model without its weights, which its last input has."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.models = (model,)  # no submodule: its parameters are no parameters of the program

    def forward(
        self, texts: dict[str, Tensor], past: list[tuple[Tensor, Tensor]], weights: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        given = {**texts, "past_key_values": _cache(past), "use_cache": True}
        output = functional_call(self.models[0], weights, (), given, tie_weights=True)
        return output.logits, *_kept(output.past_key_values)


def follow(source: Source) -> Followed:
    """Follow the code of the network that a source holds.

    Raises:
        InvalidModel: torch.export cannot, or it is no decoder that keeps keys and values.
    """
    model = skeleton(source)
    weights = {name: torch.zeros(()).expand(p.shape) for name, p in model.named_parameters()}
    try:
        with torch.no_grad(), quiet():
            program, texts, layers = _exported(model, weights)
    except Exception as error:  # what torch.export raises depends on the line that it could not follow
        raise unfollowed(source, error) from error
    return Followed(program=program, texts=texts, layers=layers, weights=tuple(weights))


def unfollowed(source: Source, error: Exception) -> InvalidModel:
    """That a program cannot be made of a network, with the first line of the reason."""
    lines = (line.strip() for line in str(error).splitlines())
    return InvalidModel(
        f"the code of {source.config.get('model_type')} cannot be followed: "
        + next((line for line in lines if line), type(error).__name__)[:300],
        expected="a decoder whose keys and values grow with the tokens, such as Llama, Qwen, Gemma or GPT-2",
        mend="choose another engine: transformers reads any model", site=str(source.path),
    )  # fmt: skip


def first_layers(source: Source, repeated: int = 1) -> tuple[Source, int]:
    """The network with its first layers alone, one of every kind, and how many times they make the whole, rounded up.

    A module in memory and a network that does not say how many layers it has are returned as they are.

    Args:
        source: is not changed.
        repeated: how many times those layers come.
    """
    config = source.config
    key = next((name for name in LAYERS if isinstance(config.get(name), int)), None)
    if key is None or getattr(source, "module", None) is not None:
        return source, 1
    kinds = config.get("layer_types") or [""]
    kept = repeated * max(kinds.index(kind) + 1 for kind in set(kinds))
    if kept >= config[key]:
        return source, 1
    fewer = {**config, key: kept, **({"layer_types": kinds[:kept]} if "layer_types" in config else {})}
    return _Fewer(source, fewer), -(-config[key] // kept)


@contextmanager
def quiet() -> Iterator[None]:
    """What exporters advise is for those who write models."""
    usual = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(usual)


def _exported(model: nn.Module, weights: dict[str, Tensor]) -> tuple[ExportedProgram, tuple[str, ...], int]:
    total = PAST + LENGTH
    texts = {
        "input_ids": torch.zeros(BATCH, LENGTH, dtype=torch.long),
        "attention_mask": torch.ones(BATCH, total, dtype=torch.long),
        "position_ids": torch.arange(PAST, total).repeat(BATCH, 1),
    }
    if "position_ids" not in inspect.signature(model.forward).parameters:
        del texts["position_ids"]
    sizes = _sizes(model)
    past = [tuple(torch.zeros(BATCH, heads, PAST, size) for heads, size in layer) for layer in sizes]
    free = Dim.AUTO
    shapes = (
        {name: {0: free, 1: free} for name in texts},
        [({0: free, 2: free}, {0: free, 2: free}) for _ in sizes],
        dict.fromkeys(weights),
    )
    program = torch.export.export(_Decoder(model), (texts, past, weights), dynamic_shapes=shapes, strict=False)
    return program, tuple(texts), len(sizes)


def _sizes(model: nn.Module) -> list[list[tuple[int, int]]]:
    """Heads and size of what every layer keeps, of keys and of values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        ids = torch.zeros(1, 2, dtype=torch.long)
        output = model(input_ids=ids, attention_mask=ids + 1, past_key_values=_cache([]), use_cache=True)
    kept = _kept(output.past_key_values)
    if not kept or any(tensor.dim() != 4 or tensor.shape[2] != 2 for tensor in kept):
        raise TypeError("its layers keep no keys and values for every token")
    sizes = [(tensor.shape[1], tensor.shape[3]) for tensor in kept]
    return [sizes[i : i + 2] for i in range(0, len(sizes), 2)]


def _cache(past: list[tuple[Tensor, Tensor]]) -> Any:
    """What transformers keeps, filled; without a configuration, so that no layer forgets what is far away."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in past:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def _kept(cache: Any) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
