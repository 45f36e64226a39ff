"""Products with codes that stay packed, against the dense product of the numbers they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.layers import heavy_weight

from pennyweight import formats
from pennyweight.formats import FORMATS
from pennyweight.numerics import four_bits
from pennyweight.numerics.four_bits import FourBits
from pennyweight.numerics.kernels import EIGHT_UNTIL, FOUR_UNTIL
from pennyweight.numerics.products import EightBits, held

# relative error of the whole product, to one in float64 of the exact stored numbers
WITHIN = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}
EXAMPLES = [format for kind in FORMATS for format in kind.examples()]
LABELS = [
    ("int4 g64 sym", (192, 576), FourBits), ("int4 g96 asym", (50, 576), FourBits),
    ("int3 row sym", (17, 320), FourBits), ("int5 row asym", (70, 96), EightBits),
    ("int2 g32 asym", (16, 64), FourBits), ("int4 g256 sym bfloat16", (33, 512), FourBits),
    ("int8 row sym", (40, 64), EightBits), ("int8 row asym", (7, 48), EightBits),
    ("int8 g64 asym", (65, 128), FourBits), ("int6 g32 sym", (30, 64), FourBits), ("int8 row sym", (5, 72), None),
    ("int4 g48 sym", (16, 96), None), ("q4_0", (64, 64), FourBits), ("q4_1", (20, 96), FourBits),
    ("q5_1", (20, 96), FourBits), ("q8_0", (20, 96), FourBits), ("q4_k", (20, 256), FourBits),
    ("q5_k", (20, 256), FourBits), ("q6_k", (20, 256), None), ("tq2_0", (20, 256), FourBits),
    ("int4 row affine float32", (48, 96), FourBits),
]  # fmt: skip


def stored(label: str, shape: tuple[int, int], seed: int = 0) -> tuple[formats.Lattice, torch.Tensor]:
    format = formats.parse(label)
    part = format.store(heavy_weight(*shape, seed))
    lattice = format.lattice(part.tensors, shape)
    assert lattice is not None
    return lattice, format.decode(part.tensors, shape)


def hold(lattice: formats.Lattice, dtype: torch.dtype) -> FourBits | EightBits | None:
    return held(lattice.codes, lattice.step, lattice.offset, levels=lattice.levels, dtype=dtype)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize(("label", "shape", "kind"), LABELS, ids=lambda value: str(value))
def test_products_are_those_of_the_dense_weight(
    label: str, shape: tuple[int, int], kind: type | None, dtype: torch.dtype
) -> None:
    lattice, dense = stored(label, shape)
    weight = hold(lattice, dtype)
    assert type(weight) is (kind or type(None))
    if weight is None:
        return
    for tokens in (
        1,
        EIGHT_UNTIL - 1,
        EIGHT_UNTIL,
        FOUR_UNTIL - 1,
        FOUR_UNTIL,
    ):  # both sides of where the kernel is left
        x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(tokens)).to(dtype)
        found = weight.product(x)
        assert found.shape == (tokens, shape[0])
        assert found.dtype == dtype
        assert relative(found, x.double() @ dense.double().T) < WITHIN[dtype]
    index = torch.tensor([0, shape[0] - 1, 0, shape[0] // 2])
    assert relative(weight.rows(index), dense[index].double()) < WITHIN[dtype]


@pytest.mark.parametrize("format", EXAMPLES, ids=lambda format: format.label())
def test_a_lattice_is_what_the_format_decodes(format: formats.Format) -> None:
    shape = (24, -(-96 // format.inputs_multiple) * format.inputs_multiple)
    part = format.store(heavy_weight(*shape, 1))
    lattice, dense = format.lattice(part.tensors, shape), format.decode(part.tensors, shape)
    if lattice is None:
        even = ("grid", "affine", "gguf_legacy", "gguf_k_quant", "gguf_ternary")
        assert format.name not in even or not format.rows_stand_alone or "iq4" in format.label()
        return
    wide = shape[1] // lattice.step.shape[1]
    step, offset = (t.repeat_interleave(wide, 1) for t in (lattice.step, lattice.offset))
    assert int(lattice.codes.max()) < lattice.levels
    torch.testing.assert_close(
        lattice.codes.float() * step + offset, dense, rtol=1e-5, atol=1e-6 * float(dense.abs().max())
    )


@given(
    rows=st.integers(1, 140), groups=st.integers(1, 4), wide=st.sampled_from([32, 64, 96, 160, 256]),
    levels=st.integers(2, 256), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_codes_steps_and_offsets_come_back(rows: int, groups: int, wide: int, levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, levels, (rows, groups * wide), generator=generator).to(torch.uint8)
    step = torch.rand(rows, groups, generator=generator) + 0.1
    offset = 3 * levels * (torch.rand(rows, groups, generator=generator) - 0.5)
    weight = held(codes, step, offset, levels=levels, dtype=torch.float32)
    assert weight is not None
    dense = codes.double() * step.double().repeat_interleave(wide, 1) + offset.double().repeat_interleave(wide, 1)
    assert relative(weight.rows(torch.arange(rows)), dense) < 1e-6
    x = torch.randn(4, groups * wide, generator=generator)
    assert relative(weight.product(x), x.double() @ dense.T) < 1e-5
    bits = 4 if levels <= 16 else 8
    padded = -(-rows // 64) * 64
    assert weight.bytes <= padded * (groups * wide * bits // 8 + 16 * groups * max(1, wide // 32))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lattice, dense = stored("int4 g32 asym", (300, 64))
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    whole = hold(lattice, torch.float32)
    monkeypatch.setattr(four_bits, "CHUNK", 64 * 64)
    pieces = hold(lattice, torch.float32)
    assert isinstance(whole, FourBits)
    assert isinstance(pieces, FourBits)
    assert torch.equal(whole.planes[0], pieces.planes[0])
    assert relative(pieces.product(x), x.double() @ dense.double().T) < 1e-6


def test_scales_that_bfloat16_holds_lose_nothing_but_the_output() -> None:
    lattice, dense = stored("int4 g64 sym bfloat16", (64, 128))
    weight = hold(lattice, torch.bfloat16)
    assert weight is not None
    assert torch.equal(weight.rows(torch.arange(64)), dense)
