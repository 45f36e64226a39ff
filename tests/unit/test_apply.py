"""What is told of a compressed site."""

from __future__ import annotations

import pytest
import torch

from pennyweight import formats
from pennyweight.flow.apply import ROWS, squares
from pennyweight.formats import Compressed


@pytest.mark.parametrize("label", ["int4 g16 sym", "int4 b16 sym", "int4 tensor sym", "vector4 16 g16"])
def test_errors_of_more_rows_than_are_looked_at_at_once(label: str) -> None:
    """Rows that share parameters cannot be cut out of a format, and still have errors of their own."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(ROWS + 76, 32, generator=generator), torch.randn(99, 32, generator=generator)
    gram = inputs.T @ inputs / len(inputs)
    result = Compressed((formats.parse(label).store(weight, search=False),), tuple(weight.shape))
    error = result.dequantize().double() - weight.double()
    for start, stop in ((0, len(weight)), (ROWS - 3, len(weight))):
        changed, whole = squares(result, weight, gram, start, stop)
        after, before = ((m[start:stop] @ gram.double() * m[start:stop]).sum() for m in (error, weight.double()))
        assert changed == pytest.approx(float(after), rel=1e-4)
        assert whole == pytest.approx(float(before), rel=1e-4)
