"""Put packed weights into a traced program: nodes that multiply by codes, and where in the data file everything lies.

    Transpose(weight), MatMul  ->  com.microsoft MatMulNBits
    Gather(weight)             ->  com.microsoft GatherBlockQuantized

Source: onnxruntime 1.31, ContribOperators.md. What is dense and what scales are stored in is the type of the model; a
Cast makes float32 of it, which onnxruntime does once, when it loads the file. A table is cast after its rows are
gathered. Where embedding and head are one tensor, both nodes read the same bytes of the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pennyweight.errors import InvalidModel
from pennyweight.export.programs import Item
from pennyweight.export.safetensors_stream import Entry

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

DOMAIN = "com.microsoft"
DATA = "model.onnx.data"
FLOAT = 1  # float32, as the format counts types


def unread(program: ModelProto, parameter: str) -> str:
    """Why a weight of a program cannot be stored as codes, in plain words; empty when it can."""
    users = _users(program)
    for node in users[parameter]:
        products = users[node.output[0]] if node.op_type == "Transpose" else []
        multiplied = bool(products) and all(_multiplies(product, node.output[0]) for product in products)
        if not multiplied and not _gathers(node, parameter):
            return f"the program reads it by {node.op_type}, which knows no codes"
    return ""


def assembled(
    program: ModelProto, items: Sequence[Item[Entry]], offsets: Mapping[str, int], used: Mapping[str, str], level: int
) -> bytes:
    """The finished program, whose weights lie in the data file.

    Args:
        program: as `trace.program_of` returns it.
        items: what becomes of every tensor of the source.
        offsets: where in the data file each stored tensor begins.
        used: stored name of every parameter of the program.
        level: accuracy that products with codes are computed with, as MatMulNBits counts: 1 float32, 4 int8.

    Raises:
        InvalidModel: a weight is read in a way that knows no codes; names it.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(program)
    parameters = [value.name for value in model.graph.input if value.name in used]
    inputs = [value for value in model.graph.input if value.name not in used]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    building = _Building(model, offsets, level)
    by_name = {item.info.name: item for item in items}
    for parameter in parameters:
        if by_name[used[parameter]].grid is not None and (why := unread(program, parameter)):
            raise InvalidModel(why, expected="a layer that multiplies by it, or a table", mend="keep it dense",
                               site=parameter)  # fmt: skip
        building.give(parameter, by_name[used[parameter]])
    building.finish()
    if not any(opset.domain == DOMAIN for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return bytes(model.SerializeToString(deterministic=True))


class _Building:
    def __init__(self, model: ModelProto, offsets: Mapping[str, int], level: int) -> None:
        self.graph, self.offsets, self.level = model.graph, offsets, level
        self.users = _users(model)
        self.first: list[NodeProto] = []  # casts of what lies in the file
        self.instead: dict[str, list[NodeProto]] = {}  # by the output of the node they stand for

    def give(self, parameter: str, item: Item[Entry]) -> None:
        """Replace one parameter of the program by what is stored of it."""
        if item.grid is not None:
            self._codes(parameter, item)
            return
        entry = item.stored[0]
        self._store(entry, entry.name, entry.shape)
        for node in self.users[parameter]:
            if _gathers(node, parameter) and entry.dtype != "float32":
                rows = f"{node.output[0]}_{entry.dtype}"
                gathered = _node("Gather", [entry.name, node.input[1]], rows, axis=0)
                self.instead[node.output[0]] = [gathered, _node("Cast", [rows], node.output[0], to=FLOAT)]
                continue
            wide = self._wide(entry)
            for i, name in enumerate(node.input):
                if name == parameter:
                    node.input[i] = wide

    def _codes(self, parameter: str, item: Item[Entry]) -> None:
        assert item.site is not None
        assert item.grid is not None
        codes, scales, *zero_points = item.stored
        rows, columns = item.site.shape
        packed = (rows, columns * item.grid.bits // 8)
        numbers = {"bits": item.grid.bits, "block_size": item.grid.group_size}
        wide = self._wide(scales)
        self._store(scales, scales.name, scales.shape)
        for entry in zero_points:
            self._store(entry, entry.name, entry.shape)
        zeros = [entry.name for entry in zero_points]
        for node in self.users[parameter]:
            if _gathers(node, parameter):
                table = f"{codes.name}_rows"
                self._store(codes, table, packed)
                self.instead[node.output[0]] = [
                    _node(
                        "GatherBlockQuantized",
                        [table, node.input[1], wide, *zeros],
                        node.output[0],
                        domain=DOMAIN,
                        gather_axis=0,
                        quantize_axis=1,
                        **numbers,
                    )  # fmt: skip
                ]
                continue
            self._store(codes, codes.name, codes.shape)
            self.instead[node.output[0]] = []
            for product in self.users[node.output[0]]:
                self.instead[product.output[0]] = [
                    _node(
                        "MatMulNBits",
                        [product.input[0], codes.name, wide, *zeros],
                        product.output[0],
                        domain=DOMAIN,
                        K=columns,
                        N=rows,
                        accuracy_level=self.level,
                        **numbers,
                    )  # fmt: skip
                ]

    def _wide(self, entry: Entry) -> str:
        """The name of a stored tensor in float32."""
        if entry.dtype == "float32":
            return entry.name
        name = f"{entry.name}_float32"
        if all(node.output[0] != name for node in self.first):
            self.first.append(_node("Cast", [entry.name], name, to=FLOAT))
        return name

    def _store(self, entry: Entry, name: str, shape: tuple[int, ...]) -> None:
        """Say where a tensor lies, once."""
        import onnx

        if any(tensor.name == name for tensor in self.graph.initializer):
            return
        tensor = self.graph.initializer.add(name=name, dims=shape, data_type=_type(entry.dtype))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        where = {"location": DATA, "offset": str(self.offsets[entry.name]), "length": str(entry.bytes)}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=value)

    def finish(self) -> None:
        """Put the new nodes where the old ones stood: the order is one of computing."""
        nodes = [new for node in self.graph.node for new in self.instead.get(node.output[0], [node])]
        kept = [type(node).FromString(node.SerializeToString()) for node in (*self.first, *nodes)]
        del self.graph.node[:]
        self.graph.node.extend(kept)


def _users(model: ModelProto) -> dict[str, list[NodeProto]]:
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            users[name].append(node)
    return users


def _multiplies(node: NodeProto, weight: str) -> bool:
    return bool(node.op_type == "MatMul" and node.input[1] == weight and node.input[0] != weight)


def _gathers(node: NodeProto, table: str) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return bool(node.op_type == "Gather" and node.input[0] == table and axis == 0)


def _node(kind: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> NodeProto:
    import onnx

    made: NodeProto = onnx.helper.make_node(
        kind, list(inputs), [output], name=f"{kind}_{output}", domain=domain, **attributes
    )
    return made


def _type(dtype: str) -> int:
    import onnx

    kinds = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "uint8": "UINT8"}
    return int(getattr(onnx.TensorProto, kinds[dtype]))
