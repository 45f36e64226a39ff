"""Do certificates agree with the truth? SmolLM2 at 8, 4 and 3 bits, against a full pass over ten times the text.

    python benchmarks/certificate_agreement.py --model DIR --text TEST.txt [--orders 200] [--seed 0]

DIR holds the model of benchmarks/peer_scripts/make_model.py: SmolLM2-135M-Instruct with its channels permuted, so that
rounding meets no grid its weights were rounded to before. The truth is a full pass over every window of the text, with
nothing capped. A certificate may look at a tenth of those windows at most; its terms come from pilot windows that no
certificate is about. The windows' scores are computed once, by the product's own scorer; each certificate then draws
its own order of them, another salt each time, and is judged by the same functions as `pennyweight certify`. For every
metric the margin is set to three quarters, one and a half and twice the true loss: the first must not be certified.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pennyweight import catalogue
from pennyweight.budget import Budget, Measurement, Opening
from pennyweight.corpus import cut, describe_source, read_documents
from pennyweight.flow.certifying.claims import resolve, usual_engine
from pennyweight.flow.certifying.evidence import from_values, random_order, to_values
from pennyweight.flow.certifying.rules import Rules, common_terms
from pennyweight.flow.journal import Journal
from pennyweight.flow.load import load
from pennyweight.flow.measure import ReferenceStates, Scorer
from pennyweight.flow.progress import Progress
from pennyweight.formats import Grid
from pennyweight.methods.certification import certify, decide, degradations
from pennyweight.network.changing.rounded import rounded
from pennyweight.network.sources.source import Source
from pennyweight.network.sources.tokenizer import load_tokenizer, separator_id
from pennyweight.numerics.random import permutation

LENGTH, PILOT, SHARE = 256, 32, 10
METRICS = ("perplexity", "kl", "disagreement", "tv", "js", "top-k")
FACTORS = (0.75, 1.5, 2.0)
CONFIDENCE = 0.95


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/agreement"))
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bits", default="8,4,3")
    parser.add_argument("--windows", type=int, default=672, help="of the text, pilot included, chosen at random")
    arguments = parser.parse_args()
    reference = load(arguments.model)
    tokenizer = load_tokenizer(reference.source)
    windows = cut(
        read_documents(arguments.text), tokenizer, length=LENGTH, split="certification",
        source=describe_source(arguments.text), separator=separator_id(reference.source, tokenizer),
    )  # fmt: skip
    journal = Journal(arguments.work)
    states = ReferenceStates(journal, f"states-{windows.fingerprint[:16]}")
    drawn = permutation(len(windows), arguments.seed, "agreement")[: arguments.windows]
    widths = [int(text) for text in arguments.bits.split(",")]
    settings = {
        "seed": arguments.seed, "orders": arguments.orders, "windows": arguments.windows - PILOT,
        "text": arguments.text.name,
    }  # fmt: skip
    rows = machine.kept("certificate_agreement", settings, lambda row: row["bits"] in widths)
    for bits in widths:
        grid = Grid(bits=bits, group_size=32, symmetric=True)
        compressed = rounded(reference, grid)
        compressed = replace(compressed, source=Kept(compressed.source))
        metrics = [catalogue.find(name, "measurement") for name in METRICS]
        scorer = Scorer(reference, compressed, windows, states, metrics)
        piece = f"scores-{windows.fingerprint[:16]}-{arguments.seed}-{len(drawn)}-int{bits}.json"
        if not journal.has(piece):
            with Progress().stage(f"full pass, {bits} bits", len(drawn)) as advance:
                journal.save(piece, to_values(scorer.score(drawn, advance)))
        scores = from_values(journal.load(piece))
        pilot = {name: scores[name].take(np.arange(PILOT)) for name in METRICS}
        corpus = {name: as_corpus(scores[name].take(np.arange(PILOT, len(drawn)))) for name in METRICS}
        for name in METRICS:
            for factor in FACTORS:
                if reaches(name, factor * float(corpus[name].degradation.mean())):
                    continue
                threads, commit = torch.get_num_threads(), machine.facts(arguments.seed)["commit"]
                row = {"bits": bits, "commit": commit, "threads": threads}
                rows.append(row | compare(name, factor, pilot, corpus[name], arguments.orders))
        value = {
            **machine.facts(arguments.seed), "model": "SmolLM2-135M-Instruct, channels permuted",
            "text": windows.source,
            "windows": len(drawn) - PILOT, "tokens": LENGTH, "pilot_windows": PILOT, "grid": "round to nearest, g32",
            "most_windows": (len(drawn) - PILOT) // SHARE, "confidence": CONFIDENCE, "orders": arguments.orders,
            "rows": rows,
        }  # fmt: skip
        machine.write("certificate_agreement", value)  # after every width: the passes take minutes
    show(rows)


def reaches(name: str, margin: float) -> bool:
    """Whether a margin is at or above what any model loses."""
    upper = catalogue.find(name, "measurement").upper
    return upper is not None and margin >= upper


class Kept:
    """A source whose tensors are read once: here the model is small, and rounding it for every batch takes minutes."""

    def __init__(self, source: Source) -> None:
        self._source, self._tensors = source, dict[str, Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self, name: str) -> Tensor:
        if name not in self._tensors:
            self._tensors[name] = self._source.read(name)
        return self._tensors[name]


def as_corpus(measured: Measurement) -> Measurement:
    """The same scores as a population of their own."""
    return Measurement(
        metric=measured.metric, unit=measured.unit, reference=measured.reference, compressed=measured.compressed,
        drawn=np.arange(len(measured.drawn)), documents=measured.documents, tokens=measured.tokens,
        fingerprint=f"{measured.fingerprint} without pilot",
    )  # fmt: skip


def compare(
    name: str, factor: float, pilot: Mapping[str, Measurement], corpus: Measurement, orders: int
) -> dict[str, Any]:
    """Certify one claim under many orders; count how often the true mean lies above the bound."""
    size = len(corpus.drawn)
    truth = math.fsum(corpus.degradation) / size
    margin = factor * truth
    limit = math.expm1(margin) if name == "perplexity" else margin
    budget = Budget(metric=name, at_most=limit, unit="ratio" if name == "perplexity" else "absolute")
    asked = resolve([budget], text=False)
    alpha = 1 - CONFIDENCE
    rules = Rules(
        engine=usual_engine("corpus", None), opening=Opening(number=1, alpha=alpha, spent=alpha), most=size // SHARE
    )
    missed = certified = wrong_tail = 0
    scored, bounds, uncapped = [], [], 0
    for salt in range(orders):
        terms = common_terms(asked, pilot, rules, size=size, discrete=False, claims=1)[0]
        _, order = random_order(size, corpus.fingerprint, f"{name} {factor}", str(salt))
        seen = corpus.take(order[: terms.n_max])
        for count in [*range(16, terms.n_max, 16), terms.n_max]:  # the batches of the product
            part = seen.take(np.arange(count))
            if decide(degradations(part, asked[0].metric), terms, part.documents).verdict != "continue":
                break
        claim = certify(part, budget, terms, metric=asked[0].metric, scope="")
        capped = float(np.minimum(corpus.degradation, terms.cap).mean())
        missed += claim.bound < capped
        uncapped += claim.bound < truth
        wrong_tail += claim.tail_bound < float((corpus.degradation > terms.cap).mean()) if terms.tail_alpha else False
        certified += claim.holds
        scored.append(claim.scored)
        bounds.append(claim.bound)
    most = orders * (1 - CONFIDENCE) + 3 * math.sqrt(orders * (1 - CONFIDENCE) * CONFIDENCE)
    return {
        "metric": name, "margin_over_truth": factor, "truth": truth, "cap": terms.cap, "certified": certified,
        "bound_below_capped_truth": missed, "bound_below_truth": uncapped, "tail_bound_below_share": wrong_tail,
        "orders": orders, "limit": most, "within": missed <= most and uncapped <= most and wrong_tail <= most
        and (factor >= 1 or certified <= most),
        "mean_windows": float(np.mean(scored)), "mean_bound_over_truth": float(np.mean(bounds) / truth),
    }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(show_edge=False)
    for heading in (
        "bits",
        "metric",
        "truth",
        "margin",
        "certified",
        "bound < truth",
        "windows",
        "bound / truth",
        "ok",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row["bits"]), row["metric"], f"{row['truth']:.5f}", f"{row['margin_over_truth']:g} x",
            f"{row['certified']}/{row['orders']}", f"{row['bound_below_truth']}/{row['orders']}",
            f"{row['mean_windows']:.0f}", f"{row['mean_bound_over_truth']:.2f}", "yes" if row["within"] else "NO",
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
