"""Peak memory of `compress` on a model many times larger than what it may hold.

A random Llama is written to disk; `compress` runs on it in a process of its own. Claim: beyond interpreter, libraries
and the opened model, the peak is at most three times the largest block in float32 plus one block's statistics.

    python benchmarks/memory.py [--blocks 90]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import machine
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig

from pennyweight.numerics.random import stream

SIZE, HIDDEN, HEADS, VOCABULARY, SEED = 1024, 4096, 16, 256, 0

CHILD = """
import json, resource, sys
import numpy, scipy.optimize, scipy.stats, torch, transformers
import pennyweight as pw
from pennyweight.flow.compress import compress
from pennyweight.flow.progress import Progress
from pennyweight.flow.text import texts
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
network = pw.load(sys.argv[1])
texts(network, None, None, length=64, count=8, selection=8)
base, progress = peak(), Progress()
settings = pw.Settings(
    length=64, calibration_windows=16, selection_windows=8, certification_windows=16, fisher_windows=2
)
budget = pw.Budget(metric="bits", at_most=4.6, unit="bits per weight")
outcome = compress(sys.argv[1], sys.argv[2], budget=budget, settings=settings, progress=progress)
print(json.dumps({"base": base, "peak": peak(), "stages": progress.peaks, "seconds": progress.seconds}))
"""


def write_model(directory: Path, blocks: int) -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=SIZE, intermediate_size=HIDDEN, num_hidden_layers=blocks,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    directory.mkdir(parents=True)
    config.save_pretrained(directory)
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    weights: dict[str, str] = {}
    for shard in range(blocks + 1):
        generator = stream(SEED, str(shard))

        def random(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).bfloat16()

        if shard == blocks:
            tensors = {
                "model.embed_tokens.weight": random(VOCABULARY, SIZE),
                "model.norm.weight": torch.ones(SIZE).bfloat16(),
            }
        else:
            base = f"model.layers.{shard}."
            tensors = {f"{base}self_attn.{p}_proj.weight": random(SIZE, SIZE) for p in "qkvo"}
            tensors |= {f"{base}mlp.{p}_proj.weight": random(HIDDEN, SIZE) for p in ("gate", "up")}
            tensors |= {f"{base}mlp.down_proj.weight": random(SIZE, HIDDEN)}
            tensors |= {f"{base}{n}_layernorm.weight": torch.ones(SIZE).bfloat16() for n in ("input", "post_attention")}
        name = f"model-{shard:05d}.safetensors"
        save_file(tensors, directory / name)
        weights |= dict.fromkeys(tensors, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=90)
    parser.add_argument("--work", type=Path, default=None)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="pennyweight-memory-"))
    write_model(work / "model", arguments.blocks)
    command = [sys.executable, "-c", CHILD, str(work / "model"), str(work / "small")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads(output.strip().splitlines()[-1])
    block = 4 * (4 * SIZE * SIZE + 3 * SIZE * HIDDEN)
    statistics = 4 * (3 * SIZE * SIZE + HIDDEN * HIDDEN)
    allowed = 3 * block + statistics
    used = result["peak"] - result["base"]
    row = {
        "model_float32_mb": arguments.blocks * block / 1e6, "model_on_disk_mb": arguments.blocks * block / 2e6,
        "block_mb": block / 1e6, "statistics_mb": statistics / 1e6, "allowed_mb": allowed / 1e6, "used_mb": used / 1e6,
        "model_over_used": arguments.blocks * block / used, "within": used <= allowed,
        "stages_mb": {k: (v - result["base"]) / 1e6 for k, v in result["stages"].items()}, "seconds": result["seconds"],
    }  # fmt: skip
    print(json.dumps(row, indent=1))
    print(machine.write("memory", {**machine.facts(SEED), **row}))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
