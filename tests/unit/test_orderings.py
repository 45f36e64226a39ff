"""The page of orderings says what the results say, and gives a reason wherever they say otherwise than a paper."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("orderings", BENCHMARKS / "orderings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["orderings"] = module
    spec.loader.exec_module(module)
    return module


orderings = load()
CLAIMS = [
    pytest.param(claim, id=f"{source}: {claim.says}") for source, found in orderings.SOURCES.items() for claim in found
]


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_does_not_hold_has_a_reason_and_what_holds_has_none(claim: Any) -> None:
    if claim.measured:
        assert claim.holds is not bool(claim.why)


def test_the_page_is_what_the_results_say() -> None:
    assert orderings.PAGE.read_text(encoding="utf-8") == orderings.page(), "python benchmarks/orderings.py"
