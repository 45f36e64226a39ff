"""What we write for llama.cpp, run by llama.cpp: its logits beside those of our loader, from the same files and tokens.

    python benchmarks/llama_cpp.py --model DIR_OR_GGUF --python VENV/bin/python [--text TEXT] [--seed 0]

`--python` is an interpreter that has llama-cpp-python; this one needs not. Every linear weight is stored in the type of
the row where its inputs split into blocks, and in Q8_0 where they do not, by the rule without a search, which is quick;
the row `mixture` has a type by role, and the table in Q8_0. The rest of the file is float16. The engine rounds
activations to 8 bits before it multiplies them with codes, our loader computes in float32: `kl` is what that costs, in
nats a token, beside what storing the weights costs (`kl_of_weights`: our loader, against the model before). The row
`float32` has no codes and no rounding: what is left there is the arithmetic. Rows of an earlier run with the same
settings and other types are kept.

The second table holds every family the writer knows, random and tiny, in float32: largest difference of a logit.
"""

import argparse
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import pennyweight as pw
from pennyweight import formats
from pennyweight.export.engines import find
from pennyweight.export.probes import FOLDER
from pennyweight.formats import Compressed
from pennyweight.network.network import Network, Site
from pennyweight.network.running.run import materialised
from pennyweight.numerics.random import stream

ROWS = (
    "float32", "float16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "q3_k",
    "q2_k", "tq2_0", "tq1_0", "mixture",
)  # fmt: skip
MIXTURE = {"gate_proj": "q4_0", "up_proj": "iq4_nl", "down_proj": "q4_k", "v_proj": "q8_0", "o_proj": "q5_1",
           "embed_tokens": "q8_0", "lm_head": "q8_0"}  # fmt: skip
PLAIN = ("float32", "float16")
TINY = {
    "vocab_size": 272, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2, "initializer_range": 0.1,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 10000.0}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "llama, scaled as llama3": {"rope_parameters": LLAMA3}, "llama, tied": {"tie_word_embeddings": True},
    "qwen2": {}, "qwen3": {}, "gemma": {}, "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--types", default=",".join(ROWS), help="rows, with a comma between")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    network = pw.load(arguments.model)
    tokens = pw.sample(
        arguments.text, network, count=arguments.windows, length=arguments.length, seed=arguments.seed
    ).ids
    before = ours(network, tokens)
    settings = {
        "model": network.source.fingerprint, "windows": arguments.windows, "length": arguments.length,
        "seed": arguments.seed,
    }  # fmt: skip
    wanted = [name for name in arguments.types.split(",") if name]
    rows = machine.kept("llama_cpp", settings, lambda row: row["type"] in wanted)
    families = [family(name, arguments) for name in FAMILIES]
    version = families[0].pop("version")
    for row in families[1:]:
        row.pop("version")
    for name in wanted:
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary)
            size = store(network, name, out)
            mine = ours(pw.load(out), tokens)
            theirs, _ = engine(arguments.python, out, tokens)
        rows.append({
            "type": name, "bytes": size, "kl": kl(mine, theirs), "kl_of_weights": kl(before, mine),
            "agreement": float((mine.argmax(-1) == theirs.argmax(-1)).double().mean()),
            "largest_difference": float((mine - theirs).abs().max()),
            "perplexity": perplexity(mine, tokens), "perplexity_of_the_engine": perplexity(theirs, tokens),
        })  # fmt: skip
        rows.sort(key=lambda row: ROWS.index(row["type"]))
        value = {**machine.facts(arguments.seed), "llama_cpp_python": version, **settings}
        machine.write("llama_cpp", {**value, "rows": rows, "families": families})
        print(name, flush=True)
    show([{key: row[key] for key in rows[0] if key not in ("commit", "threads")} for row in rows], families)


def store(network: Network, name: str, out: Path) -> int:
    """Write the model in one type; its bytes."""
    llama = find("llama.cpp")
    dtype = name if name in PLAIN else "float16"
    roles = () if name in PLAIN else ("linear", "embedding", "head") if name == "mixture" else ("linear",)
    chosen = {site.name: format_of(site, name) for site in network.sites if site.role in roles}

    def compressed(site: Site) -> Compressed:
        weight = network.source.read(network.stored_name(site.parameter)).float()
        return Compressed((chosen[site.name].store(weight, search=False),), site.shape)

    llama.files.write(network, chosen, compressed, out, dtype=dtype).reconcile()
    return (out / "model.gguf").stat().st_size


def format_of(site: Site, name: str) -> Any:
    wanted = MIXTURE.get(site.name.rpartition(".")[2], "q5_0") if name == "mixture" else name
    format = formats.parse(wanted)
    return formats.parse("q8_0") if site.shape[1] % format.inputs_multiple else format


def ours(network: Network, tokens: Tensor) -> Tensor:
    """Logits `[windows, length, tokens]` of our loader, float32."""
    with materialised(network, exact=False, dtype=torch.float32) as model, torch.no_grad():
        call: Callable[..., Any] = model
        return torch.cat([call(input_ids=window[None], use_cache=False).logits.float() for window in tokens])


def engine(python: Path, directory: Path, tokens: Tensor) -> tuple[Tensor, str]:
    """The same of llama.cpp, and its version."""
    np.save(directory / "tokens.npy", tokens.numpy())
    script = FOLDER / "llama_cpp.py"
    command = [python, script, directory / "model.gguf", directory / "tokens.npy", directory / "logits.npz"]
    subprocess.run([str(word) for word in command], check=True)
    found = np.load(directory / "logits.npz")
    return torch.from_numpy(found["logits"]), str(found["version"]).removeprefix("llama-cpp-python ")


def kl(first: Tensor, second: Tensor) -> float:
    p, q = (logits.double().log_softmax(-1) for logits in (first, second))
    return float((p.exp() * (p - q)).sum(-1).mean())


def perplexity(logits: Tensor, tokens: Tensor) -> float:
    return float(nn.functional.cross_entropy(logits[:, :-1].double().flatten(0, 1), tokens[:, 1:].flatten()).exp())


def family(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A tiny random model of one family, by either."""
    kind = name.partition(",")[0]
    generator = stream(arguments.seed, "llama_cpp", name)
    tokens = torch.randint(0, TINY["vocab_size"], (2, 96), generator=generator)
    with tempfile.TemporaryDirectory() as temporary:
        source, out = Path(temporary) / "source", Path(temporary) / "out"
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**TINY, **FAMILIES[name]}))
        for parameter in model.parameters():
            around = 0.0 if parameter.dim() > 1 or kind.startswith("gemma") else 1.0
            parameter.data = around + 0.1 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(source)
        tokenizer().save(str(source / "tokenizer.json"))
        network = pw.load(source)
        store(network, "float32", out)
        mine = ours(network, tokens)
        read = ours(pw.load(out), tokens)
        theirs, version = engine(arguments.python, out, tokens)
    row = {
        "family": name, "of_our_reader": float((mine - read).abs().max()),
        "of_the_engine": float((mine - theirs).abs().max()), "largest_logit": float(mine.abs().max()),
        "version": version,
    }  # fmt: skip
    print(row, flush=True)
    return row


def tokenizer() -> Tokenizer:
    """One token a byte, and a merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "ka"])}, merges=[("k", "a")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    return made


def show(rows: list[dict[str, Any]], families: list[dict[str, Any]]) -> None:
    for records in (rows, families):
        table = Table(show_edge=False)
        for heading in records[0]:
            table.add_column(heading, justify="right")
        for record in records:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in record.values()))
        Console(width=150).print(table)


if __name__ == "__main__":
    main()
