"""Read openvino_model.xml: layers, what feeds them, and where in the .bin file constants lie. No entity is expanded.

Source: openvino 2026.4, representation 11. Only the outermost layers are read, not those inside a loop or a condition.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

import torch
from torch import Tensor

from pennyweight.errors import CorruptFile, MissingFile
from pennyweight.network.sources.source import fill

LARGEST = 1 << 30  # bytes of XML; a model of a hundred billion weights has a few million
DEEPEST = 64  # elements inside each other
WIDTHS = {
    "u1": 1, "u2": 2, "u3": 3, "u4": 4, "i4": 4, "nf4": 4, "f4e2m1": 4, "u6": 6, "u8": 8, "i8": 8, "f8e4m3": 8,
    "f8e5m2": 8, "f8e8m0": 8, "boolean": 8, "u16": 16, "i16": 16, "f16": 16, "bf16": 16, "u32": 32, "i32": 32,
    "f32": 32, "u64": 64, "i64": 64, "f64": 64,
}  # fmt: skip
MEND = "write the model again, or download it again"


@dataclass(frozen=True)
class Constant:
    """Where the numbers of a Const layer lie.

    Args:
        name: of the layer.
        element: type, as OpenVINO calls it.
        shape: in elements.
        file: the .bin file.
        start: first byte.
        bytes: how many; those of the shape.
    """

    name: str
    element: str
    shape: tuple[int, ...]
    file: Path
    start: int
    bytes: int

    def read(self) -> Tensor:
        """Its bytes.

        Raises:
            CorruptFile: the file became shorter since it was opened.
        """
        raw = torch.empty(self.bytes, dtype=torch.uint8)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            fill(raw, file, self.file)
        return raw


@dataclass
class Layer:
    """One operation."""

    name: str
    type: str
    data: dict[str, str] = field(default_factory=dict)
    inputs: dict[int, str] = field(default_factory=dict)  # ids of the layers that feed it, by port


def read_layers(path: Path) -> dict[str, Layer]:
    """The layers of a model, by id.

    Raises:
        MissingFile: there is no such file.
        CorruptFile: it is no XML, or none of OpenVINO, or declares a document type, which may hide entities.
    """
    if not path.is_file():
        raise MissingFile("there is no such file", expected="an OpenVINO model", mend="check the path", site=str(path))
    if path.stat().st_size > LARGEST:
        raise _corrupt(path, f"has {path.stat().st_size} bytes", f"at most {LARGEST}")
    reading = _Reading(path)
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = reading.start, reading.end
    parser.StartDoctypeDeclHandler = reading.doctype
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        raise _corrupt(path, f"is no XML: {error}", "what OpenVINO serialised") from error
    reading.connect()
    return reading.layers


def read_constants(layers: Mapping[str, Layer], path: Path) -> dict[str, Constant]:
    """Where constants lie, by the id of their layer; every place is inside the file, and as long as its shape says.

    Args:
        layers: of `read_layers`.
        path: the .bin file.

    Raises:
        MissingFile: there is no such file.
        CorruptFile: a place is outside the file, or not as long as its type and shape make it.
    """
    if not path.is_file():
        raise MissingFile(
            "there is no such file", expected="the numbers of the .xml file beside it",
            mend="keep both files of a model together", site=str(path),
        )  # fmt: skip
    size = path.stat().st_size
    return {key: _place(layer, path, size) for key, layer in layers.items() if layer.type == "Const"}


def _place(layer: Layer, path: Path, size: int) -> Constant:
    element = layer.data.get("element_type", "")
    start, count = (_number(layer, key, path) for key in ("offset", "size"))
    if start + count > size:
        raise _corrupt(
            path, f"{layer.name} is said to lie at {start} to {start + count}", f"inside the file's {size} bytes"
        )
    text = layer.data.get("shape", "")
    if not re.fullmatch(r"\s*(\d{1,18}\s*(,\s*\d{1,18}\s*)*)?", text):
        raise _corrupt(path, f"{layer.name} has the shape {text[:40]!r}", "numbers that are not negative")
    shape = tuple(int(number) for number in text.split(",")) if text.strip() else ()
    if element in WIDTHS and count != -(-math.prod(shape) * WIDTHS[element] // 8):
        raise _corrupt(path, f"{layer.name} is said to have {count} bytes", f"those of {list(shape)} in {element}")
    return Constant(layer.name, element, shape, path, start, count)


def _number(layer: Layer, key: str, path: Path) -> int:
    text = layer.data.get(key, "")
    if not re.fullmatch(r"\d{1,18}", text):
        raise _corrupt(path, f"{layer.name} has the {key} {text[:40]!r}", "a whole number that is not negative")
    return int(text)


class _Reading:
    """What the parser meets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layers: dict[str, Layer] = {}
        self.edges: list[dict[str, str]] = []
        self.open: list[str] = []
        self.layer: Layer | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.open.append(tag)
        if len(self.open) > DEEPEST:
            raise _corrupt(self.path, f"has elements {len(self.open)} deep", f"at most {DEEPEST}")
        if len(self.open) == 1 and tag != "net":
            raise _corrupt(self.path, f"begins with <{tag[:40]}>", "<net>, as OpenVINO models do")
        match self.open[1:]:
            case ["layers", "layer"]:
                self.layer = Layer(attributes.get("name", ""), attributes.get("type", ""))
                if self.layers.setdefault(attributes.get("id", ""), self.layer) is not self.layer:
                    raise _corrupt(self.path, f"has two layers {attributes.get('id', '')[:40]!r}", "one of each number")
            case ["layers", "layer", "data"] if self.layer is not None:
                self.layer.data = attributes
            case ["edges", "edge"]:
                self.edges.append(attributes)

    def end(self, _: str) -> None:
        self.open.pop()

    def doctype(self, *_: object) -> None:
        raise _corrupt(self.path, "declares a document type, which may hide entities", "XML without declarations")

    def connect(self) -> None:
        for edge in self.edges:
            reader, port = self.layers.get(edge.get("to-layer", "")), edge.get("to-port", "")
            if reader is None or edge.get("from-layer") not in self.layers or not re.fullmatch(r"\d{1,9}", port):
                raise _corrupt(self.path, f"has an edge {str(edge)[:80]}", "edges between layers that are there")
            reader.inputs[int(port)] = edge["from-layer"]


def _corrupt(path: Path, happened: str, expected: str) -> CorruptFile:
    return CorruptFile(happened, expected=expected, mend=MEND, site=str(path))
