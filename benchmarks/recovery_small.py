"""Every method of recovery on a small Llama: KL after it, from the same codes, at 4 bits down to signs.

    python benchmarks/recovery_small.py [--only "block_wise;block_wise, end_to_end"] [--seed 0]

The network is trained here on bytes of Python's help topics (benchmarks/any_module.py). Every linear weight of its
blocks is stored by GPTQ, then each method trains what is stored on the same 256 windows; scored on windows of topics
that neither saw. Seconds are of the process, for the recovery alone. Rows of an earlier run that are not asked for are
kept.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import any_module as networks
import machine
import scoring
import torch
from recovery import everywhere, scored

import pennyweight as pw
from pennyweight import catalogue
from pennyweight.corpus import Windows
from pennyweight.flow.apply import apply
from pennyweight.flow.journal import open_run
from pennyweight.flow.recover import recover
from pennyweight.network.running.run import materialised
from pennyweight.plan import Step

LABELS = ("int4 g32 asym", "int3 g32 asym", "int2 g32 asym", "ternary g32", "binary2 g32")
PAIRS = ("block_wise, end_to_end", "corrected_target, end_to_end")


def main() -> None:
    parser = argparse.ArgumentParser()
    ways = [kind.name for kind in catalogue.classes("recovery")]
    parser.add_argument("--only", default=";".join([*ways, *PAIRS]), help="methods, with a semicolon between rows")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    asked, settings = ["", *arguments.only.split(";")], {"seed": arguments.seed, "windows": 200, "length": 96}
    rows = machine.kept("recovery_small", settings, lambda row: ", ".join(row["recovery"]) in asked)
    given = networks.prepare_bytes(networks.llama, steps=400)
    with tempfile.TemporaryDirectory() as work:
        networks.save(given.module, Path(work) / "model")
        network = pw.load(Path(work) / "model")
        seen = torch.cat([batch["input_ids"] for batch in given.calibration])
        test = torch.cat([batch["input_ids"] for batch in given.held_out[: settings["windows"]]])
        calibration = Windows(
            ids=seen, documents=torch.zeros(len(seen), dtype=torch.long), names=("topics",), source="topics",
            split="calibration", fingerprint=f"topics {len(seen)}", dropped_tokens=0, text_bytes=0,
        )  # fmt: skip
        statistics = pw.collect(
            network, calibration, needs=frozenset({"gram"}), work=f"{work}/statistics", before_recovery=True
        )
        with materialised(network, exact=False, dtype=torch.float32) as model:
            before = [scoring.scores(model, window) for window in test]
            for label in LABELS:
                step = Step.parse(f"gptq {label}")
                plan = everywhere(step, network, arguments.seed)
                with open_run(Path(work) / label.replace(" ", "-"), {"step": label}) as journal:
                    applied = apply(plan, network, statistics, journal)
                    for way in asked:
                        methods, start, found = tuple(filter(None, way.split(", "))), time.process_time(), applied
                        if methods:
                            planned = replace(applied, plan=replace(plan, recovery=methods))
                            found = recover(planned, statistics, calibration)
                        spent = time.process_time() - start
                        row = {"step": step.label(), "recovery": list(methods), **scored(found, model, test, before)}
                        rows.append(row | {"cpu_seconds": spent, "commit": machine.facts(0)["commit"]})
                        print(rows[-1], flush=True)
    value = {**machine.facts(arguments.seed), "model": "Llama of 4 blocks, width 128, trained on bytes"}
    machine.write("recovery_small", {**value, **settings, "rows": rows})
    table = [
        {"way": ", ".join(row["recovery"]) or "GPTQ", "step": row["step"], "kl": row["kl"], "s": row["cpu_seconds"]}
        for row in rows
    ]
    scoring.show(table)


if __name__ == "__main__":
    main()
