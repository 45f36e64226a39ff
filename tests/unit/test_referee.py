"""What a hostile referee asks of a certificate: sentences no stronger than their proof, no level spent twice."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pennyweight import catalogue
from pennyweight.budget import Budget, Measurement, Opening, Terms
from pennyweight.cli.arguments import parser
from pennyweight.errors import InvalidBudget, InvalidMeasurement
from pennyweight.flow.certifying import evidence
from pennyweight.flow.certifying.claims import Asked, usual_engine
from pennyweight.flow.certifying.judge import judge_evidence, judge_population
from pennyweight.flow.certifying.rules import Rules, check_feasible, drawn_order, lot_of
from pennyweight.flow.journal import Journal
from pennyweight.methods.certification import ClusteredT, PlannedMixture, Tango, certify, decide
from pennyweight.methods.certification.statement import confidence, state_all

FIRST = Opening(number=1, alpha=0.05, spent=0.05)
SECOND = Opening(number=2, alpha=0.0125, spent=0.0625)
TERMS = Terms(
    margin=0.02, cap=0.25, pilot_mean=0.003, pilot_sd=0.016, alpha=0.04, tail_alpha=0.01, population=None, n_max=1000
)


@dataclass(eq=False)
class Numbers:
    """A population whose degradations are known."""

    x: dict[str, np.ndarray]
    documents: np.ndarray
    fingerprint: str
    groups: tuple[str, ...] = ()
    scored: list[int] = field(default_factory=list)
    batch: int = 16
    on: str = ""
    counted: str = "windows"
    discrete: bool = False
    words: str = "a text ("

    def __len__(self):
        return len(self.documents)

    @property
    def independent(self):
        return self.documents

    def labels(self, key):
        return self.groups

    def scorer(self, *_):
        return self

    def score(self, order, advance=None):
        self.scored.extend(order.tolist())
        return {
            name: Measurement(
                metric=name, unit="nats per token", reference=np.zeros(len(order)), compressed=x[order],
                drawn=np.asarray(order), documents=self.documents[order], tokens=1, fingerprint=self.fingerprint,
            )
            for name, x in self.x.items()
        }  # fmt: skip


def numbers(name="f", groups=(), documents=None, **x):
    size = len(next(iter(x.values())))
    return Numbers(x, np.arange(size) if documents is None else documents, name, tuple(groups))


def ask(**margins):
    found = []
    for name, margin in margins.items():
        at_most = math.expm1(margin) if name == "perplexity" else margin
        unit = "ratio" if name == "perplexity" else "absolute"
        found.append(Asked(Budget(metric=name, at_most=at_most, unit=unit), catalogue.find(name, "measurement")))
    return found


def rules(scope="corpus", **changes):
    return Rules(**{"engine": usual_engine(scope, None), "scope": scope, "opening": FIRST, **changes})


def run(population, asked, pilot, how, journal):
    scores = pilot.score(np.arange(len(pilot)))
    found = judge_population("k", asked, population, scores, None, None, journal, how, weights="w", claims=len(asked))
    return judge_evidence(asked, [found], how, {}, "w")


def claim(x, terms=TERMS, metric="perplexity", budget=None, **more):
    scores = numbers(**{metric: np.asarray(x, dtype=float)}).score(np.arange(len(x)))[metric]
    budget = budget or Budget.lose("perplexity 2.5%")
    return certify(scores, budget, terms, metric=catalogue.find(metric, "measurement"), scope="a text (order)", **more)


# --- a bound for a number fixed beforehand is read at that number ---------------------------------------------------


def test_nothing_ends_before_the_number_that_was_fixed():
    x = 0.1 + 0.01 * np.sin(np.arange(200.0))
    terms = dataclasses.replace(TERMS, n_max=200, scope="asymptotic", tail_alpha=0.0)
    bets = dataclasses.replace(terms, scope="source")
    assert decide(x[:100], bets).verdict == "futile"  # the bets may stop whenever they like
    assert decide(x[:100], terms, engine=ClusteredT()).verdict == "continue"
    assert decide(x, terms, engine=ClusteredT()).verdict == "futile"


def test_a_hopeless_limit_does_not_choose_when_the_bound_beside_it_is_read(tmp_path):
    """Two losses that mirror each other: where the first looks hopeless, the second looks too good."""
    draw, missed, peeked, runs = np.random.default_rng(3), 0, 0, 150
    for number in range(runs):
        noise = draw.normal(0, 0.03, 640)
        text = numbers(f"{number}", perplexity=0.01 + noise, kl=np.maximum(0.2 - noise, 0))
        pilot = numbers("pilot", perplexity=draw.normal(0.006, 0.03, 24), kl=draw.normal(0.2, 0.03, 24))
        made = run(text, ask(perplexity=0.01, kl=0.25), pilot, rules("asymptotic"), Journal(tmp_path / str(number)))
        missed += made.claims[1].bound < 0.2
        # the negative control: stop when the first limit looks hopeless, and read the bound of the second there
        terms, order = dataclasses.replace(made.claims[0].terms, scope="source"), text.scored
        x, kl = text.x["perplexity"][order], text.x["kl"][order]
        stops = (n for n in range(48, 641, 16) if decide(x[:n], terms).verdict == "futile")
        n = next(stops, 640)
        peeked += ClusteredT().bound(kl[:n], made.claims[1].terms, 0.025) < 0.2
    assert missed / runs <= 0.06  # a level of 2.5 %
    assert peeked / runs > 0.08


# --- every opening draws by its own lot -----------------------------------------------------------------------------


def test_a_second_opening_draws_an_order_of_its_own():
    documents = np.arange(50)
    seed, order = drawn_order(50, "f", documents, "w", rules(salt="s"))
    assert order.tolist() == evidence.random_order(50, "f", "w", "s")[1].tolist()
    again, other = drawn_order(50, "f", documents, "w", rules(salt="s", opening=SECOND))
    assert again != seed
    assert other.tolist() != order.tolist()
    assert drawn_order(50, "f", documents, "w", rules(salt="s", opening=SECOND))[1].tolist() == other.tolist()


def test_scores_of_another_opening_are_not_taken_for_those_of_this_one(tmp_path):
    draw = np.random.default_rng(0)
    text, pilot = numbers(perplexity=draw.normal(0.003, 0.02, 200)), numbers(perplexity=draw.normal(0.003, 0.02, 24))
    how, journal = rules(opening=SECOND, most=64), Journal(tmp_path)
    run(text, ask(perplexity=0.02), pilot, rules(most=64), journal)
    run(text, ask(perplexity=0.02), pilot, how, journal)
    scores = evidence.from_values(journal.load("k/000000.json"))["perplexity"]
    assert scores.drawn.tolist() == drawn_order(200, "f", text.documents, "w", how)[1][:16].tolist()


# --- levels -----------------------------------------------------------------------------------------------------------


def test_the_margin_is_not_tested_at_more_than_the_confidence_leaves():
    loose = dataclasses.replace(TERMS, alpha=0.5, bound_alpha=0.02)
    with pytest.raises(InvalidBudget, match=r"levels 0\.5 and"):
        claim(np.zeros(50), loose)


def test_confidence_is_rounded_down():
    assert confidence(0.05) == "95"
    assert confidence(0.05 / 7) == "99.28"  # 99.2857
    assert confidence(0.04) == "96"


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_group_that_was_scored_in_full_is_known_without_a_cap():
    x = np.zeros(40)
    x[3] = 2.0  # far above the cap
    labels = ["small"] * 4 + ["large"] * 36
    terms = dataclasses.replace(TERMS, population=100)
    made = claim(x, terms, labels=labels, sizes={"small": 4, "large": 96})
    small = next(part for part in made.slices if part.group == "small")
    assert small.estimate == small.bound == small.alone == 0.5
    assert not small.holds


def test_the_sentence_on_groups_has_its_own_confidence_and_its_cap():
    labels = ["a"] * 20 + ["b"] * 20
    made = claim(np.zeros(40), dataclasses.replace(TERMS, population=100), labels=labels, sizes={"a": 50, "b": 50})
    assert "(at 96 % by itself, counted up to the same cap)" in made.statement


@pytest.mark.parametrize("early", [True, False])
def test_groups_too_small_for_a_bound_are_refused_before_anything_is_scored(tmp_path, early):
    draw = np.random.default_rng(0)
    groups = ["small"] * 10 + ["large"] * 90
    text = numbers(groups=groups, perplexity=draw.normal(0, 0.02, 100))
    pilot, asked, how = (
        numbers(perplexity=draw.normal(0, 0.02, 24)),
        ask(perplexity=0.02),
        rules("asymptotic", groups="g"),
    )
    refused = pytest.raises(InvalidMeasurement, match="group 'small' has 10 documents")
    if early:
        with refused:
            check_feasible(asked, [text], {"": pilot.score(np.arange(24))}, how, 0.05)
    else:
        with refused:
            run(text, asked, pilot, how, Journal(tmp_path))
    assert text.scored == []


# --- sentences --------------------------------------------------------------------------------------------------------


def test_a_futile_loss_is_said_of_the_units_scored():
    made = claim(0.1 + 0.01 * np.sin(np.arange(60.0)))
    assert made.verdict == "futile"
    assert "lies above the limit of 2.5 % on the windows scored" in made.statement


def test_a_claim_about_a_source_says_so():
    sure = np.full(400, 0.001)
    assert claim(sure).statement.startswith("On the source of a text (order)")
    named = dataclasses.replace(TERMS, population=1000)
    assert claim(sure, named).statement.startswith("On a text (order)")


def test_an_approximate_bound_is_called_approximate():
    terms = dataclasses.replace(
        TERMS, margin=0.1, cap=1.0, floor=-1.0, alpha=0.05, tail_alpha=0.0, n_max=300, scope="source"
    )
    budget = Budget.lose("accuracy:q.jsonl 10pt")
    x = np.zeros(300)
    assert (
        "tango, number fixed beforehand, approximate" in claim(x, terms, "accuracy", budget, engine=Tango()).statement
    )
    assert "approximate" not in claim(x, terms, "accuracy", budget, engine=PlannedMixture()).statement


def test_a_bound_read_where_scoring_stopped_admits_it():
    assert "early stopping not allowed for" in claim(np.full(400, 0.001)).statement


def test_openings_speak_of_the_gate():
    told = state_all([claim(np.full(400, 0.001))], SECOND)
    assert "the chance that the gate was ever opened wrongly is at most 6.25 %" in told
    assert "any" not in told.partition("opened 1 time before")[2]


def test_a_limit_that_was_not_proved_is_not_called_broken():
    """Stopping early is a rule of thumb: it shows neither that a limit is met nor that it is not."""
    good, stopped = claim(np.full(400, 0.001)), claim(0.1 + 0.01 * np.sin(np.arange(60.0)))
    assert stopped.verdict == "futile"
    told = state_all([good, stopped, good], FIRST)
    assert told.startswith("1 of 3 limits is not certified (perplexity 2.5%); the bounds hold together")
    assert state_all([stopped, stopped], FIRST).startswith("2 of 2 limits are not certified (")
    assert state_all([good, good], FIRST).startswith("All 2 limits are certified; ")
    assert "not met" not in told


def test_a_source_of_windows_is_one_of_documents_that_hold_one():
    sure, whole = np.full(400, 0.001), "(documents that hold a whole window)"
    assert f"On the source of a text (order) {whole}, with 95 %" in claim(sure).statement
    assert whole not in claim(sure, counted="questions").statement  # a question is a unit by itself
    assert whole not in claim(sure, dataclasses.replace(TERMS, population=1000)).statement
    every = dataclasses.replace(TERMS, scope="asymptotic", tail_alpha=0.0, n_max=400)  # all windows of the joined text
    assert whole not in claim(sure, every, engine=ClusteredT()).statement


def test_the_pages_claim_no_more_than_is_proved():
    """Single limits behind a shut gate have the level each, so no sum over everything is less than twice of it."""
    root = Path(__file__).parents[2]
    page, readme = ((root / name).read_text("utf-8") for name in ("docs/concepts/certificate.md", "README.md"))
    page, readme = " ".join(page.split()), " ".join(readme.split())
    assert "anything at all is wrong" not in page
    assert "with K of them, up to K times the level can go wrong" in page
    first = page.partition("## Reading one")[0]
    assert "Very bad pieces count only up to a stated cap" in first
    assert '"not certified", which does not mean it was broken' in first
    assert "drawn by lot" not in first
    assert "nobody had used" not in first  # for a model made by others we cannot know
    assert "Limits on text metrics below that are refused; tasks and `certify_outputs` have no floor." in page
    assert "counted up to 0.1 nats per token, and at most 3 % of windows exceed that" in readme
    for text in (page, readme, parser().epilog):
        assert "not within budget" not in text


# --- an order that is known comes back only with a verdict that is known ----------------------------------------------


def test_an_order_follows_from_all_that_the_verdict_follows_from():
    """The ledger counts openings, and can be lost or got around; nobody then picks a limit for an order that he saw."""
    size = 50
    pilot = {"perplexity": numbers("pilot", perplexity=np.zeros(24)).score(np.arange(24))["perplexity"]}
    asked = ask(perplexity=0.02)

    def order(asked=asked, pilot=pilot, **changes):
        how = rules(**{"ledgers": {"": "text and reference"}, **changes})
        return tuple(drawn_order(size, "f", np.arange(size), "w", how, "", lot_of(asked, pilot, how))[1].tolist())

    other = {"perplexity": numbers("other", perplexity=np.zeros(24)).score(np.arange(24))["perplexity"]}
    seen = [
        order(), order(ledgers={"": "the same text, the reference changed a little"}), order(ask(perplexity=0.021)),
        order(ask(perplexity=0.02, kl=0.1)), order(pilot=other), order(pilot=None), order(opening=SECOND),
        order(opening=Opening(number=1, alpha=0.03, spent=0.03)), order(engine=Tango()), order(groups="language"),
        order(most=40), order(salt="s"),
    ]  # fmt: skip
    assert len(set(seen)) == len(seen)
    assert order() == seen[0]
    assert order([*asked, *ask_of("quiz.jsonl")]) == seen[0]  # a claim on other units is no matter of these


def ask_of(path):
    budget = Budget.lose(f"accuracy:{path} 1pt")
    return [Asked(budget, catalogue.find("accuracy", "measurement"))]


def test_a_renamed_task_is_drawn_in_the_same_order():
    lots = {lot_of(ask_of(name), None, rules(ledgers={name: "task"}), name) for name in ("quiz.jsonl", "a/b.jsonl")}
    assert len(lots) == 1


def test_a_limit_picked_after_the_scores_are_known_is_drawn_for_anew(tmp_path):
    """Thirty limits in the order that was seen, the ledger deleted each time: in new orders the best is no surer."""
    draw = np.random.default_rng(0)
    text = numbers(perplexity=draw.normal(0.003, 0.02, 200))
    pilot = numbers("pilot", perplexity=draw.normal(0.003, 0.02, 24))
    drawn = set()
    for number, limit in enumerate(np.linspace(0.004, 0.03, 30)):
        text.scored.clear()
        how = rules(ledgers={"": "f"}, most=16)
        run(text, ask(perplexity=float(limit)), pilot, how, Journal(tmp_path / str(number)))
        drawn.add(tuple(text.scored))
    assert len(drawn) == 30


# --- a late opening that claims nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["corpus", "source"])
@pytest.mark.parametrize(("number", "size"), [(3, 20), (10, 24), (50, 24), (50, 2000)])
def test_a_run_without_a_limit_does_not_die_of_a_small_level(tmp_path, number, size, scope):
    draw = np.random.default_rng(0)
    text, pilot = numbers(perplexity=draw.normal(0.01, 0.02, size)), numbers(perplexity=draw.normal(0.01, 0.02, 24))
    budget = Budget(metric="size", at_most=1e9, unit="bytes")
    asked = [Asked(budget, catalogue.find("perplexity", "measurement"))]
    opening = Opening(number=number, alpha=0.05 / number**2, spent=0.08)
    made = run(text, asked, pilot, rules(scope, opening=opening), Journal(tmp_path))
    assert made.claims[0].verdict == "measured"
    assert made.claims[0].bound >= made.claims[0].estimate
