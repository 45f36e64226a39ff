"""The shelf as one page: quantizers and methods of recovery, with a row a pair: docs/concepts/shelf.md.

    python benchmarks/shelf_table.py

Nothing is measured here: rows are those of benchmarks/results/, made by the benchmarks that the page names, and
tests/unit/test_shelf_table.py holds it to them. Methods that have no row yet are named.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from orderings import number

from pennyweight import catalogue

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "concepts" / "shelf.md"
NETWORKS = {"minilm": "MiniLM", "resnet": "ResNet", "vit": "ViT", "mixtral": "Mixtral", "mamba": "Mamba"}
Row = dict[str, Any]


def results(name: str) -> list[Row]:
    """Rows of a file of results."""
    rows: list[Row] = json.loads((HERE / "results" / f"{name}.json").read_text())["rows"]
    return rows


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown, the first column to the left."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows)] + [""]


def page() -> str:
    """The whole page."""
    shelf = sorted(results("shelf"), key=lambda row: (-round(row["bits"], 2), row["kl"]))
    lines = [
        "# The shelf", "",
        "Made by `python benchmarks/shelf_table.py` out of `benchmarks/results/`; the tests hold it to them. What the "
        "methods do stands in their pages ([quantizers](../methods/quantization.md), [formats](../methods/formats.md), "
        "[recovery](../methods/recovery.md)); what papers say of two of them, and whether it holds here, in "
        "[orderings](orderings.md).", "",
        "## SmolLM2-135M-Instruct, every linear layer of the blocks", "",
        f"Each layer by itself on the gram matrices of the reference; perplexity before {shelf[0]['reference']:.2f}; "
        "KL to the network before, nats a token; seconds of one core for the rounding alone "
        "(`benchmarks/shelf.py`).", "",
        *table(
            ("step", "bits", "perplexity", "KL", "same token", "s"),
            ([f"`{row['step']}`", f"{row['bits']:.2f}", number(row["perplexity"]), number(row["kl"]),
              f"{row['agreement']:.3f}", f"{row['cpu_seconds']:.0f}"] for row in shelf),
        ),
    ]  # fmt: skip
    lines += without("quantization", {row["step"].partition("(")[0].split()[0] for row in shelf})
    found = dict[str, Row]()
    for row in results("shelf_modules"):
        found.setdefault(row["step"], {})[row["network"]] = row["change"]
    experts = dict[tuple[str, bool], tuple[float, dict[str, float]]]()
    for row in results("shelf_experts"):
        _, values = experts.setdefault((row["text"], row["gates"]), (row["uneven"], {}))
        values[row["step"].removeprefix("gptq ")] = row["change"]
    scans = dict[str, dict[int, float]]()
    for row in results("shelf_scans"):
        scans.setdefault(row["scale"], {})[row["bits"]] = row["change"]
    lines += [
        "## Five small networks", "",
        "Groups of 32, where they divide a layer's inputs. MiniLM: one minus the cosine of embeddings; the others: KL "
        "of predictions, nats; all but MiniLM trained in the benchmark (`benchmarks/shelf_modules.py`).", "",
        *table(
            ("step", *NETWORKS.values()),
            ([f"`{step}`", *(number(row[net]) if net in row else "" for net in NETWORKS)]
             for step, row in found.items()),
        ),
        "## Text for a mixture of experts", "",
        "The Mixtral above, by GPTQ; tokens of an expert count alike or by their gates (`affinity=1`), on text or on "
        "as much that the model wrote itself (`expert_balanced`). How unevenly a text uses the experts: 0 all alike, 1 "
        "one alone (`benchmarks/shelf_experts.py`).", "",
        *table(
            ("text", "tokens", "uneven", *(label for label in experts["text", False][1])),
            ([text, "by gates" if gates else "alike", f"{uneven:.3f}", *map(number, values.values())]
             for (text, gates), (uneven, values) in experts.items()),
        ),
        "## What a Mamba2 scans", "",
        "x, B and C rounded to so many bits with one scale for as much as is said, fitted to calibration text; KL "
        "(`benchmarks/shelf_scans.py`).", "",
        *table(
            ("one scale for", *(f"int{bits}" for bits in next(iter(scans.values())))),
            ([scale, *map(number, values.values())] for scale, values in scans.items()),
        ),
        "## Recovery, SmolLM2", "",
        "KL and the seconds of everything, statistics included (`benchmarks/recovery.py`).", "",
        *table(
            ("codes by", "and then", "bits", "perplexity", "KL", "s"),
            ([f"`{row['step']}`", ", ".join(row["recovery"]) or "nothing", f"{row['bits']:.2f}",
              number(row["perplexity"]), number(row["kl"]), f"{row['cpu_seconds']:.0f}"]
             for row in sorted(results("recovery"), key=lambda row: (-row["bits"], -row["kl"]))),
        ),
        "## Recovery, a small Llama", "",
        "Four blocks trained on bytes in the benchmark, codes by GPTQ; KL after each method, every one from the same "
        "codes (`benchmarks/recovery_small.py`).", "",
    ]  # fmt: skip
    small = dict[str, Row]()
    for row in results("recovery_small"):
        small.setdefault(", ".join(row["recovery"]) or "GPTQ alone", {})[row["step"].removeprefix("gptq ")] = row["kl"]
    labels = list(dict.fromkeys(label for row in small.values() for label in row))
    lines += table(("then", *labels), ([way, *(number(row[label]) for label in labels)] for way, row in small.items()))
    lines += without("recovery", {name for row in results("recovery_small") for name in row["recovery"]})
    return "\n".join(lines).rstrip() + "\n"


def without(room: str, known: set[str]) -> list[str]:
    """A line on the methods of a room that have no row yet."""
    missing = [f"`{kind.name}`" for kind in catalogue.classes(room) if kind.name not in known]
    return [f"Not measured yet: {', '.join(missing)}.", ""] if missing else []


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
