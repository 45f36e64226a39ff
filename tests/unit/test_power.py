"""Planning before work: the published table, the floor without flips, verdicts, and weights rounded in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import betaincinv

from pennyweight.budget import Budget, Terms
from pennyweight.errors import InvalidBudget, InvalidMeasurement, InvalidWeights
from pennyweight.flow.certifying.claims import resolve
from pennyweight.flow.certifying.power import ClaimPower, fixed_size, flip_rows, plan_claim, power, zero_floor
from pennyweight.flow.profiling.bounds import smallest_at_cap
from pennyweight.formats import Grid
from pennyweight.methods.certification import PlannedMixture, needed_windows
from pennyweight.network.changing.rounded import RoundedSource, rounded
from pennyweight.network.network import Network
from pennyweight.network.running.stream import Stream
from pennyweight.network.sources.source import Source

NetworkOf = Callable[[str], Network]
# Questions a z test of fixed size needs at 95 % and 80 % power without a drop, by rate of flips and margin; printed to
# three digits, as the table is.
TABLE = {
    (0.005, 0.002): 7_700, (0.005, 0.004): 1_930, (0.005, 0.01): 309, (0.005, 0.02): 77,
    (0.02, 0.002): 30_900, (0.02, 0.004): 7_730, (0.02, 0.01): 1_240, (0.02, 0.02): 309,
    (0.05, 0.002): 77_300, (0.05, 0.004): 19_300, (0.05, 0.01): 3_090, (0.05, 0.02): 773,
    (0.1, 0.002): 155_000, (0.1, 0.004): 38_600, (0.1, 0.01): 6_180, (0.1, 0.02): 1_550,
}  # fmt: skip


def planned(lose: str, losses: np.ndarray, available: int, scope: str) -> ClaimPower:
    (asked,) = resolve([Budget.lose(lose)], text=False)
    return plan_claim(asked, {"candidate": losses}, available, scope, discrete=bool(asked.on))


def test_the_table_of_flips() -> None:
    for (rate, margin), expected in TABLE.items():
        rows = {row.candidate: row for row in flip_rows(margin, 0.95, 1319, "source")}
        row = rows[f"{100 * rate:g} % flips, no drop"]
        assert row.fixed == pytest.approx(expected, rel=6e-3, abs=1), (rate, margin)
        assert row.fixed is not None
        # 6.18 is (z_.95 + z_.8)^2, and the bets add the price of their cap to 2 log(1/alpha) = 5.99
        assert row.fixed * margin**2 / rate == pytest.approx(6.18, rel=6e-3) or row.fixed < 400
        assert row.needed == math.ceil(-math.log(0.05) * (2 * rate / margin**2 + (1 - margin) / margin))


def test_four_tenths_of_a_point_on_1319_questions() -> None:
    """Out of reach unless flips are below about 0.35 %; the tool says so before it runs."""
    for rate, enough in ((0.0034, True), (0.0036, False)):
        assert (fixed_size(0.0, math.sqrt(rate), 0.004, 0.05) <= 1319) is enough
    rows = flip_rows(0.004, 0.95, 1319, "source")
    assert [row.feasible for row in rows] == ["no"] * 4
    assert [row.feasible for row in flip_rows(0.004, 0.95, 1319, "corpus")] == ["only exactly, by a full pass"] * 4
    smallest = [row.smallest_fixed for row in rows]
    assert smallest == pytest.approx([math.sqrt(6.1826 * rate / 1319) for rate in (0.005, 0.02, 0.05, 0.1)], rel=1e-4)


def test_smallest_margin_is_where_the_units_run_out() -> None:
    for sd, mean, cap, units in (
        (0.1, 0.0, 1.0, 1319),
        (0.3, 0.02, 1.0, 400),
        (0.0, 0.0, 1.0, 60),
        (0.2, -0.1, 0.7, 90),
    ):
        margin = smallest_at_cap(mean, sd, units, 0.05, cap)
        assert needed_windows(mean, sd, margin, cap, 0.05) == pytest.approx(units, rel=1e-9)
    assert smallest_at_cap(0.0, 3.0, 5, 0.05, 1.0) == math.inf
    assert smallest_at_cap(1.0, 0.1, 500, 0.05, 1.0) == math.inf


def test_no_flip_certifies_nothing_below_the_floor() -> None:
    """The floor is Clopper and Pearson's bound of zero; the bets do not get below it either."""
    for count in (60, 500):
        floor = zero_floor(count, 0.05)
        assert floor == pytest.approx(float(betaincinv(1, count, 0.95)), rel=1e-9)
        assert floor == pytest.approx(-math.log(0.05) / count, rel=0.05)
        terms = Terms(
            margin=floor, cap=1.0, pilot_mean=0.0, pilot_sd=0.0, alpha=0.05, tail_alpha=0.0, population=None,
            n_max=count,
        )  # fmt: skip
        assert PlannedMixture().bound(np.zeros(count), terms) > floor
    assert zero_floor(500, 0.05) == pytest.approx(0.005974, abs=1e-6)
    clean = planned("accuracy:quiz.jsonl 0.4pt", np.zeros(64), 500, "source")
    assert clean.floor is not None
    assert clean.floor > clean.margin
    assert clean.rows[0].feasible == "no"
    assert planned("accuracy:quiz.jsonl 0.4pt", np.zeros(64), 5000, "source").rows[0].feasible == "yes"


@pytest.mark.parametrize(("mean", "scope", "verdict"), [
    (0.001, "corpus", "yes"), (0.001, "source", "yes"), (0.0095, "corpus", "only exactly, by a full pass"),
    (0.0095, "source", "no"), (0.02, "corpus", "no"), (0.02, "source", "no"),
])  # fmt: skip
def test_verdicts_of_windows(mean: float, scope: str, verdict: str) -> None:
    x = mean + 0.002 * np.array([-1.0, 1.0] * 8)
    claim = planned("kl 0.01", x, 200, scope)
    assert claim.rows[0].feasible == verdict
    assert claim.feasible == (verdict != "no")
    assert claim.flips == ()
    row = claim.rows[0]
    assert (row.needed is None) == (mean > 0.01)
    assert row.loss == pytest.approx(mean)
    assert row.smallest is not None
    assert row.smallest > mean
    if row.most is not None and row.needed is not None:
        assert row.most <= 3 * row.needed
        assert scope == "source" or row.most <= 200


def test_nobody_plans_on_a_gain_or_gives_up_on_a_hint() -> None:
    x = np.zeros(64)
    x[:3] = -1.0
    gain, none = (planned("accuracy:quiz.jsonl 4pt", y, 255, "source").rows[0] for y in (x, np.zeros(64)))
    assert gain.loss == pytest.approx(-3 / 64)
    assert gain.needed is not None
    assert none.needed is not None
    assert gain.needed > none.needed, "its spread counts, its gain does not"
    assert gain.smallest is not None
    assert gain.smallest > zero_floor(255, 0.05)
    # 5 of 64 lost against a margin of 4 points: 7.8 points, less than two standard errors more
    hint = planned("accuracy:quiz.jsonl 4pt", np.repeat([1.0, 0.0], [5, 59]), 255, "corpus").rows[0]
    assert hint.loss == pytest.approx(5 / 64)
    assert hint.feasible == "only exactly, by a full pass"
    assert planned("accuracy:quiz.jsonl 4pt", np.repeat([1.0, 0.0], 32), 255, "corpus").rows[0].feasible == "no"


def test_a_pilot_that_says_nothing() -> None:
    with pytest.raises(InvalidMeasurement, match="1 units"):
        planned("kl 0.01", np.zeros(1), 100, "corpus")


@pytest.mark.parametrize(("lose", "scope"), [("kl 0.01", "asymptotic"), ("kl 0.01", "everything")])
def test_what_cannot_be_planned(lose: str, scope: str, network_of: NetworkOf) -> None:
    with pytest.raises(InvalidBudget):
        power(network_of("llama"), None, [Budget.lose(lose)], scope=scope)
    with pytest.raises(InvalidBudget, match="size"):
        power(network_of("llama"), None, [Budget.fit("1MB")])


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2"])
def test_rounded_weights_are_what_the_codes_stand_for(family: str, network_of: NetworkOf) -> None:
    network, grid = network_of(family), Grid(bits=4, group_size=32)
    made = rounded(network, grid)
    assert isinstance(made.source, Source)
    changed = 0
    for name in network.source.tensors:
        before, after = network.source.read(name), made.source.read(name)
        if any(network.stored_name(s.parameter) == name and s.role == "linear" for s in network.sites):
            scales = grid.fit(before.float())
            assert torch.equal(after, grid.decode(scales.part(scales.round(before)).tensors, tuple(before.shape)))
            assert torch.equal(after, made.source.read(name)), "the same on every read"
            assert len(after[0, :32].unique()) <= 16
            changed += 1
        else:
            assert torch.equal(after, before)
    assert changed == sum(site.role == "linear" for site in network.sites)
    assert made.source.fingerprint != network.source.fingerprint
    assert made.source.fingerprint == rounded(network, grid).source.fingerprint
    assert made.source.stored_bytes < network.source.stored_bytes / 2


def test_a_rounded_network_runs(network_of: NetworkOf) -> None:
    """Closer to the original the more bits there are."""
    network = network_of("llama")
    ids = torch.arange(40).reshape(1, 40)
    exact = Stream(network).forward(ids)
    errors = [
        float((Stream(rounded(network, Grid(bits=bits, group_size=32))).forward(ids) - exact).abs().mean())
        for bits in (8, 4, 3)
    ]
    assert 0 < errors[0] < errors[1] / 4 < errors[2] / 4


def test_groups_that_do_not_divide_become_rows(network_of: NetworkOf) -> None:
    made = rounded(network_of("llama"), Grid(bits=4, group_size=48))
    assert isinstance(made.source, RoundedSource)
    assert {grid.group_size for grid in made.source.grids.values()} == {None}


def test_rounding_hides_no_nan(network_of: NetworkOf) -> None:
    network = network_of("llama")

    class Damaged(RoundedSource):
        def read(self, name: str) -> torch.Tensor:
            tensor = super().read(name)
            tensor.view(-1)[0] = float("nan")
            return tensor

    damaged = replace(network, source=Damaged(network.source, {}))
    name = network.sites[1].parameter
    with pytest.raises(InvalidWeights, match="NaN"):
        rounded(damaged, Grid(bits=4, group_size=32)).source.read(name)
