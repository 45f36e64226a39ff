"""GGUF block types: the bytes of a file, read by the gguf package bit for bit, and no larger an error than its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from reference.layers import heavy_weight

from pennyweight import formats
from pennyweight.errors import InvalidFormat
from pennyweight.formats.gguf import Legacy

SHAPE = (24, 256)
every = pytest.mark.parametrize("name", Legacy.types())


def theirs(data: torch.Tensor, name: str) -> torch.Tensor:
    rows = data.numpy().reshape(SHAPE[0], -1)
    return torch.from_numpy(quants.dequantize(rows, GGMLQuantizationType[name.upper()]))


@every
@pytest.mark.parametrize("search", [True, False])
def test_the_gguf_package_reads_what_we_wrote(name: str, search: bool) -> None:
    format = formats.parse(name)
    part = format.store(heavy_weight(*SHAPE, 1), search=search)
    data = format.pack(part.tensors, SHAPE)
    assert 8 * len(data) == format.stored_bits(SHAPE)
    assert torch.equal(theirs(data, name), format.decode(part.tensors, SHAPE))


@every
def test_we_read_what_the_gguf_package_wrote(name: str) -> None:
    format = formats.parse(name)
    rows = quants.quantize(heavy_weight(*SHAPE, 2).numpy(), GGMLQuantizationType[name.upper()])
    data = torch.from_numpy(np.ascontiguousarray(rows)).flatten()
    fields = format.unpack(data, SHAPE)
    assert torch.equal(format.decode(fields, SHAPE), theirs(data, name))
    assert torch.equal(format.pack(fields, SHAPE), data)


@every
@pytest.mark.parametrize("heavy", [True, False])
def test_the_search_loses_less_than_the_package(name: str, heavy: bool) -> None:
    w = heavy_weight(*SHAPE, 3)
    if not heavy:
        w = torch.from_numpy(np.random.default_rng(3).standard_normal(SHAPE)).float()
    format = formats.parse(name)
    plain = torch.from_numpy(np.ascontiguousarray(quants.quantize(w.numpy(), GGMLQuantizationType[name.upper()])))
    ours = format.decode(format.store(w).tensors, SHAPE)
    lost = [float((x - w).square().sum()) for x in (ours, theirs(plain.flatten(), name))]
    assert lost[0] < lost[1] * (0.95 if name != "q8_0" else 0.999)


@every
def test_the_plain_rule_is_theirs(name: str) -> None:
    """Up to ties and the scale's last bit: they round with the scale before it is stored, we with the one after."""
    w = heavy_weight(*SHAPE, 4)
    format = formats.parse(name)
    plain = torch.from_numpy(np.ascontiguousarray(quants.quantize(w.numpy(), GGMLQuantizationType[name.upper()])))
    fields = format.unpack(plain.flatten(), SHAPE)
    assert torch.equal(fields["scale"], format.store(w, search=False).tensors["scale"])


def test_rows_that_are_no_multiple_of_a_block() -> None:
    with pytest.raises(InvalidFormat, match="48 inputs do not split into blocks of 32"):
        formats.parse("q4_0").store(torch.zeros(2, 48))
