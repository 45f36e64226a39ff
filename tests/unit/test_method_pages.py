"""The pages of methods say what the docstrings say."""

from __future__ import annotations

import pytest
from method_pages import PAGES, ROOMS, pages

from pennyweight import catalogue


@pytest.mark.parametrize("name", sorted(pages()))
def test_a_page_is_what_the_docstrings_make(name: str) -> None:
    assert (PAGES / name).read_text(encoding="utf-8") == pages()[name], "python tests/method_pages.py writes it again"


def test_every_room_and_every_method_has_its_page() -> None:
    assert set(ROOMS) == set(catalogue.rooms())
    assert {path.name for path in PAGES.iterdir()} == set(pages())
    for room, kind in catalogue.every():
        assert f"## `{kind.name}`" in pages()[f"{room}.md"]
