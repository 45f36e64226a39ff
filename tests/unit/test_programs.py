"""Where tensors lie in the data file of a program."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from pennyweight.export.onnx import layout as onnx
from pennyweight.export.openvino import layout as openvino
from pennyweight.export.programs import ALIGNMENT, HEADER, Item, Layout
from pennyweight.network.sources.source import TensorInfo

SHAPES = ((3,), (5, 7), (64,), (1,))  # of float16: 6, 70, 128 and 2 bytes


def places_of_openvino(items: Sequence[Item[Any]]) -> tuple[Mapping[str, int], int]:
    found = openvino.placed(items, b"constants")
    assert len(found.header) % ALIGNMENT == 0
    return found.offsets, found.size


def places_of_onnx(items: Sequence[Item[Any]]) -> tuple[Mapping[str, int], int]:
    _, offsets, size = onnx.placed(items)
    return offsets, size


@pytest.mark.parametrize(
    ("layout", "placed"), [(onnx.LAYOUT, places_of_onnx), (openvino.LAYOUT, places_of_openvino)],
    ids=["onnx", "openvino"],
)  # fmt: skip
def test_tensors_begin_at_multiples_and_do_not_overlap(
    layout: Layout[Any], placed: Callable[[Sequence[Item[Any]]], tuple[Mapping[str, int], int]]
) -> None:
    items = [
        Item(TensorInfo(f"t{i}", shape, "float16", 0), "kept", "", (layout.plain(f"t{i}", "float16", shape),))
        for i, shape in enumerate(SHAPES)
    ]
    assert [item.bytes for item in items] == [64, 128, 128, 64]
    offsets, size = placed(items)
    starts = [offsets[f"t{i}"] for i in range(len(SHAPES))]
    assert starts[0] >= HEADER
    assert all(start % ALIGNMENT == 0 for start in starts)
    assert [b - a for a, b in zip(starts, [*starts[1:], size], strict=True)] == [item.bytes for item in items]
