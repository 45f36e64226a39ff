"""How often does a whole `compress` certify a candidate whose true loss is exactly the margin? At most 5 % is promised.

Usage: python benchmarks/null_compress.py [--seed 0] [--repetitions 200] [--out benchmarks/results/null_compress.json]

Every repetition has its own random model, its own text, its own seed and salt. The claim is about one finite text, so
the truth is known: the plan is carried out once and every window of the certification split is scored. The budget is
then set to that very mean (the capped one, which is what a certificate is about), and `compress` runs from the start
with it: text, statistics, rounding, export, selection, terms, order, scoring until sure. It may score at most a part of
the split, since a full pass leaves nothing to chance. Whatever it certifies is false. Nothing inside is replaced, but
for the ladder, where the search is told its three plans: real rungs depend on the budget, and the budget here depends
on the rungs.

Two controls show that the count can come out wrong: the same scores judged by a t bound that is looked at again and
again, and by the luckiest of twenty orders. A third, the budget half as large again, shows that certifying is possible.
About ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from pennyweight.budget import Budget, Measurement, Opening
from pennyweight.flow import artifact
from pennyweight.flow.candidate import build
from pennyweight.flow.certifying import evidence
from pennyweight.flow.certifying.claims import resolve, usual_engine
from pennyweight.flow.certifying.populations import Text, ledgers_of
from pennyweight.flow.certifying.rules import Rules, drawn_order, lot_of, terms_for
from pennyweight.flow.collect import collect
from pennyweight.flow.compress import compress
from pennyweight.flow.delivery import Outcome
from pennyweight.flow.journal import open_run
from pennyweight.flow.load import load
from pennyweight.flow.make_plan import Planner
from pennyweight.flow.measure import BATCH_TOKENS, ReferenceStates, measure, token_metrics
from pennyweight.flow.progress import QUIET
from pennyweight.flow.settings import Settings
from pennyweight.flow.text import texts
from pennyweight.methods.certification import choose_cap, decide
from pennyweight.network.network import Network
from pennyweight.numerics.random import stream
from pennyweight.plan import Plan, Step

LIMIT = 0.07  # of the share of false certificates: 5 % and room for 200 repetitions
CONFIDENCE = 0.95
VOCABULARY, SIZE, BLOCKS, LENGTH = 256, 32, 2, 32
DOCUMENTS, EACH = 300, 3  # windows a document
CALIBRATION, SELECTION = 16, 16  # a short pilot is often wrong, and only a pilot that is too hopeful bets much
MOST = 384  # windows scored at most, of about 495: three batches, and far from a full pass
FIRST_LOOK, ORDERS, GENEROUS, GENEROUS_RUNS = 40, 20, 1.5, 50
# Three recipes that lose about the same, so that selection scores are a poor guide to which of them is the safest.
RECIPES = (("gptq int4 g32 sym", ""), ("gptq int4 g32 asym", ""), ("gptq int3 g32 sym", "mlp.up_proj"))


@dataclass(frozen=True, eq=False)
class Case:
    """One repetition, with everything that is true of it.

    Args:
        model: directory.
        text: file; it is split in three.
        settings: of every run of this repetition.
        plans: one a recipe.
        hashes: of the weights each plan gives.
        pilots: losses on the selection split, by plan.
        truths: losses on every window of the certification split, in the order of the text, by plan.
        ledger: what the ledger of openings counts the text by.
    """

    model: Path
    text: Path
    settings: Settings
    plans: tuple[Plan, ...]
    hashes: tuple[str, ...]
    pilots: tuple[Measurement, ...]
    truths: tuple[Measurement, ...]
    ledger: str

    @property
    def salt(self) -> str:
        """What a run of this repetition mixes into its order."""
        return f"{self.settings.seed} {self.settings.salt}"

    def loss(self, plan: int) -> float:
        """The largest margin at which a certificate for this plan would be false: its mean loss, counted up to the cap.

        The cap is chosen from pilot and margin, so this is a fixed point; a cap is rarely reached, and never by much.
        """
        x, pilot = self.truths[plan].degradation, self.pilots[plan].degradation
        loss, lower = math.inf, math.fsum(x) / len(x)
        while lower < loss:
            loss, lower = lower, math.fsum(np.minimum(x, choose_cap(pilot, lower))) / len(x)
        return loss

    def ordered(self, plan: int, budget: Budget, salt: str) -> Measurement:
        """True losses in the order in which a run with this budget and salt draws the windows."""
        truth, rules = self.truths[plan], self.rules(budget, salt)
        lot = lot_of(resolve([budget]), {"perplexity": self.pilots[plan]}, rules)
        order = drawn_order(len(truth.drawn), truth.fingerprint, truth.documents, self.hashes[plan], rules, lot=lot)[1]
        return truth.take(order)

    def rules(self, budget: Budget, salt: str) -> Rules:
        """How a run with this budget and salt judges."""
        alpha = 1 - budget.confidence
        return Rules(
            engine=usual_engine("corpus", None), opening=Opening(number=1, alpha=alpha, spent=alpha), salt=salt,
            most=MOST, ledgers={"": self.ledger},
        )  # fmt: skip


# --- a model, a text it finds likely, and the truth -------------------------------------------------------------------


def make_case(directory: Path, seed: int, number: int, recipes: Sequence[tuple[str, str]] = RECIPES) -> Case:
    """Make model and text of one repetition, carry its plans out and score them on every window there is."""
    model, text = directory / "model", directory / "text.txt"
    text.write_text(write_text(make_model(model, f"{seed} {number}"), f"{seed} {number}"), encoding="utf-8")
    settings = Settings(
        length=LENGTH, calibration_windows=CALIBRATION, selection_windows=SELECTION, certification_windows=MOST,
        fisher_windows=2, seed=number, salt=f"repetition {seed} {number}", dtype="float16", threads=1,
    )  # fmt: skip
    network = load(model)
    words = texts(network, text, None, length=LENGTH, count=CALIBRATION, selection=SELECTION, seed=number)
    plans = tuple(recipe(network, label, part, number) for label, part in recipes)
    with open_run(directory / "frozen", {}) as journal:
        seen = collect(network, words.calibration, journal, needs=frozenset({"gram"}))
        states = ReferenceStates(journal, "reference")
        metrics = token_metrics()
        frozen = [build(plan, network, seen, words.selection, journal, states, metrics, QUIET) for plan in plans]
        truths = [measure(network, candidate.network, words.certification)["perplexity"] for candidate in frozen]
    return Case(
        model=model, text=text, settings=settings, plans=plans, hashes=tuple(c.weights for c in frozen),
        pilots=tuple(c.selection["perplexity"] for c in frozen), truths=tuple(truths),
        ledger=ledgers_of([Text(words.certification, words.opened)], network)[""],
    )  # fmt: skip


def make_model(directory: Path, name: str) -> nn.Module:
    """A tiny llama with random weights and decided opinions, saved with a tokenizer of one token a word."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, hidden_size=SIZE, intermediate_size=2 * SIZE, num_hidden_layers=BLOCKS,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4 * LENGTH, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():  # transformers draws first weights from the global stream; ours replace them all
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            if parameter.dim() == 2:
                noise = torch.randn(parameter.shape, generator=stream(name, key))
                scale = 1.0 if "embed" in key else parameter.shape[1] ** -0.5 * (1.5 if "head" in key else 1.0)
                parameter.copy_(scale * noise)
    model.eval().save_pretrained(directory)  # type: ignore[operator]
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    return model


@torch.no_grad()
def write_text(model: nn.Module, name: str) -> str:
    """A text that the model wrote itself: rounding it can only lose on that, by its KL, on average.

    Documents are written at temperatures of their own, so that windows of one document resemble each other.
    """
    generator, count = stream(name, "text"), DOCUMENTS * EACH
    heat = torch.linspace(0.8, 1.25, DOCUMENTS).repeat_interleave(EACH)[:, None]
    token = torch.randint(0, VOCABULARY, (count, 1), generator=generator)
    tokens, past = [token], None
    for _ in range(LENGTH - 1):
        output = model(token, past_key_values=past, use_cache=True)
        past = output.past_key_values
        token = torch.multinomial((output.logits[:, -1] / heat).softmax(-1), 1, generator=generator)
        tokens.append(token)
    documents = torch.cat(tokens, 1).view(DOCUMENTS, -1).tolist()
    return "\f".join(" ".join(f"w{i}" for i in document) for document in documents)


def recipe(network: Network, label: str, part: str, seed: int) -> Plan:
    """One step for every linear site whose name holds `part`."""
    steps = {s.name: Step.parse(label) for s in network.sites if s.role == "linear" and s.block is not None}
    return Plan(
        steps={name: step for name, step in steps.items() if part in name}, kept={}, engine="transformers",
        dtype="float16", seed=seed, bytes=0, damage=0.0, model=network.source.fingerprint,
    )  # fmt: skip


def at_margin(truth: float, share: float = 1.0) -> Budget:
    """The budget whose margin is a truth (times `share`), and never a rounding error above it."""
    at_most = math.expm1(truth * share)
    while math.log1p(at_most) > truth * share:
        at_most = math.nextafter(at_most, 0.0)
    return Budget(metric="perplexity", at_most=at_most, unit="ratio", confidence=CONFIDENCE)


# --- the runs that are judged -----------------------------------------------------------------------------------------


def run(case: Case, out: Path, budget: Budget, plan: Plan | None) -> Outcome:
    """A whole `compress`; only model, text and settings of the case go in, never a score.

    Every run remembers its openings in a place of its own: each is to have the error level of a first one.
    """
    with mock.patch.dict(os.environ, PENNYWEIGHT_STATE=str(out.with_name(f"{out.name}.state"))):
        return compress(case.model, out, budget=budget, calibration=case.text, plan=plan, settings=case.settings)


@contextmanager
def only(plans: Sequence[Plan]) -> Iterator[None]:
    """Let the search find these plans, in this order; what it does with them is its own."""
    with mock.patch.object(Planner, "within_damage", side_effect=plans):
        yield


def check(case: Case, outcome: Outcome) -> float:
    """See that this run was a null, whatever it certified; largest difference between its scores and the truth."""
    plan = case.hashes.index(outcome.certificate.fingerprints["weights"])
    (part,) = artifact.read_record(outcome.out, "evidence.json")["populations"]
    found, truth = evidence.from_values(part["certification"])["perplexity"], case.truths[plan]
    assert found.fingerprint == truth.fingerprint, "another text was scored"
    (claim,) = outcome.certificate.claims
    terms = claim.terms
    assert outcome.certificate.opening.number == 1, "a later opening has less error level than is counted here"
    assert claim.scored < len(truth.drawn) == terms.population, "a full pass leaves nothing to chance"
    counted = math.fsum(np.minimum(truth.degradation, terms.cap)) / len(truth.drawn)
    assert counted >= terms.margin * (1 - 1e-12), "the claim is true"
    return float(np.abs(found.degradation - truth.degradation[found.drawn]).max())


# --- what the same scores would give without the care -----------------------------------------------------------------


def holds(case: Case, plan: int, budget: Budget, salt: str) -> bool:
    """What a run with this salt certifies, from the scores alone."""
    drawn, rules = case.ordered(plan, budget, salt), case.rules(budget, salt)
    (asked,) = resolve([budget])
    pilot = {"perplexity": case.pilots[plan]}
    terms = terms_for(asked, pilot, rules, size=len(drawn.drawn), discrete=False, claims=1)
    verdict, stop = "continue", 0
    while verdict == "continue":
        stop += BATCH_TOKENS // LENGTH
        verdict = decide(drawn.degradation[:stop], terms, drawn.documents[:stop], rules.engine).verdict
    return verdict == "certified"


def luckiest(case: Case, plan: int, budget: Budget) -> bool:
    """Whether one of twenty orders certifies."""
    return any(holds(case, plan, budget, f"{case.salt} again {again}") for again in range(ORDERS))


def peeking(x: NDArray[np.float64], margin: float) -> bool:
    """Whether a t bound, looked at after every window from the 40th on, is ever below the margin."""
    n = np.arange(1, MOST + 1)
    means = x[:MOST].cumsum() / n
    variances = ((x[:MOST] ** 2).cumsum() / n - means**2) / np.maximum(n - 1, 1)
    bounds = means + stats.t.isf(1 - CONFIDENCE, np.maximum(n - 1, 1)) * np.sqrt(np.maximum(variances, 0))
    return bool((bounds < margin)[FIRST_LOOK - 1 :].any())


# --- counting ---------------------------------------------------------------------------------------------------------


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    """Count, share, and the share's exact 95 % interval (Clopper-Pearson)."""
    interval = stats.binomtest(sum(hits), len(hits)).proportion_ci(0.95, method="exact")
    return {
        "repetitions": len(hits), "certified": sum(hits), "rate": sum(hits) / len(hits),
        "interval": [float(interval.low), float(interval.high)],
    }  # fmt: skip


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The count of one scenario, and how its runs ended."""
    return {
        **rate([outcome.certificate.holds for outcome in outcomes]),
        "verdicts": dict(sorted(Counter(outcome.certificate.claims[0].verdict for outcome in outcomes).items())),
        "mean_windows_scored": float(np.mean([outcome.certificate.claims[0].scored for outcome in outcomes])),
    }


def experiment(seed: int, repetitions: int) -> dict[str, Any]:
    """Run everything; a repetition leaves nothing behind but its counts."""
    single: list[Outcome] = []
    ladder: list[Outcome] = []
    generous: list[Outcome] = []
    peeked, lucky, reproduced, differences, rungs, facts = [], [], [], [], [], []
    for number in range(repetitions):
        with tempfile.TemporaryDirectory() as place:
            case = make_case(Path(place), seed, number)
            losses = [case.loss(plan) for plan in range(len(case.plans))]
            budget, safest = at_margin(losses[0]), at_margin(min(losses))
            single.append(run(case, Path(place) / "single", budget, case.plans[0]))
            with only(case.plans):
                ladder.append(run(case, Path(place) / "ladder", safest, None))
            if number < GENEROUS_RUNS:
                generous.append(run(case, Path(place) / "generous", at_margin(losses[0], GENEROUS), case.plans[0]))
            for outcome in (single[-1], ladder[-1]):
                differences.append(check(case, outcome))
            rungs.append(len(artifact.read_record(ladder[-1].out, "ladder.json")))
            reproduced.append(holds(case, 0, budget, case.salt) == single[-1].certificate.holds)
            peeked.append(peeking(case.ordered(0, budget, case.salt).degradation, budget.margin))
            lucky.append(luckiest(case, 0, budget))
            x = case.truths[0].degradation
            facts.append((len(x), losses[0], float(x.std()), max(losses) - min(losses)))
        if (number + 1) % 10 == 0:
            print(f"{number + 1:4d} repetitions, false certificates: {sum(o.certificate.holds for o in single)} single,"
                  f" {sum(o.certificate.holds for o in ladder)} ladder, {sum(peeked)} peeking, {sum(lucky)} lucky",
                  flush=True)  # fmt: skip
    windows, loss, sd, spread = np.mean(facts, axis=0).tolist()
    one, many = summary(single), summary(ladder)
    controls = {"peeking_t_bound": rate(peeked), f"luckiest_of_{ORDERS}_orders": rate(lucky)}
    return {
        **one,
        "limit": LIMIT,
        "level": {"joint": 1 - CONFIDENCE, "capped_mean": single[0].certificate.claims[0].terms.alpha},
        "within": max(one["rate"], many["rate"]) <= LIMIT,
        "ladder": {
            **many, "mean_rungs": float(np.mean(rungs)), "mean_spread_of_true_losses": spread,
            "note": "search told its three plans; margin at the smallest true loss among them",
        },
        "controls": controls,
        "controls_fail": min(c["interval"][0] for c in controls.values()) > LIMIT,
        f"margin_at_{GENEROUS}_times_the_truth": summary(generous),
        "population": {"mean_windows": windows, "mean_true_loss": loss, "mean_sd": sd, "scored_at_most": MOST},
        "controls_recompute_the_runs": all(reproduced),
        "largest_difference_between_scores_and_truth": max(differences),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repetitions", type=int, default=200)
    default = Path(__file__).parent / "results" / "null_compress.json"
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    from machine import facts  # a neighbour of this script, and out of reach for tests that load it by its path

    torch.set_num_threads(1)
    started = time.perf_counter()
    result = {**facts(arguments.seed), **experiment(arguments.seed, arguments.repetitions)}
    result["seconds"] = round(time.perf_counter() - started, 1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
