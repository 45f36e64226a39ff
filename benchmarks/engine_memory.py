"""What transformers holds in memory of a model, packed and dense, beside what a limit on it counts with.

    python benchmarks/engine_memory.py

A random model of 150M parameters is stored in four bits and in float16. Each is loaded in a process of its own, which
calls it once (that unpacks weights) and then reads a context. Counted is what the process takes beyond libraries. Pages
of mapped files are told apart: the system can drop them, unless weights are used from there.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

import pennyweight as pw
from pennyweight.export.engines import find
from pennyweight.export.memory import size_of
from pennyweight.flow.collect import Collected
from pennyweight.flow.journal import open_run
from pennyweight.flow.options import outline
from pennyweight.network.finding.cached import cached
from pennyweight.plan import Option, Step, plan_of

CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 8000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12,
    "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
CONTEXTS = (1024, 4096)
DTYPE = "float16"

CHILD = """
import json, sys, torch, transformers, accelerate, compressed_tensors
import transformers.models.llama.modeling_llama
from transformers.utils import logging
logging.disable_progress_bar()
logging.set_verbosity_error()
torch.set_num_threads(1)
def now(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
def forget_peak():
    open("/proc/self/clear_refs", "w").write("5")
x = torch.ones(64, 64)
x @ x
rss, mapped = now("VmRSS"), now("RssFile")
forget_peak()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").eval()
with torch.no_grad():
    model(input_ids=torch.zeros(1, 2, dtype=torch.long))
    called, files = now("VmHWM") - rss, now("RssFile") - mapped
    start = now("VmRSS")
    forget_peak()
    model(input_ids=torch.zeros(1, int(sys.argv[2]), dtype=torch.long), use_cache=True, logits_to_keep=1)
print(json.dumps({"called": called, "mapped": files, "reading": now("VmHWM") - start}))
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        dense, packed = Path(work) / "dense", Path(work) / "packed"
        save_dense(dense)
        network = pw.load(dense)
        save_packed(network, packed, Path(work) / "run")
        memory, rows = find("transformers").memory, []
        weights = sum(size_of(DTYPE) * site.elements for site in network.sites)
        for context in CONTEXTS:
            for name, path in (("float16", dense), ("int4 g64 sym", packed)):
                found = child(path, context)
                kept = cached(network, context)
                unpacking = memory.working(network, DTYPE, 1, 0)
                reading = replace(memory, unpacking=0.0).working(network, DTYPE, context, kept)
                rows.append({"stored": name, "context": context, **found, "counted_reading": reading})
                print(
                    f"{name:<13} {context:>5} tokens: {found}, counted {reading / 1e6:.1f} MB for reading", flush=True
                )
        size = sum(file.stat().st_size for file in packed.glob("*.safetensors"))
    print(machine.write("engine_memory", {
        **machine.facts(0), "model": CONFIG, "engine": find("transformers").version, "dense_bytes": weights,
        "packed_bytes": size, "counted_unpacking": unpacking, "rows": rows,
    }))  # fmt: skip


def save_dense(directory: Path) -> None:
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG), dtype=torch.float16)
    model.save_pretrained(directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))


def save_packed(network: pw.Network, out: Path, work: Path) -> None:
    """Round every linear layer; that takes no statistics."""
    table = outline(network, find("transformers"), dtype=DTYPE)
    step = Step.parse(f"round_to_nearest int4 g64 sym {DTYPE}")
    label = step.stages[0].format.label()
    chosen = [
        Option(sites=o.sites, step=step, bytes=o.bytes, damage=0.0)
        for row in table.groups for o in row if o.step.stages[0].format.label() == label
    ]  # fmt: skip
    plan = plan_of(
        chosen, kept=dict(table.kept), engine="transformers", dtype=DTYPE, seed=0,
        bytes=table.fixed_bytes + sum(option.bytes for option in chosen), model=network.source.fingerprint,
    )  # fmt: skip
    with open_run(work, {}) as journal:
        pw.apply(plan, network, Collected(journal, network, ""), out=out)


def child(path: Path, context: int) -> dict[str, int]:
    command = [sys.executable, "-c", CHILD, str(path), str(context)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
