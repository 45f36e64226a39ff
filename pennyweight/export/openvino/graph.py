"""Put weights into a program whose weights are inputs: constants, and layers that make floats of codes.

    codes [out, groups, inputs] -> Convert -> [Subtract(zero points)] -> Multiply(scales) -> Reshape -> Convert -> ...

Source: openvino 2026.4, representation 11; the layers are those that nncf writes and the CPU plugin recognises, so that
products and tables read codes and no weight is unpacked when a model is loaded. Scales in float16 multiply in float16,
as nncf has it, which the CPU computes in float32; other scales say float32. Dense weights of 16 bits are marked as
compressed, so that they stay so in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from pennyweight.errors import InvalidModel
from pennyweight.export.openvino.layout import SHAPE_BYTES, Constant, Places
from pennyweight.export.openvino.trace import Program
from pennyweight.export.programs import HEADER, Item

PRECISIONS = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}  # what ports call types; others have their own name
Shape = tuple[int, ...]


class _Value(NamedTuple):
    """What a layer gives."""

    layer: str
    port: str
    element: str
    shape: Shape


class Weights:
    """The weights of a program: their names, and which layers read each.

    Args:
        program: as `trace.program_of` returns it.
        known: names of parameters; every other input is text.
    """

    def __init__(self, program: Program, known: set[str]) -> None:
        self.root = ElementTree.fromstring(program.xml)
        layers = {layer.get("id"): layer for layer in self.root.iterfind("layers/layer")}
        self.inputs = {
            str(layer.get("name")): layer
            for layer in layers.values()
            if layer.get("type") == "Parameter" and layer.get("name") in known
        }
        by_id = {layer.get("id"): name for name, layer in self.inputs.items()}
        self.readers: dict[str, list[tuple[Element, str]]] = defaultdict(list)
        for edge in self.root.iterfind("edges/edge"):
            if (name := by_id.get(edge.get("from-layer"))) is not None:
                self.readers[name].append((layers[edge.get("to-layer")], str(edge.get("to-port"))))

    def unread(self, name: str) -> str:
        """Why a weight cannot be stored as codes, in plain words; empty when it can."""
        for layer, port in self.readers[name]:
            data = layer.find("data")
            kind = str(layer.get("type"))
            turned = data is not None and data.get("transpose_b") == "true"
            if not (kind == "Gather" and port == "0") and not (kind == "MatMul" and port == "1" and turned):
                return f"the program reads it by {kind}, which knows no codes"
        return ""


def assembled(program: Program, items: Sequence[Item[Constant]], places: Places, used: Mapping[str, str]) -> bytes:
    """The finished openvino_model.xml.

    Args:
        program: as `trace.program_of` returns it.
        items: what becomes of every tensor of the source.
        places: where in the file everything lies.
        used: stored name of every parameter of the program.

    Raises:
        InvalidModel: a weight is read in a way that knows no codes; names it.
    """
    weights, by_name = Weights(program, set(used)), {item.info.name: item for item in items}
    building = _Building(weights.root, places)
    for name, layer in weights.inputs.items():
        item = by_name[used[name]]
        if item.grid is not None and (why := weights.unread(name)):
            raise InvalidModel(why, expected="a layer that multiplies by it, or a table", mend="keep it dense",
                               site=name)  # fmt: skip
        building.replace(layer, item)
    return b'<?xml version="1.0"?>' + bytes(ElementTree.tostring(weights.root))


class _Building:
    def __init__(self, root: Element, places: Places) -> None:
        layers, edges = root.find("layers"), root.find("edges")
        assert layers is not None
        assert edges is not None
        self.layers, self.edges, self.places = layers, edges, places
        self.next = 1 + max(int(str(layer.get("id"))) for layer in layers)
        self.made: dict[str, _Value] = {}
        self.readers: dict[str | None, list[Element]] = defaultdict(list)
        for edge in edges:
            self.readers[edge.get("from-layer")].append(edge)
        for data in layers.iterfind("layer[@type='Const']/data"):
            data.set("offset", str(HEADER + int(str(data.get("offset")))))

    def replace(self, parameter: Element, item: Item[Constant]) -> None:
        """Put what is stored of a weight in the place of an input; tied weights are one."""
        name = item.info.name
        if name not in self.made:
            self.made[name] = self._dense(item) if item.grid is None else self._unpacked(item)
        value = self.made[name]
        for edge in self.readers[parameter.get("id")]:
            edge.set("from-layer", value.layer)
            edge.set("from-port", value.port)
        self.layers.remove(parameter)

    def _dense(self, item: Item[Constant]) -> _Value:
        stored = self._constant(item.stored[0])
        return stored if stored.element == "f32" else self._convert(stored, "f32", compressed=True)

    def _unpacked(self, item: Item[Constant]) -> _Value:
        assert item.site is not None
        codes, scale, *zero_points = (self._constant(constant) for constant in item.stored)
        computed = "f16" if scale.element == "f16" else "f32"
        value = self._convert(codes, computed)
        for zero_point in zero_points:
            value = self._binary("Subtract", value, self._convert(zero_point, computed))
        value = self._binary("Multiply", value, self._convert(scale, computed))
        if value.shape != item.site.shape:
            value = self._reshape(value, item.site.shape, item.info.name)
        return self._convert(value, "f32")

    def _constant(self, constant: Constant) -> _Value:
        offset = self.places.offsets[constant.name]
        return self._stored(constant.name, constant.element, constant.shape, offset, constant.bytes)

    def _stored(self, name: str, element: str, shape: Shape, offset: int, size: int) -> _Value:
        data = {
            "element_type": element, "shape": ", ".join(map(str, shape)), "offset": str(offset), "size": str(size)
        }  # fmt: skip
        return self._layer("Const", data, [], element, shape, name=name)

    def _convert(self, value: _Value, element: str, *, compressed: bool = False) -> _Value:
        if value.element == element:
            return value
        notes = ("decompression",) if compressed else ()
        return self._layer("Convert", {"destination_type": element}, [value], element, value.shape, notes=notes)

    def _binary(self, kind: str, first: _Value, second: _Value) -> _Value:
        return self._layer(kind, {"auto_broadcast": "numpy"}, [first, second], first.element, first.shape)

    def _reshape(self, value: _Value, shape: tuple[int, int], name: str) -> _Value:
        wanted = self._stored(f"{name}/shape", "i64", (2,), self.places.shapes[shape], SHAPE_BYTES)
        return self._layer("Reshape", {"special_zero": "false"}, [value, wanted], value.element, shape)

    def _layer(
        self, kind: str, data: Mapping[str, str], inputs: Sequence[_Value], element: str, shape: Shape, *,
        name: str = "", notes: Sequence[str] = (),
    ) -> _Value:  # fmt: skip
        number, self.next = str(self.next), self.next + 1
        layer = SubElement(
            self.layers, "layer",
            {"id": number, "name": name or f"{kind}_{number}", "type": kind, "version": "opset1"},
        )  # fmt: skip
        SubElement(layer, "data", dict(data))
        if notes:
            info = SubElement(layer, "rt_info")
            for note in notes:
                SubElement(info, "attribute", {"name": note, "version": "0"})
        if inputs:
            ports = SubElement(layer, "input")
            for port, value in enumerate(inputs):
                _port(ports, port, value.element, value.shape)
                where = {"from-layer": value.layer, "from-port": value.port, "to-layer": number, "to-port": str(port)}
                SubElement(self.edges, "edge", where)
        _port(SubElement(layer, "output"), len(inputs), element, shape)
        return _Value(number, str(len(inputs)), element, shape)


def _port(ports: Element, number: int, element: str, shape: Shape) -> None:
    port = SubElement(ports, "port", {"id": str(number), "precision": PRECISIONS.get(element, element.upper())})
    for size in shape:
        SubElement(port, "dim").text = str(size)
