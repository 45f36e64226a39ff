"""Our files in vLLM: whether they load, and how far its logits are from ours and from those of the model before.

    python benchmarks/vllm_files.py --model DIR --test TEST.txt --python VENV/bin/python

VENV has vLLM, such as its build for CPUs. Every linear layer is rounded to nearest; layers that round what they read do
so for every token. vLLM computes in bfloat16, so a row of the model as it is says what that alone does; and where
inputs are rounded, two computations that differ a little round many numbers to neighbours, so each is compared with the
model before as well: what counts is that they lose equally much.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import machine
import numpy as np
import scoring
import torch
from engines import theirs

import pennyweight as pw
from pennyweight import formats
from pennyweight.export.compressed_tensors.files import CompressedTensorsFiles
from pennyweight.export.engines import find
from pennyweight.formats import Compressed
from pennyweight.formats.passing import Activations, Dynamic, parse
from pennyweight.network.network import Network, Site

CASES = (
    ("", ""), ("int4 g64 sym", ""), ("int4 g64 asym", ""), ("int8 row sym", ""), ("int8 row sym", "int8 token"),
    ("int8 row sym", "int8 token asym"), ("fp8 e4m3 row", ""),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    network, rows = pw.load(arguments.model), list[dict[str, Any]]()
    tokens = pw.sample(arguments.test, network, count=arguments.windows, length=128, seed=arguments.seed).ids
    before = scoring.ours(network, tokens)
    for weights, reads in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            path = store(network, weights, reads, Path(temporary) / "small") if weights else arguments.model
            rows.append(
                {"weights": weights or "as they are", "inputs": reads, **compared(path, tokens, before, arguments)}
            )
            print(machine.write("vllm", {**machine.facts(arguments.seed), "rows": rows}), rows[-1], flush=True)
    scoring.show(rows)


def compared(path: Path, tokens: torch.Tensor, before: torch.Tensor, arguments: argparse.Namespace) -> dict[str, Any]:
    """Losses of what vLLM computes, of what our loader does, and between the two."""
    ours = scoring.ours(pw.load(path), tokens)
    engine = theirs(find("vllm"), path, tokens, [arguments.python])
    if isinstance(engine, str):
        return {"loads": False, "said": engine}
    return {
        "loads": True, "kl of vllm": scoring.kl(before, engine), "kl of ours": scoring.kl(before, ours),
        "kl between": scoring.kl(engine, ours), "perplexity of vllm": perplexity(engine, tokens),
        "perplexity of ours": perplexity(ours, tokens),
    }  # fmt: skip


def perplexity(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Of every token but the first of its window."""
    given = logits[:, :-1].double().log_softmax(-1).gather(-1, tokens[:, 1:, None])
    return float(np.exp(-float(given.mean())))


def store(network: Network, weights: str, reads: str, out: Path) -> Path:
    """Every linear layer rounded to nearest, and what it reads for every token."""
    format = formats.parse(f"{weights} bfloat16")
    chosen = {site.name: format for site in network.sites if site.role == "linear"}

    def compressed(site: Site) -> Compressed:
        weight = network.source.read(network.stored_name(site.parameter)).float()
        return Compressed((format.store(weight),), site.shape)

    activations = Activations({name: Dynamic(parse(reads)) for name in chosen} if reads else {})
    files = CompressedTensorsFiles().rounding(activations)
    files.write(network, chosen, compressed, out, dtype="bfloat16").reconcile()
    return out


if __name__ == "__main__":
    main()
