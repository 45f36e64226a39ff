"""A model rounded to nearest, in the files of each engine, timed as `pennyweight bench` does: small, and how quick.

    python benchmarks/engines.py --model DIR --python VENV/bin/python [--threads 1]

`--python` has llama-cpp-python. Times do not depend on how codes were chosen, so plain rounding is enough.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import machine

import pennyweight as pw
from pennyweight import formats
from pennyweight.export.engines import find
from pennyweight.flow.bench.bench import bench
from pennyweight.flow.progress import Progress
from pennyweight.formats import Compressed, Format
from pennyweight.network.network import Network, Site

FILES = (("transformers", "int4 g64 sym bfloat16"), ("llama.cpp", "q4_0"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", default="1,8")
    arguments = parser.parse_args()
    rows = []
    for engine, label in FILES:
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary)
            store(pw.load(arguments.model), engine, formats.parse(label), out)
            found = bench(
                out, engines=("pennyweight", "dense", engine), pythons=[arguments.python], reference=arguments.model,
                batches=[int(count) for count in arguments.batches.split(",")], repeats=arguments.repeats,
                threads=arguments.threads, progress=Progress(),
            )  # fmt: skip
        rows.append({"files": label, "for": engine, **asdict(found)})
        print(machine.write("engines", {**machine.facts(0), "rows": rows}), label, flush=True)


def store(network: Network, engine: str, format: Format, out: Path) -> None:
    """Every linear layer in one format, by the rule without a search; for llama.cpp the table in eight bits."""
    chosen = dict(formats_of(network, engine, format))

    def compressed(site: Site) -> Compressed:
        weight = network.source.read(network.stored_name(site.parameter)).float()
        return Compressed((chosen[site.name].store(weight, search=False),), site.shape)

    dtype = "float16" if engine == "llama.cpp" else "bfloat16"
    find(engine).files.write(network, chosen, compressed, out, dtype=dtype).reconcile()


def formats_of(network: Network, engine: str, format: Format) -> Iterator[tuple[str, Format]]:
    for site in network.sites:
        if site.role == "linear":
            yield site.name, format
        elif engine == "llama.cpp":
            yield site.name, formats.parse("q8_0")


if __name__ == "__main__":
    main()
