"""Who gets how many bits: KL of uniform, HAWQ, the integer program, EvoPress and Thompson sampling at equal bytes.

    python benchmarks/allocation.py --model DIR --calibration TRAIN.txt --test TEST.txt [--bits 2.5,3,3.5,4] [--seed 0]

DIR holds the model of benchmarks/peer_scripts/make_model.py. Every group may become int2 to int5 by GPTQ, in groups of
about 64 inputs, symmetric, as transformers reads them. Methods see the calibration text, searches windows of other
documents of it; the KL in the table is of windows of the test text, which neither saw. Evaluations and tokens are those
a search asked for. `plans` are solutions under predicted damages that were made wrong at random: how measured and
predicted KL hang together.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from rich.console import Console
from rich.table import Table as Shown

import pennyweight as pw
from pennyweight import catalogue
from pennyweight.export.engines import find
from pennyweight.flow.collect import collect
from pennyweight.flow.journal import open_run
from pennyweight.flow.options import tabulate
from pennyweight.flow.search.bank import Bank
from pennyweight.flow.search.evaluate import Evaluator, world_of
from pennyweight.flow.search.study import open_study
from pennyweight.flow.text import texts
from pennyweight.methods.allocation import IntegerProgram
from pennyweight.methods.search import EvoPress, Surrogate
from pennyweight.plan import Option
from pennyweight.problem import Choice, Limit, Problem, choice_of, options_of

WIDTHS, GROUP = (2, 3, 4, 5), 64
METHODS = ("uniform", "hawq", "integer_program", "thompson", "evopress")
SEARCHES = {"evopress": "evopress(generations={generations}, offspring=8, patience=1000)", "thompson": "thompson"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--bits", default="2.5,3,3.5,4")
    parser.add_argument("--generations", type=int, default=40, help="of EvoPress")
    parser.add_argument("--plans", type=int, default=64, help="random plans")
    parser.add_argument("--plan-bits", default="2.5,3,3.5,4", help="that they have")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--windows", type=int, default=32, help="of the test text")
    parser.add_argument("--work", type=Path, default=Path("build/allocation"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    network = pw.load(arguments.model)
    words = texts(
        network, arguments.calibration, arguments.test, length=256, count=64, selection=32, seed=arguments.seed
    )
    settings = {"seed": arguments.seed, "windows": arguments.windows, "tokens": 256, "threads": torch.get_num_threads(),
                "generations": arguments.generations}  # fmt: skip
    with open_run(arguments.work, settings) as journal:
        collected = collect(network, words.calibration, journal, seed=arguments.seed)
        tables = {
            pricing: few(tabulate(network, collected, find("transformers"), journal, dtype="float16", pricing=pricing))
            for pricing in ("kronecker", "hessian_trace")
        }
        bank = Bank(network, tables["kronecker"], journal, arguments.seed)
        bank.fill(collected)
        world = world_of(bank, words.selection, collected.fingerprint)
        test = pw.sample(arguments.test, network, count=arguments.windows, seed=arguments.seed, split="certification")
        with (
            open_study(arguments.work / "study.sqlite", world) as study,
            open_study(arguments.work / "study.sqlite", world_of(bank, test, collected.fingerprint)) as held_out,
        ):
            judge = Evaluator(bank, test, held_out, seed=arguments.seed)
            wanted, named = {float(b) for b in arguments.bits.split(",")}, arguments.methods.split(",")
            rows = machine.kept("allocation", settings, lambda row: row["bits"] in wanted and row["method"] in named)
            earlier = machine.RESULTS / "allocation.json"
            predicted: list[dict[str, Any]] = json.loads(earlier.read_text())["plans"] if rows else []

            def write() -> None:
                value = {**machine.facts(arguments.seed), "model": "SmolLM2-135M-Instruct, channels permuted"}
                machine.write(
                    "allocation",
                    {
                        **value,
                        **settings,
                        "rows": rows,
                        "plans": predicted,
                        "trust": trusted(bank, predicted) if predicted else {},
                    },
                )

            for bits in map(float, arguments.bits.split(",")):
                limit = Limit("bytes", bits / 8 * weights_of(bank))
                for name in arguments.methods.split(","):
                    trials = Evaluator(bank, words.selection, study, seed=arguments.seed)
                    row = tried(name, tables, limit, trials, judge, arguments)
                    rows.append({"bits": bits, "method": name, "commit": machine.facts(0)["commit"], **row})
                    print(rows[-1], flush=True)
                    write()
            trials = Evaluator(bank, words.selection, study, seed=arguments.seed)
            if arguments.plans:
                predicted.clear()
            predicted += random_plans(bank, trials, arguments.plans, [float(b) for b in arguments.plan_bits.split(",")])
            write()
    show(rows)
    print(trusted(bank, predicted) if predicted else "")


def few(table: Any) -> tuple[tuple[Option, ...], ...]:
    """One option a width, in the groups nearest to the usual ones."""
    rows = []
    for options in table.groups:
        grids = [option for option in options if getattr(option.step.stages[0].format, "bits", 0) in WIDTHS]
        rows.append(
            tuple(
                min((o for o in grids if o.step.stages[0].format.bits == width),  # type: ignore[attr-defined]
                    key=lambda o: abs((o.step.stages[0].format.group_size or 1024) - GROUP))  # type: ignore[attr-defined]
                for width in WIDTHS
            )
        )  # fmt: skip
    return tuple(rows)


def weights_of(bank: Bank) -> int:
    return sum(bank.network.by_name[name].elements for row in bank.table for name in row[0].sites)


def tried(
    name: str, tables: dict[str, Any], limit: Limit, trials: Evaluator, judge: Evaluator, arguments: argparse.Namespace
) -> dict[str, Any]:
    """A choice of one method, judged on the test text; of a search also the way it went."""
    table, problem = tables["kronecker"], Problem.of(limit)
    start, way = time.process_time(), []
    if name == "uniform":
        choice = next(iter(EvoPress().search(table, problem, trials, solve=IntegerProgram().allocate, seed=0)))
    elif name in ("hawq", "integer_program"):
        priced = tables["hessian_trace"] if name == "hawq" else table
        choice = choice_of(priced, IntegerProgram().allocate(priced, problem))
    else:
        method = catalogue.find(SEARCHES[name].format(generations=arguments.generations), "search")
        asked = Counted(trials)
        for choice in method.search(table, problem, asked, solve=IntegerProgram().allocate, seed=arguments.seed):
            way.append((choice, asked.evaluations, asked.tokens))
        evaluations, tokens = asked.evaluations, asked.tokens
    seconds = time.process_time() - start
    (answer,) = judge.answers([choice], tokens=judge.most)
    row: dict[str, Any] = {
        "kl": answer.kl, "error": answer.error, "evaluations": 0, "tokens": 0, "cpu_seconds": seconds,
        "stored_bits": 8 * limit.total(options_of(table, choice)) / weights_of(trials.bank),
        "predicted": problem.total(options_of(table, choice)), "widths": widths(table, choice),
    }  # fmt: skip
    if way:
        points = [way[i] for i in sorted({0, *(len(way) * k // 4 for k in range(1, 4)), len(way) - 1})]
        row |= {"evaluations": evaluations, "tokens": tokens, "way": [
            {"kl": judge.measure([c], tokens=judge.most)[0], "evaluations": e, "tokens": t} for c, e, t in points
        ]}  # fmt: skip
    return row


class Counted:
    """Trials that count what was asked, whether the study knew it or not."""

    def __init__(self, trials: Evaluator) -> None:
        self.trials, self.most, self.evaluations, self.tokens = trials, trials.most, 0, 0

    def measure(self, choices: list[Choice], *, tokens: int, draw: int = 0) -> list[float]:
        self.evaluations, self.tokens = self.evaluations + len(choices), self.tokens + len(choices) * tokens
        return self.trials.measure(choices, tokens=tokens, draw=draw)


def widths(table: Any, choice: Choice) -> dict[str, int]:
    found = [option.step.stages[0].format.bits for option in options_of(table, choice)]
    return {str(width): found.count(width) for width in WIDTHS}


def random_plans(bank: Bank, trials: Evaluator, count: int, bits: list[float]) -> list[dict[str, Any]]:
    """Solutions under damages that are wrong by a random factor each, with what was predicted and measured."""
    rng, found = np.random.default_rng(trials.seed), []
    for number in range(count):
        wrong = float(rng.choice([0.3, 0.7, 1.5]))
        table = [
            [Option(sites=o.sites, step=o.step, bytes=o.bytes, damage=o.damage * float(np.exp(wrong * rng.normal())))
             for o in row]
            for row in bank.table
        ]  # fmt: skip
        limit = Limit("bytes", bits[number % len(bits)] / 8 * weights_of(bank))
        choice = choice_of(table, IntegerProgram(gap=1e-3).allocate(table, Problem.of(limit)))
        (answer,) = trials.answers([choice], tokens=2048)
        found.append({"bits": bits[number % len(bits)], "wrong": wrong, "choice": list(choice), "kl": answer.kl,
                      "predicted": sum(o.damage for o in options_of(bank.table, choice))})  # fmt: skip
        print(number, found[-1]["kl"], found[-1]["predicted"], flush=True)
    return found


def trusted(bank: Bank, plans: list[dict[str, Any]]) -> dict[str, Any]:
    """Rank correlation of prediction and measurement, and how often intervals learnt from some plans cover others."""
    from scipy.stats import spearmanr

    kl = np.array([plan["kl"] for plan in plans])
    value: dict[str, Any] = {"spearman": float(spearmanr(kl, [plan["predicted"] for plan in plans])[0])}
    for bits in sorted({plan["bits"] for plan in plans}):
        mine = [plan for plan in plans if plan["bits"] == bits]
        ratios = [plan["kl"] / plan["predicted"] for plan in mine]
        value[f"{bits:g} bits"] = {
            "spearman": float(spearmanr([p["kl"] for p in mine], [p["predicted"] for p in mine])[0]),
            "ratio": [min(ratios), max(ratios)],
        }  # fmt: skip
    rng = np.random.default_rng(0)
    for shown in (4, 8, 16):
        inside, errors = [], []
        for _ in range(20):
            order = rng.permutation(len(plans))
            known = Surrogate(bank.table)
            known.learn([tuple(plans[i]["choice"]) for i in order[:shown]], [kl[i] for i in order[:shown]])
            for i in order[shown:]:
                mean, deviation = known.predict(tuple(plans[i]["choice"]))
                inside.append(abs(kl[i] - mean) < 1.645 * deviation)
                errors.append(abs(kl[i] / mean - 1))
        value[f"after {shown}"] = {"inside 90 %": float(np.mean(inside)), "median error": float(np.median(errors))}
    return value


def show(rows: list[dict[str, Any]]) -> None:
    table = Shown(show_edge=False)
    for heading in ("bits", "method", "stored_bits", "kl", "error", "evaluations", "tokens", "cpu_seconds"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        table.add_row(
            f"{row['bits']:g}", row["method"], f"{row['stored_bits']:.4f}", f"{row['kl']:.4f}", f"{row['error']:.4f}",
            str(row["evaluations"]), str(row["tokens"]), f"{row['cpu_seconds']:.0f}",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
