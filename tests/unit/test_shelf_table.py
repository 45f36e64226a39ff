"""The page of the shelf says what the results say."""

from __future__ import annotations

from pages import load

shelf_table = load("shelf_table")


def test_the_page_is_what_the_results_say() -> None:
    assert shelf_table.PAGE.read_text(encoding="utf-8") == shelf_table.page(), "python benchmarks/shelf_table.py"


def test_small_networks_have_the_same_rows() -> None:
    rows = {(row["network"], row["step"]) for row in shelf_table.results("shelf_modules")}
    steps = {step for _, step in rows}
    networks = {network for network, _ in rows}
    assert networks <= set(shelf_table.NETWORKS)
    assert len(rows) == len(steps) * len(networks)
