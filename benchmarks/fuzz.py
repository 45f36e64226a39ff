"""Damage small files of every kind we read, and see that each is read or refused with an error of ours.

    python benchmarks/fuzz.py [--inputs 2000000] [--seconds 900] [--seed 0] [--only "gguf;plan"]

Readers, honest files and the ways to damage them are those of tests/hostile.py. Every reader works in a process of its
own with a gigabyte more memory than it begins with; an input that takes two seconds, any exception that is not ours,
and the end of the process are findings. Readers share the seconds; what quick
ones leave goes to the others. An input follows from the seed, the reader's
name and its number: `--only NAME --first N --inputs 1` makes it again and shows where it went wrong.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import machine
import torch

from pennyweight.errors import PennyweightError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import hostile

LIMIT = 2.0  # seconds an input may take
MEMORY = 1 << 30  # bytes that a reader may take on top of what it begins with
KEPT = 20  # findings of a reader that are written down
SHARED = Path("/dev/shm")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=2_000_000, help="over all readers, the same for each, at most")
    parser.add_argument("--seconds", type=float, default=900, help="over all readers, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", default="", help="readers, with a semicolon between")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # processes are forked
    names = arguments.only.split(";") if arguments.only else list(hostile.READERS)
    rows = []
    for position, name in enumerate(names):
        inputs = -(-arguments.inputs // len(names))
        seconds = (arguments.seconds - sum(row["seconds"] for row in rows)) / (len(names) - position)
        rows.append(fuzzed(name, arguments.seed, arguments.first, inputs, seconds))
        print(json.dumps(rows[-1]), flush=True)
    if not arguments.only:
        total = {key: sum(row[key] for row in rows) for key in ("inputs", "refused", "seconds")}
        found = sum(len(row["findings"]) for row in rows)
        result = {**machine.facts(arguments.seed), "limit_seconds": LIMIT, "limit_bytes": MEMORY}
        machine.write("fuzz", {**result, **total, "inputs_a_second": total["inputs"] / total["seconds"],
                               "findings": found, "readers": rows})  # fmt: skip


def fuzzed(name: str, seed: int, first: int, inputs: int, seconds: float) -> dict[str, Any]:
    """One reader; a process that ends is started again behind the input that ended it."""
    with tempfile.TemporaryDirectory(dir=SHARED if SHARED.is_dir() else None) as temporary:
        work = Path(temporary)
        (work / "files").mkdir()
        honest = sown(name, work)
        row: dict[str, Any] = {"reader": name, "inputs": 0, "refused": 0, "seconds": 0.0, "errors": Counter()}
        findings: dict[str, dict[str, Any]] = {}
        context, number, end = multiprocessing.get_context("fork"), first, time.monotonic() + seconds
        while number < first + inputs and time.monotonic() < end:
            hostile.put(work / "files", honest)
            process = context.Process(
                target=work_on, args=(name, seed, number, first + inputs - number, end - time.monotonic(), work, honest)
            )
            process.start()
            process.join()
            report = json.loads((work / "report").read_text()) if (work / "report").exists() else None
            reached = int((work / "number").read_text()) if (work / "number").exists() else number
            if report is None or process.exitcode:
                told = {"input": reached, "error": f"the process ended with {process.exitcode}", "where": ""}
                findings.setdefault(told["error"], told)
                row["inputs"] += reached + 1 - number
                number = reached + 1
                continue
            for key in ("inputs", "refused", "seconds"):
                row[key] += report[key]
            row["errors"].update(report["errors"])
            for told in report["findings"]:
                findings.setdefault(told["error"] + told["where"], told)
            number += report["inputs"]
            (work / "report").unlink()
    return {**row, "findings": list(findings.values())[:KEPT]}


def sown(name: str, work: Path) -> dict[str, bytes]:
    """Honest files of a reader, which must be read; this imports what reading needs, too."""
    reader, directory = hostile.READERS[name], work / "files"
    os.environ["PENNYWEIGHT_STATE"] = str(work / "state")
    reader.seed(directory)
    honest = hostile.files_of(directory)
    reader.read(directory)
    return honest


def work_on(
    name: str, seed: int, first: int, inputs: int, seconds: float, work: Path, honest: dict[str, bytes]
) -> None:
    """Damage and read until the inputs or the seconds are over; the report is a file."""
    reader, directory = hostile.READERS[name], work / "files"
    os.fsync = bool  # nothing here need outlive the machine
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGALRM, too_long)
    counts, errors, findings = Counter(), Counter(), dict[str, dict[str, Any]]()
    changed = list(honest)
    begun = time.monotonic()
    with (work / "number").open("w") as progress:
        for number in range(first, first + inputs):
            if time.monotonic() - begun > seconds:
                break
            progress.seek(0)
            progress.write(f"{number:12d}")
            progress.flush()
            chance = random.Random(f"{seed} {name} {number}")
            for other in changed:
                (directory / other).write_bytes(honest[other])
            changed = chance.sample(sorted(honest), k=min(len(honest), chance.choice((1, 1, 1, 2))))
            for one in changed:
                (directory / one).write_bytes(hostile.damaged(honest[one], chance))
            counts["inputs"] += 1
            signal.setitimer(signal.ITIMER_REAL, LIMIT)
            try:
                reader.read(directory)
            except PennyweightError as error:
                counts["refused"] += 1
                errors[type(error).__name__] += 1
            except BaseException as error:  # panics of Rust are no Exception
                where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
                told = {"input": number, "error": f"{type(error).__name__}: {str(error)[:200]}",
                        "where": " ".join([w for w in where if "fuzz.py" not in w][-4:])}  # fmt: skip
                findings.setdefault(type(error).__name__ + told["where"], told)
                if inputs == 1:
                    traceback.print_exc(file=sys.__stderr__)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if name.startswith("certificate") or name == "study":  # these write beside what they read
                hostile.put(directory, honest)
    report = {**counts, "refused": counts["refused"], "seconds": time.monotonic() - begun, "errors": errors}
    (work / "report").write_text(json.dumps({**report, "findings": list(findings.values())}))


def too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {LIMIT} seconds")


if __name__ == "__main__":
    main()
