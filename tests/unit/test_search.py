"""The search's parts: studies, trials on a network, trimming, the surrogate."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_windows
from torch import Tensor

from pennyweight.errors import InvalidOutput
from pennyweight.export.engines import find
from pennyweight.flow.apply import apply
from pennyweight.flow.collect import Collected, collect
from pennyweight.flow.journal import open_run
from pennyweight.flow.options import tabulate
from pennyweight.flow.progress import Advance
from pennyweight.flow.search import passes
from pennyweight.flow.search.bank import Bank
from pennyweight.flow.search.evaluate import Evaluator
from pennyweight.flow.search.passes import drawn
from pennyweight.flow.search.study import Answer, open_study
from pennyweight.flow.search.trim import trim
from pennyweight.flow.working.task import HERE, Task, Workshop
from pennyweight.formats import Grid
from pennyweight.methods.allocation.greedy import hull
from pennyweight.methods.search import Surrogate
from pennyweight.methods.search.moves import Levels
from pennyweight.network.network import Network
from pennyweight.network.running.run import materialised
from pennyweight.plan import Option, Stage, Step, plan_of
from pennyweight.problem import Choice, Limit, Problem, options_of


def option(group: str, bits: int, size: int, damage: float) -> Option:
    step = Step((Stage("gptq", Grid(bits=bits, group_size=64)),))
    return Option(sites=(group,), step=step, bytes=size, damage=damage)


ROW = (option("a.q", 2, 10, 9.0), option("a.q", 3, 20, 8.0), option("a.q", 4, 30, 1.0), option("a.q", 5, 40, 0.5))


def test_a_study_remembers_by_world(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite"
    with open_study(path, "one") as study:
        study.put(["a", "b"], 512, 3, Answer(0.25, 0.01))
    with open_study(path, "one") as study:
        assert study.get(["a", "b"], 512, 3) == Answer(0.25, 0.01)
        assert study.get(["b", "a"], 512, 3) is None
        assert study.get(["a", "b"], 512, 4) is None
        assert study.get(["a", "b"], 1024, 3) is None
        assert study.rows() == [(512, 3, 0.25, ["a", "b"])]
    with open_study(path, "another") as study:
        assert study.get(["a", "b"], 512, 3) is None


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.sqlite").write_text("this is no database, and longer than a header of one would be " * 20)
    with pytest.raises(InvalidOutput, match="no study"), open_study(tmp_path / "study.sqlite", "one"):
        pass


def test_the_hull_leaves_out_what_lies_above_a_line() -> None:
    assert hull(ROW, "damage", "bytes") == [ROW[0], ROW[2], ROW[3]]


def test_trimming_keeps_what_was_chosen_and_its_neighbours() -> None:
    problem = Problem.of(Limit("bytes", 100))
    assert trim([ROW], problem, [ROW[2]], reach=1) == ((ROW[0], ROW[2], ROW[3]),)
    assert trim([ROW], problem, [ROW[3]], reach=1) == ((ROW[2], ROW[3]),)
    assert ROW[1] in trim([ROW], problem, [ROW[1]], reach=1)[0]


def test_a_switch_keeps_the_limit_and_its_size() -> None:
    table = [[option(f"{g}.q", b, 10 * b, 4.0**-b) for b in (2, 3, 4)] for g in range(6)]
    levels = Levels.of(table, Problem.of(Limit("bytes", 180)))
    start, rng = np.ones(6, dtype=np.int64), np.random.default_rng(0)
    for flips in (1, 2, 3):
        child = levels.switched(start, flips, rng)
        assert child is not None
        assert child.sum() == start.sum()
        assert (child > start).sum() == flips


def test_the_surrogate_finds_factors_it_was_shown() -> None:
    """Two kinds of sites, one of them damaged three times as much as predicted."""
    table = [[option(f"{g}.{'qv'[g % 2]}", b, 10 * b, 4.0**-b) for b in (2, 3, 4)] for g in range(12)]
    rng = np.random.default_rng(0)
    choices = [tuple(int(i) for i in rng.integers(0, 3, 12)) for _ in range(30)]

    def true(choice: tuple[int, ...]) -> float:
        return sum((3.0 if g % 2 else 1.0) * table[g][i].damage for g, i in enumerate(choice))

    known = Surrogate(table)
    known.learn(choices, [true(choice) for choice in choices])
    fresh = [tuple(int(i) for i in rng.integers(0, 3, 12)) for _ in range(40)]
    errors = [(known.predict(choice)[0] - true(choice)) / known.predict(choice)[1] for choice in fresh]
    assert np.abs([known.predict(c)[0] / true(c) - 1 for c in fresh]).max() < 0.1
    assert np.mean(np.abs(errors) < 2) > 0.8
    believed = known.mean()
    ratio = believed[1][0].damage / believed[0][0].damage
    assert ratio == pytest.approx(3.0, rel=0.15)


def test_draws_of_the_surrogate_are_spread_as_it_says() -> None:
    table = [[option(f"{g}.q", b, 10 * b, 4.0**-b) for b in (2, 3, 4)] for g in range(8)]
    rng = np.random.default_rng(1)
    choices = [tuple(int(i) for i in rng.integers(0, 3, 8)) for _ in range(10)]
    known = Surrogate(table)
    known.learn(choices, [sum(table[g][i].damage for g, i in enumerate(c)) * rng.lognormal(0, 0.2) for c in choices])
    probe = tuple(int(i) for i in rng.integers(0, 3, 8))
    sums = [sum(row[i].damage for row, i in zip(known.drawn(rng), probe, strict=True)) for _ in range(600)]
    mean, deviation = known.predict(probe)
    apart = (deviation**2 - (known.noise * mean) ** 2) ** 0.5
    assert np.mean(sums) == pytest.approx(mean, abs=4 * apart / 600**0.5)
    assert np.std(sums) == pytest.approx(apart, rel=0.2)


def test_one_measurement_of_a_choice_replaces_another() -> None:
    known = Surrogate([ROW])
    known.learn([(0,), (1,)], [1.0, 2.0])
    known.learn([(0,)], [3.0])
    assert known.scores == [3.0, 2.0]


@pytest.fixture(params=[("llama", "transformers"), ("llama", "llama.cpp"), ("llama_tied", "llama.cpp")], ids="-".join)
def bank(
    request: pytest.FixtureRequest, network_of: Callable[[str], Network], tmp_path: Path
) -> Iterator[tuple[Bank, Collected]]:
    """Three options a group; for llama.cpp embedding and head are groups too, one where they are one tensor."""
    family, engine = request.param
    network = network_of(family)
    with open_run(tmp_path / "run", {}) as journal:
        collected = collect(network, random_windows(6, 16), journal, fisher_windows=2)
        table = tabulate(network, collected, find(engine), journal, dtype="float16")
        made = Bank(network, tuple((row[0], row[1], row[-1]) for row in table.groups), journal, 0)
        assert (made.groups_of(None) == []) == (engine == "transformers")
        made.fill(collected)
        yield made, collected


def direct(bank: Bank, choice: Choice, ids: Tensor) -> float:
    """KL of a choice, by putting every weight in its place and running the whole model, in float64."""
    with materialised(bank.network, exact=True) as model, torch.no_grad():
        before = model(input_ids=ids).logits.log_softmax(-1)
        parameters = dict(model.named_parameters())
        for one in options_of(bank.table, choice):
            for name, weight in bank.weights(one).items():
                parameters[name if name in parameters else bank.network.stored_name(name)].data = weight.double()
        after = model(input_ids=ids).logits.log_softmax(-1)
    return float((before.exp() * (before - after)).sum(-1).mean())


def test_choices_tried_together_are_what_they_are_alone(bank: tuple[Bank, Collected], tmp_path: Path) -> None:
    made, collected = bank
    windows, rng = random_windows(5, 16, seed=9), np.random.default_rng(0)
    choices = [tuple(int(rng.integers(0, len(row))) for row in made.table) for _ in range(5)]
    choices.append((*choices[0][:-1], (choices[0][-1] + 1) % len(made.table[-1])))  # one that shares all but its end
    with open_study(tmp_path / "study.sqlite", "world") as study:
        trials = Evaluator(made, windows, study)
        together = trials.measure(choices, tokens=48, draw=2)
        assert trials.measured == 6
        assert trials.asked[48, 2].keys() == set(choices)
    with open_study(tmp_path / "other.sqlite", "world") as study:
        alone = Evaluator(made, windows, study)
        assert [alone.measure([choice], tokens=48, draw=2)[0] for choice in choices] == together
        ids = drawn(windows, 0, 48, 2)
    for choice, kl in zip(choices, together, strict=True):
        assert kl == pytest.approx(direct(made, choice, ids), rel=2e-3, abs=1e-7)
    del collected


def test_choices_tried_by_several_are_what_they_are_together(bank: tuple[Bank, Collected], tmp_path: Path) -> None:
    """Each task as bytes, to somebody who knows the journal and nothing else."""

    class Others:
        count = 3

        def run(self, tasks: Sequence[Task], shop: Workshop, advance: Advance) -> None:
            for task in reversed(tasks):
                pickle.loads(pickle.dumps(task)).carry_out(Workshop(shop.network, shop.journal), advance)

    made, _ = bank
    windows, rng = random_windows(1, 16, seed=9), np.random.default_rng(1)
    choices = list(dict.fromkeys(tuple(int(rng.integers(0, len(row))) for row in made.table) for _ in range(5)))
    found = []
    for workers in (HERE, Others()):
        with open_study(tmp_path / f"{len(found)}.sqlite", "world") as study:
            trials = Evaluator(made, windows, study, workers=workers)
            found.append(trials.answers(choices, tokens=16))
            assert trials.measured == len(choices)
    assert found[0] == found[1]
    assert all(answer.error == np.inf for answer in found[0]), "one window says nothing of itself"
    assert not list(made.journal.directory.glob("trials/*"))


def test_a_summary_is_below_the_whole_divergence_and_near_it() -> None:
    generator = torch.Generator().manual_seed(0)
    before = 3 * torch.randn(4, 5000, generator=generator)
    after = before + 0.3 * torch.randn(4, 5000, generator=generator)
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    whole = (p.exp() * (p - q)).sum(-1)
    summed = passes._Summary.of(before).divergence(after).double()
    assert (summed <= whole + 1e-6).all()
    assert (summed >= 0.5 * whole).all()


def test_nothing_changed_costs_nothing(bank: tuple[Bank, Collected], tmp_path: Path) -> None:
    made, _ = bank
    dense = tuple(next(i for i, o in enumerate(row) if o.step.label().startswith("cast")) for row in made.table)
    with open_study(tmp_path / "study.sqlite", "world") as study:
        assert Evaluator(made, random_windows(3, 16), study).measure([dense], tokens=48)[0] == pytest.approx(
            0, abs=1e-7
        )


def test_what_a_study_knows_is_not_measured_again(bank: tuple[Bank, Collected], tmp_path: Path) -> None:
    made, _ = bank
    choices = [(0,) * len(made.table), (1,) * len(made.table)]
    for measured in (1, 1, 0):
        with open_study(tmp_path / "study.sqlite", "world") as study:
            trials = Evaluator(made, random_windows(3, 16), study)
            trials.measure(choices if measured == 0 or study.rows() else choices[:1], tokens=32)
            assert trials.measured == measured


def test_fewer_tokens_are_the_first_of_more(bank: tuple[Bank, Collected], tmp_path: Path) -> None:
    with open_study(tmp_path / "study.sqlite", "world") as study:
        trials = Evaluator(bank[0], random_windows(8, 16), study)
        assert torch.equal(drawn(trials.windows, 0, 128, 1)[:3], drawn(trials.windows, 0, 48, 1))
        assert not torch.equal(drawn(trials.windows, 0, 48, 2), drawn(trials.windows, 0, 48, 1))
        assert trials.most == 128


def test_applying_a_plan_takes_what_the_bank_holds(bank: tuple[Bank, Collected]) -> None:
    """A plan that a search found is not carried out a second time."""
    made, collected = bank
    before = sorted(made.journal.directory.glob("sites/*"))
    chosen = options_of(made.table, (1,) * len(made.table))
    plan = plan_of(
        chosen, kept={}, engine="llama.cpp", dtype="float16", seed=0, bytes=0, model=made.network.source.fingerprint
    )
    applied = apply(plan, made.network, collected, made.journal)
    assert sorted(made.journal.directory.glob("sites/*")) == before
    for one in chosen:
        for name, weight in made.weights(one).items():
            site = next(site for site in made.network.sites if site.parameter == name)
            assert torch.equal(applied.compressed(site).dequantize(), weight)


def test_choices_that_lose_nothing_do_not_break_the_surrogate() -> None:
    table = [[option(f"{g}.q", b, 10 * b, 0.0 if b == 4 else 4.0**-b) for b in (2, 3, 4)] for g in range(4)]
    for first in (0.0, 1e-9, -1e-9):
        known = Surrogate(table)
        known.learn([(2, 2, 2, 2)], [first])
        known.learn([(0, 2, 2, 2), (1, 1, 2, 2)], [0.07, 0.03])
        assert known.predict((0, 0, 2, 2))[0] > 0
        assert all(option.damage >= 0 for row in known.drawn(np.random.default_rng(0)) for option in row)


def test_another_programs_file_is_no_study(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE trial (name TEXT)")
    connection.commit()
    connection.close()
    for wrong in (path, tmp_path, path / "inside"):
        with pytest.raises(InvalidOutput, match="no study"), open_study(wrong, "one"):
            pass
