"""Follow a network's code by torch.export without its weights: they are inputs of the program, as tokens are.

A weight is a zero that is spread over its shape, so a model of any size is followed in the memory of its largest
activation, and nothing that folds constants finds a weight among them.
"""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.func import functional_call

from pennyweight.errors import InvalidModel
from pennyweight.network.finding.trace import skeleton
from pennyweight.network.network import Network
from pennyweight.network.sources.source import Source

BATCH, LENGTH, PAST = 2, 3, 5  # of the pass that is followed; unlike each other and unlike one: none is a constant
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")  # what configurations call their number


@dataclass(frozen=True)
class Described:
    """All of a source that its code follows from: weights do not matter here.

    Args:
        text: what config.json holds, its keys in order: equal ones are followed once.
        path: for messages.
    """

    text: str
    path: Path

    @property
    def config(self) -> Mapping[str, Any]:
        """What config.json holds."""
        return dict(json.loads(self.text))


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


class _Decoder(nn.Module):
    """The model without its weights, which its last input has."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.models = (model,)  # no submodule: its parameters are no parameters of the program

    def forward(self, texts: dict[str, Tensor], past: list[Tensor], weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
        given = {**texts, "past_key_values": _cache(past), "use_cache": True}
        output = functional_call(self.models[0], weights, (), given, tie_weights=True)
        return output.logits, *_kept(output.past_key_values)


def follow(described: Described) -> Followed:
    """Follow the code of a network.

    Raises:
        InvalidModel: torch.export cannot, or it is no decoder that keeps keys and values.
    """
    model = skeleton(cast(Source, described))
    weights = {name: torch.zeros(()).expand(p.shape) for name, p in model.named_parameters()}
    try:
        with torch.no_grad(), quiet():
            program, texts, layers = _exported(model, weights)
    except Exception as error:  # what torch.export raises depends on the line that it could not follow
        raise unfollowed(described, error) from error
    return Followed(program=program, texts=texts, layers=layers, weights=tuple(weights))


def unfollowed(described: Described, error: Exception, by: str = "torch.export") -> InvalidModel:
    """That a program cannot be made of a network, with the first line of the reason."""
    lines = (line.strip() for line in str(error).splitlines())
    return InvalidModel(
        f"{by} cannot follow the code of {described.config.get('model_type')}: "
        + next((line for line in lines if line), type(error).__name__)[:300],
        expected="a decoder whose keys and values grow with the tokens, such as Llama, Qwen, Gemma or GPT-2",
        mend="choose another engine: transformers reads any model", site=str(described.path),
    )  # fmt: skip


def describe(network: Network) -> Described:
    """What a network's code follows from.

    Raises:
        InvalidModel: it is a module in memory.
    """
    if getattr(network.source, "module", None) is not None:
        raise InvalidModel(
            "it is a module in memory, whose code no config.json names", expected="a model directory",
            mend="save it first, with save_pretrained", site=str(network.source.path),
        )  # fmt: skip
    return _described(network.source.config, network.source.path)


def first_layers(whole: Described, repeated: int = 1) -> tuple[Described, int]:
    """The network with its first layers alone, one of every kind, and how many times they make the whole, rounded up.

    A network that does not say how many layers it has is returned as it is.

    Args:
        whole: all of it.
        repeated: how many times those layers come.
    """
    config = whole.config
    key = next((name for name in LAYERS if isinstance(config.get(name), int)), None)
    kinds = config.get("layer_types") or [""]
    kept = repeated * max(kinds.index(kind) + 1 for kind in set(kinds))
    if key is None or kept >= config[key]:
        return whole, 1
    fewer = {**config, key: kept, **({"layer_types": kinds[:kept]} if "layer_types" in config else {})}
    return _described(fewer, whole.path), -(-config[key] // kept)


def _described(config: Mapping[str, Any], path: Path) -> Described:
    return Described(json.dumps(dict(config), sort_keys=True), path)


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
    past = [torch.zeros(BATCH, heads, PAST, size) for heads, size in _sizes(model)]
    free = Dim.AUTO
    shapes = (
        {name: {0: free, 1: free} for name in texts},
        [{0: free, 2: free} for _ in past],
        dict.fromkeys(weights),
    )
    program = torch.export.export(_Decoder(model), (texts, past, weights), dynamic_shapes=shapes, strict=False)
    return program, tuple(texts), len(past) // 2


def _sizes(model: nn.Module) -> list[tuple[int, int]]:
    """Heads and size of what every layer keeps, keys and values in turn.

    Raises:
        TypeError: it keeps something else.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        ids = torch.zeros(1, 2, dtype=torch.long)
        output = model(input_ids=ids, attention_mask=ids + 1, past_key_values=_cache([]), use_cache=True)
    kept = _kept(output.past_key_values)
    if not kept or any(tensor.dim() != 4 or tensor.shape[2] != 2 for tensor in kept):
        raise TypeError("its layers keep no keys and values for every token")
    return [(tensor.shape[1], tensor.shape[3]) for tensor in kept]


def _cache(past: list[Tensor]) -> Any:
    """What transformers keeps, filled; made without a configuration, so that no layer forgets what is far away.

    Args:
        past: keys and values of every layer in turn.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in zip(past[0::2], past[1::2], strict=True):
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def _kept(cache: Any) -> list[Tensor]:
    """Keys and values of every layer in turn."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
