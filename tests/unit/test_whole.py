"""One format's numbers in another: what must fit fits bit for bit, and what cannot is said to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.formats import FORMATS, Format, Numbers, Part, parse
from pennyweight.numerics.random import stream

SHAPE = (24, 512)
EXACT = (
    ("int4 g32 sym", "q4_0"), ("int4 g64 sym bfloat16", "q4_0"), ("int8 g32 sym", "q8_0"), ("int8 row sym", "q8_0"),
    ("int3 g64 sym", "int4 g32 sym"), ("int4 g32 asym", "int5 g32 sym"), ("int2 g64 asym", "int8 g32 sym"),
    ("int5 g32 sym", "q5_0"), ("q4_0", "int4 g32 sym"), ("q8_0", "int8 g32 sym"), ("q4_0", "q8_0"), ("q4_1", "q5_1"),
    ("iq4_nl", "int8 g32 sym"), ("q6_k", "int6 g16 sym float32"), ("mxfp4", "int5 g32 sym"), ("mxfp4", "q5_0"),
    ("tq2_0", "int2 g128 sym"), ("int4 g32 sym", "float32"), ("q4_k", "float32"), ("int4 tensor sym", "int4 g64 sym"),
)  # fmt: skip
NOT = (
    ("int5 g32 sym", "q4_0"), ("int4 g32 sym", "int4 g64 sym"), ("int4 g32 sym", "int4 g32 sym bfloat16"),
    ("q4_k", "int5 g32 sym"), ("q6_k", "int6 g16 sym"), ("int4 g32 sym", "float16"), ("int4 g32 sym", "mxfp4"),
    ("int4 g32 sym", "iq4_nl"), ("q4_0", "q4_k"), ("int8 g32 asym", "int8 g32 sym"),
)  # fmt: skip
EXAMPLES = [example for kind in FORMATS for example in kind.examples()]


def stored(label: str | Format, seed: int = 0) -> Part:
    format = parse(label) if isinstance(label, str) else label
    return format.store(torch.randn(SHAPE, generator=stream(seed, "whole")), search=False)


@pytest.mark.parametrize(("before", "after"), EXACT)
def test_there_is_room(before: str, after: str) -> None:
    part = stored(before)
    found = Numbers(part, SHAPE).held_by(parse(after))
    assert found is not None
    assert found.format == parse(after)
    numbers = part.format.decode(part.tensors, SHAPE)
    assert torch.equal(found.format.decode(found.tensors, SHAPE), numbers)
    packed = found.format.unpack(found.format.pack(found.tensors, SHAPE), SHAPE)
    assert torch.equal(found.format.decode(packed, SHAPE), numbers)


@pytest.mark.parametrize(("before", "after"), NOT)
def test_there_is_none(before: str, after: str) -> None:
    assert Numbers(stored(before), SHAPE).held_by(parse(after)) is None


@given(
    before=st.sampled_from([f for f in EXAMPLES if f.inputs_multiple != 1 or "g" in f.label()]),
    after=st.sampled_from(["int8 g32 sym float32", "int4 g32 asym", "q4_0", "q5_1", "mxfp4", "tq1_0", "bfloat16"]),
    seed=st.integers(0, 9),
)
def test_whatever_is_said_to_fit_does(before: Format, after: str, seed: int) -> None:
    shape = (8, 768)
    part = before.store(torch.randn(shape, generator=stream(seed, "fits")), search=False)
    found = Numbers(part, shape).held_by(parse(after))
    if found is not None:
        fields = {field.name: field.shape for field in found.format.fields(shape)}
        assert {name: tuple(tensor.shape) for name, tensor in found.tensors.items()} == fields
        assert torch.equal(found.format.decode(found.tensors, shape), before.decode(part.tensors, shape))


def test_zero_points_and_minima_survive_where_they_are_multiples() -> None:
    grid = parse("int4 g32 asym")
    scale = torch.full((4, 2), 0.25, dtype=torch.float16)
    codes = torch.arange(4 * 64).reshape(4, 64).remainder(16).to(torch.uint8)
    part = Part(grid, {"codes": codes, "scale": scale, "zero_point": torch.full((4, 2), 3, dtype=torch.uint8)})
    minima = Numbers(part, (4, 64)).held_by(parse("q4_1"))
    assert minima is not None
    assert torch.equal(minima.tensors["minimum"], torch.full((4, 2), -0.75, dtype=torch.float16))
    back = Numbers(minima, (4, 64)).held_by(grid)
    assert back is not None
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in part.tensors.items())


def test_blocks_of_zeros_and_scales_beyond_the_type() -> None:
    q4 = parse("q4_0")
    part = q4.store(torch.zeros(2, 64))
    found = Numbers(part, (2, 64)).held_by(parse("int4 g32 sym"))
    assert found is not None
    assert not found.format.decode(found.tensors, (2, 64)).any()
    tiny = Part(
        parse("int4 g32 sym bfloat16"),
        {"codes": torch.full((2, 64), 15, dtype=torch.uint8), "scale": torch.full((2, 2), 1e-9, dtype=torch.bfloat16)},
    )
    assert Numbers(tiny, (2, 64)).held_by(q4) is None
