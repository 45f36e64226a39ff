"""The pages of methods say what the docstrings say."""

from __future__ import annotations

import inspect
from typing import Any

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


COMPRESS = ("quantization", "activations", "calibration", "recovery", "rewrites")


@pytest.mark.parametrize(("room", "kind"), [(room, kind) for room, kind in catalogue.every() if room in COMPRESS])
def test_a_page_says_what_when_what_it_costs_and_where_it_fails(room: str, kind: type[Any]) -> None:
    text = " ".join((inspect.getdoc(inspect.getmodule(kind)) or "").split())
    for word in ("Source:", "When:", "Cost:", "Known failures:"):
        assert word in text, f"{kind.__module__} does not say it"
