"""The fast form of benchmarks/null_compress.py: whole runs whose true loss is the margin must not certify it.

With certificates that are false 5 % of the time, this fails for fewer than one set of seeds in a thousand. It finds
leaks that are large; the benchmark, with two hundred runs and a ladder, finds smaller ones.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pennyweight.budget import Terms
from pennyweight.flow.certifying import rules
from pennyweight.flow.certifying.claims import Asked

RUNS, SABOTAGED = 9, 4
ALLOWED = int(stats.binom.isf(1e-3, RUNS, 0.05))  # more false certificates than this are no accident
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "null_compress.py"

Case = Any  # of the benchmark, which is no package and is loaded by its path


@pytest.fixture(scope="module")
def null() -> Iterator[Any]:
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("null_compress", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["null_compress"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    vars(module).update(DOCUMENTS=170, MOST=256)  # half the text; most of the about 280 windows may be scored
    yield module
    del sys.modules["null_compress"]


@pytest.fixture(scope="module")
def cases(null: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Models, texts and true losses, made once."""
    places = [tmp_path_factory.mktemp(f"case{number}") for number in range(RUNS)]
    return [null.make_case(place, 1, number, null.RECIPES[:1]) for number, place in enumerate(places)]


def certified(null: Any, case: Case, out: Path, share: float = 1.0) -> bool:
    outcome = null.run(case, out, null.at_margin(case.loss(0), share), case.plans[0])
    return bool(outcome.certificate.holds)


def test_limit_fails_by_accident_once_in_a_thousand_and_sabotage_could_exceed_it() -> None:
    assert stats.binom.sf(ALLOWED, RUNS, 0.05) < 1e-3
    assert ALLOWED < SABOTAGED <= RUNS


def test_margin_never_exceeds_the_truth(null: Any) -> None:
    for truth in np.random.default_rng(0).uniform(1e-3, 0.5, 1000):
        margin = null.at_margin(float(truth)).margin
        assert truth * (1 - 1e-12) < margin <= truth


@pytest.mark.slow
def test_runs_at_the_margin_do_not_certify(null: Any, cases: list[Case], tmp_path: Path) -> None:
    false = 0
    for case in cases:
        budget = null.at_margin(case.loss(0))
        outcome = null.run(case, tmp_path / str(case.settings.seed), budget, case.plans[0])
        assert null.check(case, outcome) < 1e-4, "the run scored something else than the truth rests on"
        assert null.holds(case, 0, budget, case.salt) == outcome.certificate.holds, "the controls judge by other rules"
        assert outcome.certificate.claims[0].verdict in ("certified", "exhausted", "futile")
        false += outcome.certificate.holds
    assert false <= ALLOWED


@pytest.mark.slow
def test_runs_well_below_the_margin_certify(null: Any, cases: list[Case], tmp_path: Path) -> None:
    held = [certified(null, case, tmp_path / str(case.settings.seed), null.GENEROUS) for case in cases[:3]]
    assert sum(held) >= 2


def sorted_order(case: Case) -> dict[str, Callable[..., Any]]:
    """Mild windows first: an order that knows the scores."""
    order = np.argsort(case.truths[0].degradation)
    return {"certifying.evidence.random_order": lambda *_: (1, order)}


def lowered_cap(case: Case) -> dict[str, Callable[..., Any]]:
    """A cap that is chosen after looking, so low that it hides what was lost; and bets that expect just that."""
    x, honest = case.truths[0].degradation, rules.terms_for

    def peeked(asked: Asked, pilot: rules.Pilot | None, how: rules.Rules, **of: Any) -> Terms:
        cap = 1.2 * asked.budget.margin
        seen = np.minimum(x, cap)
        terms = honest(asked, pilot, how, **of)
        return replace(terms, cap=cap, pilot_mean=float(seen.mean()), pilot_sd=float(seen.std()))

    return {"certifying.rules.terms_for": peeked}


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", [sorted_order, lowered_cap])
def test_count_exceeds_the_limit_when_a_run_knows_the_certification_scores(
    null: Any, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sabotage: Callable[[Case], Any]
) -> None:
    false = 0
    for case in cases[:SABOTAGED]:
        with monkeypatch.context() as patched:
            for name, replacement in sabotage(case).items():
                patched.setattr(f"pennyweight.flow.{name}", replacement)
            false += certified(null, case, tmp_path / str(case.settings.seed))
    assert false > ALLOWED
