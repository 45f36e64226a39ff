"""One solution, many files: int8, int4 and a mixture by GPTQ, converted for every engine and run there.

    python benchmarks/same_codes.py --model DIR --calibration TRAIN.txt --python VENV/bin/python [...]

DIR holds the model of benchmarks/peer_scripts/make_model.py; the interpreters have engines that this one has not. Each
plan is carried out once, for transformers, in groups of 32 with float16 scales, which every engine can hold. Its files
are converted for the others; a row says how many tensors kept every number, whether the engine loads the files, how far
its logits are from ours (what it rounds besides), and what it takes in memory and time, one thread, in turn with our
own run-time.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
from rich.console import Console
from rich.table import Table

import pennyweight as pw
from pennyweight.errors import PennyweightError
from pennyweight.export.engines import ENGINES, find
from pennyweight.flow.bench.bench import bench
from pennyweight.flow.bench.contenders import having
from pennyweight.flow.check import check
from pennyweight.flow.converting.convert import convert
from pennyweight.plan import Plan, Step

PLANS = {
    "int8": ("gptq int8 g32 sym", "gptq int8 g32 sym"), "int4": ("gptq int4 g32 sym", "gptq int4 g32 sym"),
    "mixed": ("gptq int8 g32 sym", "gptq int4 g32 sym"),
}  # fmt: skip
HERE = "transformers"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--python", type=Path, nargs="+", required=True)
    parser.add_argument("--engines", default=",".join(row.name for row in ENGINES if row.probe))
    parser.add_argument("--plans", default=",".join(PLANS))
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    network = pw.load(arguments.model)
    calibration = pw.sample(arguments.calibration, network, count=64, length=256, seed=arguments.seed)
    asked, settings = arguments.engines.split(","), {"seed": arguments.seed, "windows": arguments.windows}
    plans = arguments.plans.split(",")
    rows = machine.kept("same_codes", settings, lambda row: row["plan"] in plans and row["engine"] in asked)
    with tempfile.TemporaryDirectory() as work:
        statistics = pw.collect(network, calibration, work=Path(work) / "statistics")
        for name in plans:
            small = Path(work) / name
            pw.apply(plan_of(network, PLANS[name], arguments.seed), network, statistics, out=small)
            for engine in asked:
                rows.append({"plan": name, "engine": engine, **tried(small, engine, Path(work), arguments)})
                print({key: value for key, value in rows[-1].items() if key != "times"}, flush=True)
                machine.write("same_codes", {**machine.facts(arguments.seed), **settings, "rows": rows})
    show(rows)


def plan_of(network: pw.Network, steps: tuple[str, str], seed: int) -> Plan:
    """Attention gets the first step, all other layers the second; embedding and head stay as they are."""
    linear = [site.name for site in network.sites if site.role == "linear"]
    chosen = {name: Step.parse(steps[0] if "attn" in name else steps[1]) for name in linear}
    return Plan(
        steps=chosen, kept={}, engine=HERE, dtype="float16", seed=seed, bytes=0, damage=0.0,
        model=network.source.fingerprint,
    )  # fmt: skip


def tried(small: Path, engine: str, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Convert, load, compare, time."""
    python = having(find(engine), arguments.python)
    try:
        out, exact, tensors, kl = small, None, None, 0.0
        if engine != HERE:
            made = convert(small, work / f"{small.name}-{engine}", to=engine)
            out, kl = made.out, made.kl
            exact, tensors = sum(row.exact for row in made.rows), len(made.rows)
        found = asdict(check(out, engine=engine, python=python, windows=arguments.windows, length=128))
        timed = bench(
            out, engines=("pennyweight", engine), pythons=arguments.python, reference=arguments.model,
            batches=[1], prompt=128, written=32, repeats=arguments.repeats, threads=1,
        )  # fmt: skip
    except PennyweightError as error:
        return {"loaded": False, "said": str(error)}
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {**found, "exact": exact, "tensors": tensors, "kl_of_conversion": kl, "bytes": size, "times": asdict(timed)}


def show(rows: list[dict[str, Any]]) -> None:
    headings = ("plan", "engine", "loads", "same numbers", "KL to ours", "logit", "perplexity", "ours", "MB")
    table = Table(*headings, show_edge=False)
    for row in rows:
        if not row["loaded"]:
            table.add_row(row["plan"], row["engine"], "no", row["said"].splitlines()[0][:60])
            continue
        same = "" if row["exact"] is None else f"{row['exact']} of {row['tensors']}"
        table.add_row(
            row["plan"], row["engine"], "yes", same, f"{row['kl']:.1e}", f"{row['largest']:.1e}",
            f"{row['perplexity']:.3f}", f"{row['ours']:.3f}", f"{row['bytes'] / 1e6:.1f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
