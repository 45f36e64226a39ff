"""The program of a network as an ONNX graph without weights, made by torch's own exporter.

Source: torch.export and torch.onnx (exporter of exported programs, opset 23); names of inputs and outputs are those of
optimum and onnxruntime-genai. Every parameter is a zero that is spread over its shape while the code is followed, so a
model of any size is traced in the memory of its largest activation, and is an input of the graph afterwards: what
folds constants finds none among them.
"""

from __future__ import annotations

import importlib.util
import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from pennyweight.errors import InvalidModel, MissingExtra
from pennyweight.export.following import (
    BATCH,
    LENGTH,
    PAST,
    Described,
    cache_of,
    describe,
    first_layers,
    kept_in,
    quiet,
    sizes_of,
    unfollowed,
)
from pennyweight.network.finding.trace import skeleton
from pennyweight.network.network import Network
from pennyweight.network.sources.source import Source

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 23  # the first with Attention, RMSNormalization and RotaryEmbedding
PACKAGES = ("onnx", "onnxscript")


class _Program(nn.Module):
    """What the graph computes: logits, then keys and values of every layer, from a flat list of those before."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        given = {} if position_ids is None else {"position_ids": position_ids}
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache_of(past), use_cache=True, **given
        )
        return output.logits, *kept_in(output.past_key_values)


def program_of(network: Network) -> ModelProto:
    """The graph of a whole network; parameters are its last inputs, by the names they have in the network.

    Raises:
        MissingExtra: the packages that make it are not installed.
        InvalidModel: torch's exporter cannot follow the network's code.
    """
    return traced(describe(network))


def outline_of(network: Network) -> tuple[ModelProto, int]:
    """The graph of the first layers, one of every kind, and how many times they make the whole: quick to have.

    Raises:
        MissingExtra: as `program_of`.
        InvalidModel: as `program_of`.
    """
    fewer, times = first_layers(describe(network))
    try:
        return traced(fewer), times
    except InvalidModel:  # some families list more by layer than kinds
        return program_of(network), 1


@lru_cache(maxsize=8)
def traced(described: Described) -> ModelProto:
    """The graph that a config.json describes; of equal ones only once.

    Raises:
        MissingExtra: as `program_of`.
        InvalidModel: as `program_of`.
    """
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise MissingExtra(
            f"the package {absent[0]} is not installed, which writes and reads ONNX graphs",
            mend="pip install 'pennyweight[onnx]'", site="--for",
        )  # fmt: skip
    model = skeleton(cast(Source, described))
    try:
        with torch.no_grad(), quiet():
            _spread_zeros(model)
            return _exported(_Program(model), sizes_of(model))
    except Exception as error:  # what torch.export raises depends on the line that it could not follow
        raise unfollowed(described, error) from error


def _exported(program: _Program, layers: list[tuple[int, int]]) -> ModelProto:
    import onnx_ir

    positions = "position_ids" in inspect.signature(program.model.forward).parameters
    total = PAST + LENGTH
    given = (
        torch.zeros(BATCH, LENGTH, dtype=torch.long),
        torch.ones(BATCH, total, dtype=torch.long),
        torch.arange(PAST, total).repeat(BATCH, 1) if positions else None,
        [torch.zeros(BATCH, heads, PAST, size) for heads, size in layers],
    )
    free: Any = torch.export.Dim.AUTO
    text = {0: free, 1: free}
    shapes = (text, text, text if positions else None, [{0: free, 2: free} for _ in layers])
    traced = torch.export.export(program, given, dynamic_shapes=shapes, strict=False)
    kinds = ("key", "value")
    caches = [f"{i}.{kind}" for i in range(len(layers) // 2) for kind in kinds]
    texts = ["input_ids", "attention_mask", *(["position_ids"] if positions else [])]
    made: Any = torch.onnx.export(
        traced, given, dynamo=True, opset_version=OPSET, optimize=False, external_data=False, verbose=False,
        input_names=[*texts, *(f"past_key_values.{name}" for name in caches)],
        output_names=["logits", *(f"present.{name}" for name in caches)],
    )  # fmt: skip
    graph = made.model.graph
    parameters = {name for name, _ in program.named_parameters(remove_duplicate=False)}
    for name in [name for name in graph.initializers if name in parameters]:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    made.optimize()
    return _tidied(onnx_ir.to_proto(made.model), len(texts) + len(caches))


def _tidied(model: ModelProto, inputs: int) -> ModelProto:
    """Names of the network for its parameters, names for free dimensions, and nothing of where the code lies."""
    graph = model.graph
    own = {value.name: value.name.removeprefix("model.") for value in graph.input[inputs:]}
    for value in graph.input[inputs:]:
        value.name = own[value.name]
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = own.get(name, name)
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for tensor in graph.initializer:
        tensor.ClearField("metadata_props")
    for holder in (model, graph):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    graph.ClearField("value_info")
    graph.name, model.producer_name, model.producer_version = "model", "pennyweight", ""
    for value in (*graph.input[:inputs], *graph.output):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
        for i, name in _free(value.name).items():
            value.type.tensor_type.shape.dim[i].dim_param = name
    return model


def _free(name: str) -> dict[int, str]:
    """Dimensions of an input or output that are free, as optimum calls them."""
    if name.startswith("past_key_values."):
        return {0: "batch_size", 2: "past_sequence_length"}
    if name.startswith("present."):
        return {0: "batch_size", 2: "total_sequence_length"}
    return {0: "batch_size", 1: "total_sequence_length" if name == "attention_mask" else "sequence_length"}


def _spread_zeros(model: nn.Module) -> None:
    """Give every parameter the memory of one number; those that are one tensor stay one."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            module._parameters[name] = made.setdefault(id(parameter), nn.Parameter(zeros, requires_grad=False))
