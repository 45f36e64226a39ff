"""From one command to a certificate: seconds and memory by stage, as the user waits for them.

    python benchmarks/one_command.py --model DIR [--lose 2%] [--seed 0]

DIR holds the model of benchmarks/peer_scripts/make_model.py. The command runs in a process of its own with nothing but
its defaults: the embedded text, two cores, no engine named.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import msgspec


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--lose", default="2%")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "small"
        command = ["compress", str(arguments.model), "--out", str(out), "--lose", arguments.lose]
        start = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "pennyweight", *command, "--seed", str(arguments.seed)], check=False
        )
        seconds = time.monotonic() - start
        timing = msgspec.json.decode((out / "pennyweight" / "timing.json").read_bytes())
        summary = msgspec.json.decode((out / "pennyweight" / "summary.json").read_bytes())
    stages = timing["stages"]
    value = {
        "model": "SmolLM2-135M-Instruct, channels permuted", "command": f"compress MODEL --lose {arguments.lose}",
        "exit": ended.returncode, "seconds": seconds, "stages": stages,
        "start_and_end": seconds - sum(stages.values()), "peak_memory": timing["peak_memory"],
        "machine_of_run": timing["machine"], "summary": summary,
    }  # fmt: skip
    machine.write("one_command", {**machine.facts(arguments.seed), **value})
    for name, spent in sorted(stages.items(), key=lambda item: -item[1]):
        print(f"{spent:7.1f} s  {name}")
    print(f"{seconds:7.1f} s  in all, {value['start_and_end']:.1f} of it starting, sealing and the report")


if __name__ == "__main__":
    main()
