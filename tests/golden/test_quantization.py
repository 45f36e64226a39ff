"""Numbers the slow twins once gave, written down: neither twin nor package may drift unnoticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import quantizers as slow

from pennyweight.formats import Compressed, Grid
from pennyweight.methods.quantization import GPTQ, RoundToNearest
from pennyweight.numerics.cholesky import inverse_cholesky
from pennyweight.numerics.random import stream
from pennyweight.statistics import Statistics

GOLDEN = json.loads((Path(__file__).parent / "quantization.json").read_text())
WEIGHT, GRAM = np.array(GOLDEN["weight"]), np.array(GOLDEN["gram"])
every_case = pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['bits']}-{c['symmetric']}")


def compress(method: GPTQ | RoundToNearest, case: dict[str, Any]) -> Compressed:
    grid = Grid(bits=case["bits"], group_size=GOLDEN["group_size"], symmetric=case["symmetric"])
    statistics = Statistics(edge="golden", count=64, gram=torch.tensor(GRAM).float())
    return method.compress(torch.tensor(WEIGHT).float(), statistics, grid, generator=stream(0, "golden"))


@every_case
def test_the_package_gives_the_golden_codes(case: dict[str, Any]) -> None:
    for method, name in ((RoundToNearest(search=False), "round_to_nearest"), (GPTQ(search=False), "gptq")):
        tensors = compress(method, case).parts[0].tensors
        assert tensors["codes"].tolist() == case[name]
        assert tensors["scale"].double().tolist() == case["scale"]
        if not case["symmetric"]:
            assert tensors["zero_point"].double().tolist() == case["zero_point"]


@every_case
def test_the_twins_still_give_them(case: dict[str, Any]) -> None:
    fitted = slow.min_max(WEIGHT, case["bits"], GOLDEN["group_size"], case["symmetric"])
    swept, loss = slow.gptq(WEIGHT, GRAM, fitted, 0.01)
    assert fitted.scale.tolist() == case["scale"]
    assert slow.round_to_nearest(WEIGHT, fitted).tolist() == case["round_to_nearest"]
    assert swept.tolist() == case["gptq"]
    assert loss == pytest.approx(case["damped_error"], rel=1e-9)


@every_case
def test_the_golden_error_is_that_of_the_golden_codes(case: dict[str, Any]) -> None:
    change = compress(GPTQ(search=False), case).dequantize().double().numpy() - WEIGHT
    assert slow.output_error(change, slow.damped(GRAM, 0.01)) == pytest.approx(case["damped_error"], rel=1e-5)
    rounded = compress(RoundToNearest(search=False), case).dequantize().double().numpy() - WEIGHT
    assert case["damped_error"] < slow.output_error(rounded, slow.damped(GRAM, 0.01))


def test_the_factor() -> None:
    upper = inverse_cholesky(torch.tensor(GRAM).float(), 0.01).upper
    np.testing.assert_allclose(upper.numpy(), GOLDEN["upper"], rtol=1e-4, atol=1e-4)
