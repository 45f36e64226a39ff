"""Every family from tracing to compression, and the page in the docs that says so."""

from __future__ import annotations

import pytest
from families import FAMILIES, Family
from family_table import PAGE, row

LINES = {line.split(" | ")[0][2:]: line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_page_says_what_is_true(family: Family) -> None:
    found = row(family)
    assert found.line() == LINES[family.name], "python tests/family_table.py writes the page again"
    assert found.round_trip == found.sites > 0
    assert sum(found.symmetries) > 0
    assert found.proven


def test_the_page_has_no_other_rows() -> None:
    assert set(LINES) - {"family"} == {family.name for family in FAMILIES}
