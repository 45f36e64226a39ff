"""Reasons of a plan on a table whose answer is known."""

from __future__ import annotations

import pytest

from pennyweight.flow.explain import explain, prices, record
from pennyweight.formats import Dense, Grid
from pennyweight.methods.allocation import IntegerProgram
from pennyweight.plan import Option, Stage, Step, plan_of
from pennyweight.problem import Limit, Problem


def option(site: str, bits: int, size: int, damage: float) -> Option:
    format = Dense() if bits == 16 else Grid(bits=bits, group_size=64)
    step = Step((Stage("cast" if bits == 16 else "gptq", format),))
    return Option(sites=(site,), step=step, bytes=size, damage=damage)


TABLE = (
    (option("a", 16, 1600, 0.0), option("a", 8, 800, 0.1), option("a", 4, 400, 1.0)),
    (option("b", 16, 1600, 0.0), option("b", 8, 800, 0.2), option("b", 4, 400, 8.0)),
)


def test_reasons_by_hand() -> None:
    choice = IntegerProgram().allocate(TABLE, Problem.of(Limit("bytes", 1200)))
    plan = plan_of(choice, kept={}, engine="transformers", dtype="float16", seed=0, bytes=0, model="m")
    a, b = explain(TABLE, plan)
    assert (a.step, b.step) == ("gptq int4 g64 sym", "gptq int8 g64 sym")
    assert a.dearer == ("gptq int8 g64 sym", 400, pytest.approx(-0.9))
    assert a.cheaper is None
    assert b.dearer == ("dense", 800, pytest.approx(-0.2))
    assert b.cheaper == ("gptq int4 g64 sym", -400, pytest.approx(7.8))
    more, less = prices([a, b])
    assert more == pytest.approx(0.9 / 400 * 1e6)
    assert less == pytest.approx(7.8 / 400 * 1e6)
    assert record(TABLE, plan, "size")["binding"] == "size"


def test_a_group_that_stays_dense_has_no_dearer_step() -> None:
    choice = (TABLE[0][0], TABLE[1][0])
    plan = plan_of(choice, kept={}, engine="transformers", dtype="float16", seed=0, bytes=0, model="m")
    reasons = explain(TABLE, plan)
    assert [reason.step for reason in reasons] == ["dense", "dense"]
    assert prices(reasons)[0] is None


def test_the_best_plan_of_its_size_buys_no_more_than_it_pays() -> None:
    for size in (800, 1200, 2000, 2400):
        choice = IntegerProgram(gap=0.0).allocate(TABLE, Problem.of(Limit("bytes", size)))
        plan = plan_of(choice, kept={}, engine="transformers", dtype="float16", seed=0, bytes=0, model="m")
        more, less = prices(explain(TABLE, plan))
        if more is not None and less is not None:
            assert more <= less
