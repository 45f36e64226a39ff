"""The program of a network in OpenVINO's representation, its weights still inputs: made by OpenVINO's own frontend.

Source: openvino 2026.4, its PyTorch frontend, and the transformation that makes keys and values a state of the model;
names of inputs, outputs and states are those of optimum-intel, which openvino-genai expects. The frontend is called
without `openvino.convert_model`, which tells its makers that it ran.
"""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from pennyweight.errors import InvalidModel, MissingExtra
from pennyweight.export.following import Described, Followed, describe, first_layers, follow, quiet, unfollowed
from pennyweight.network.network import Network


@dataclass(frozen=True, eq=False)
class Program:
    """A model whose weights are inputs.

    Args:
        xml: as OpenVINO writes it; layers and tensors have names that do not depend on what ran before.
        constants: what the numbers in it that are no weights are stored as.
    """

    xml: bytes
    constants: bytes


def program_of(network: Network) -> Program:
    """The program of a whole network.

    Raises:
        MissingExtra: OpenVINO is not installed.
        InvalidModel: torch.export or OpenVINO cannot follow the network's code.
    """
    return traced(describe(network))


def outline_of(network: Network, repeated: int = 1) -> tuple[Program, int]:
    """The program of the first layers, one of every kind, and how many times they make the whole: quick to have.

    Args:
        network: whose weights are not read.
        repeated: how many times those layers come.

    Raises:
        MissingExtra: as `program_of`.
        InvalidModel: as `program_of`.
    """
    fewer, times = first_layers(describe(network), repeated)
    try:
        return traced(fewer), times
    except InvalidModel:  # some families list more by layer than kinds
        return program_of(network), 1


@lru_cache(maxsize=8)
def traced(described: Described) -> Program:
    """The program that a config.json describes; of equal ones only once.

    Raises:
        MissingExtra: as `program_of`.
        InvalidModel: as `program_of`.
    """
    if importlib.util.find_spec("openvino") is None:
        raise MissingExtra(
            "the package openvino is not installed, which follows a network's code",
            mend="pip install 'pennyweight[openvino]'", site="--for",
        )  # fmt: skip
    followed = follow(described)
    try:
        with quiet():
            model = _converted(followed)
            _with_state(model, followed)
            return _written(model)
    except Exception as error:  # of its frontend
        raise unfollowed(described, error, by="OpenVINO") from error


def _converted(followed: Followed) -> Any:
    """OpenVINO's model with names for inputs and outputs."""
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchFXPythonDecoder.from_exported_program(followed.program, dynamic_shapes=False)
    model = frontend.convert(frontend.load(decoder))
    names = [*followed.texts, *_caches(followed, "past_key_values"), *followed.weights]
    for port, name in zip(model.inputs, names, strict=True):
        port.get_node().set_friendly_name(name)
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, ["logits", *_caches(followed, "present")], strict=True):
        port.get_tensor().set_names({name})
    apply_moc_transformations(model, cf=False)
    return model


def _caches(followed: Followed, name: str) -> list[str]:
    return [f"{name}.{layer}.{kind}" for layer in range(followed.layers) for kind in ("key", "value")]


def _with_state(model: Any, followed: Followed) -> None:
    """Keys and values become a state, whose texts `beam_idx` puts into another order before every step."""
    import openvino
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    order = ops.parameter([-1], openvino.Type.i32, name="beam_idx")
    order.output(0).get_tensor().set_names({"beam_idx"})
    pairs = dict(zip(_caches(followed, "past_key_values"), _caches(followed, "present"), strict=True))
    for name in pairs:
        port = model.input(name)
        readers = port.get_target_inputs()
        chosen = ops.gather(port, order, ops.constant(np.int64(0)))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    model.add_parameters([order])
    apply_make_stateful_transformation(model, pairs)
    batch = ops.gather(
        ops.shape_of(model.input("input_ids"), output_type="i64"), ops.constant(np.array([0])),
        ops.constant(np.int64(0)),
    )  # fmt: skip
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, size = node.get_output_partial_shape(0)
            rest = ops.constant(np.array([heads.get_length(), 0, size.get_length()]))
            empty = ops.broadcast(ops.constant(np.float32(0)), ops.concat([batch, rest], axis=0))
            node.set_arguments([empty])
    model.validate_nodes_and_infer_types()


def _written(model: Any) -> Program:
    import openvino

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.xml"
        openvino.serialize(model, path)
        tree, constants = ElementTree.parse(path).getroot(), path.with_suffix(".bin").read_bytes()
    tree.set("name", "model")
    for layer in tree.iterfind("layers/layer"):
        for notes in layer.findall("rt_info"):  # which layers became this one: their names count what ran before
            layer.remove(notes)
        if layer.get("type") != "Parameter":
            layer.set("name", f"{layer.get('type')}_{layer.get('id')}")
        for port in layer.iterfind("output/port"):
            if layer.get("type") != "Parameter" and port.get("names") != "logits":
                port.attrib.pop("names", None)
    for element in tree.iter():
        element.text = (element.text or "").strip() or None
        element.tail = None
    return Program(ElementTree.tostring(tree), constants)
