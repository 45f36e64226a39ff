"""The page of orderings says what the results say, and gives a reason wherever they say otherwise than a paper."""

from __future__ import annotations

from typing import Any

import pytest
from pages import load

orderings = load("orderings")
CLAIMS = [
    pytest.param(claim, id=f"{source}: {claim.says}")
    for source, found in orderings.SOURCES.items() for claim in found if claim.measured
]  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_does_not_hold_has_a_reason_and_what_holds_has_none(claim: Any) -> None:
    assert claim.holds is not bool(claim.why)


def test_the_page_is_what_the_results_say() -> None:
    assert orderings.PAGE.read_text(encoding="utf-8") == orderings.page(), "python benchmarks/orderings.py"
