"""The program of a network as an ONNX graph without weights, made by torch's own exporter.

Source: torch.export and torch.onnx (exporter of exported programs, opset 23); names of inputs and outputs are those of
optimum and onnxruntime-genai. Weights are inputs of the program that is followed (`following.py`) and of the graph.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from pennyweight.errors import InvalidModel, MissingExtra
from pennyweight.export.following import Described, describe, first_layers, follow, quiet, unfollowed
from pennyweight.network.network import Network

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 23  # the first with Attention, RMSNormalization and RotaryEmbedding
PACKAGES = ("onnx", "onnxscript")


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
    import onnx_ir

    followed = follow(described)
    caches = [f"{i}.{kind}" for i in range(followed.layers) for kind in ("key", "value")]
    inputs = [*followed.texts, *(f"past_key_values.{name}" for name in caches)]
    try:
        with torch.no_grad(), quiet():
            made: Any = torch.onnx.export(
                followed.program, (), dynamo=True, opset_version=OPSET, optimize=False, external_data=False,
                verbose=False, input_names=[*inputs, *followed.weights],
                output_names=["logits", *(f"present.{name}" for name in caches)],
            )  # fmt: skip
            made.optimize()
            return _tidied(onnx_ir.to_proto(made.model), len(inputs))
    except Exception as error:  # what torch.onnx raises depends on the operation that it does not know
        raise unfollowed(described, error, by="torch.onnx") from error


def _tidied(model: ModelProto, inputs: int) -> ModelProto:
    """Names for free dimensions, and nothing of where the code lies."""
    graph = model.graph
    for node in graph.node:
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
