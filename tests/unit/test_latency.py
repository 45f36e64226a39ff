"""Tables of times, and plans that must be fast."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pennyweight.errors import InfeasibleBudget, InvalidBudget, MissingFile
from pennyweight.export.engines import find
from pennyweight.flow.job import planner_of
from pennyweight.flow.options import outline
from pennyweight.flow.settings import Settings
from pennyweight.latency import Latency, factor, this_machine
from pennyweight.network.network import Network
from pennyweight.problem import Limit


def write(path: Path, rows: list[dict[str, object]], machine: str | None = None) -> Path:
    value = {"engine": "an engine 1.0", "machine": machine or this_machine(), "rows": rows}
    path.write_text(json.dumps(value))
    return path


def times(network: Network, path: Path, *, dense: float, packed: float) -> Latency:
    """Every shape of the network dense, in int8 rows and in int4 g32, the last twice as slow as int8."""
    shapes = sorted({site.shape for site in network.sites})
    rows: list[dict[str, object]] = []
    for shape in shapes:
        for label, time in (("dense", dense), ("int8 row sym", packed), ("int4 g32 sym", 2 * packed)):
            rows.append({"shape": shape, "format": label, "milliseconds": time * shape[0]})
    return Latency.read(write(path, rows))


def test_joined_layers_are_looked_for_first(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"shape": [64, 32], "format": "dense", "milliseconds": 1.0},
        {"shape": [16, 32], "format": "dense", "milliseconds": 0.5},
        {"shape": [96, 32], "format": "dense", "milliseconds": 1.2},
    ]
    table = Latency.read(write(tmp_path / "t.json", rows))
    assert table.of([(64, 32), (16, 32), (16, 32)], "dense") == 1.2
    assert table.of([(64, 32), (16, 32)], "dense") == 1.5
    assert not table.knows([(64, 32)], "int8 row sym")
    with pytest.raises(InvalidBudget, match="8 x 32 in dense"):
        table.of([(64, 32), (8, 32)], "dense")


def test_tables_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        Latency.read(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text('{"engine": "e", "machine": "m"}')
    with pytest.raises(InvalidBudget, match="rows"):
        Latency.read(tmp_path / "bad.json")
    elsewhere = write(tmp_path / "far.json", [{"shape": [1, 1], "format": "dense", "milliseconds": 1}], "an H100")
    with pytest.raises(InvalidBudget, match="an H100") as error:
        Latency.read(elsewhere)
    assert "--machine 'an H100'" in error.value.mend
    assert Latency.read(elsewhere, machine="an H100").machine == "an H100"
    with pytest.raises(InvalidBudget, match="-1 milliseconds"):
        Latency.read(write(tmp_path / "low.json", [{"shape": [1, 1], "format": "dense", "milliseconds": -1}]))


@pytest.mark.parametrize("text", ["", "x", "0.5x", "1x", "inf", "fast", "-2x"])
def test_what_is_no_speed(text: str) -> None:
    with pytest.raises(InvalidBudget):
        factor(text)


def test_speeds() -> None:
    assert factor("2x") == factor(" 2X") == factor("2.0") == 2.0


def test_a_plan_keeps_the_speed_with_the_size_or_says_why_not(
    network_of: Callable[[str], Network], tmp_path: Path
) -> None:
    network = network_of("llama")
    latency = times(network, tmp_path / "t.json", dense=1.0, packed=0.4)  # int8 2.5 times as fast, int4 1.25 times
    settings = Settings(dtype="float16", speed=2.0, latency=latency)
    planner = planner_of(network, settings, outline(network, find("transformers"), dtype="float16"), model=network)
    rows = planner.table.groups
    assert {o.step.stages[0].format.label() for row in rows for o in row} == {"float16", "int8 row sym", "int4 g32 sym"}
    dense = sum(o.milliseconds for row in rows for o in row if o.step.stages[0].format.label() == "float16")
    least, most = (sum(f(o.bytes for o in row) for row in rows) for f in (min, max))
    plan = planner.within(Limit("bytes", 0.9 * most))
    chosen = [next(o for o in row if plan.steps.get(o.sites[0], o.step) == o.step) for row in rows]
    assert sum(o.milliseconds for o in chosen) <= dense / 2
    with pytest.raises(InfeasibleBudget) as error:  # so small only in int4, which is not fast enough
        planner.within(Limit("bytes", 1.05 * least))
    assert "milliseconds" in error.value.happened
    assert "bytes" in error.value.happened
    with pytest.raises(InfeasibleBudget, match="milliseconds"):
        planner_of(
            network, Settings(dtype="float16", speed=3.0, latency=latency),
            outline(network, find("transformers"), dtype="float16"), model=network,
        ).within(Limit("bytes", float(most)))  # fmt: skip


def test_times_without_the_dense_layers_are_refused(network_of: Callable[[str], Network], tmp_path: Path) -> None:
    latency = Latency.read(write(tmp_path / "t.json", [{"shape": [1, 1], "format": "dense", "milliseconds": 1}]))
    network = network_of("llama")
    with pytest.raises(InvalidBudget, match="in dense"):
        planner_of(
            network, Settings(dtype="float16", speed=2.0, latency=latency),
            outline(network, find("transformers"), dtype="float16"), model=network,
        )  # fmt: skip
