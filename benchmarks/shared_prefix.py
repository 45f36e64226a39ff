"""Several continuations of one prompt: the prompt read once, against once a continuation. Seconds, memory, gradients.

Ways: `ours` lends the prompt's cache to a batch of continuations; `packed` is one row with a block mask, the other way
to read a prompt once; `repeated` is a batch of whole rows; `one_by_one` those rows in turn. Every way has a process of
its own and one thread; seconds are the processor's, which other processes change little.

    python benchmarks/shared_prefix.py
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import machine
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from pennyweight.network.running.shared_prefix import check_shared_prefix, shared_prefix
from pennyweight.numerics.random import stream

SEED, PROMPT, LENGTH, COUNTS, LEAST = 0, 768, 48, (1, 4, 16), 3.0
WAYS = ("ours", "packed", "repeated", "one_by_one")
MODEL = {
    "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 4,
}  # fmt: skip
SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def build(config: dict[str, int], dtype: torch.dtype) -> nn.Module:
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**config)).to(dtype).eval()
    generator = stream(SEED, "shared prefix benchmark")
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.05 * torch.randn(parameter.shape, generator=generator).to(dtype)
            parameter.copy_(noise if parameter.dim() > 1 else 1 + noise)
    return model


def text(lengths: list[int], prompt: int, vocabulary: int) -> tuple[Tensor, list[Tensor]]:
    generator = stream(SEED, "shared prefix text")
    prefix, *suffixes = (torch.randint(vocabulary, (n,), generator=generator) for n in (prompt, *lengths))
    return prefix, suffixes


def repeated(model: nn.Module, prefix: Tensor, suffixes: list[Tensor]) -> list[Tensor]:
    rows = nn.utils.rnn.pad_sequence([torch.cat([prefix, suffix[:-1]]) for suffix in suffixes], batch_first=True)
    logits = model(input_ids=rows, use_cache=False, logits_to_keep=rows.shape[1] - len(prefix) + 1).logits
    return [row[: len(suffix)] for row, suffix in zip(logits, suffixes, strict=True)]


def packed(model: nn.Module, prefix: Tensor, suffixes: list[Tensor]) -> list[Tensor]:
    counts = [len(prefix), *(len(suffix) - 1 for suffix in suffixes)]
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    at = torch.arange(len(owner))
    mask = (at <= at[:, None]) & ((owner == 0) | (owner == owner[:, None]))
    starts = [0, *([len(prefix)] * len(suffixes))]
    positions = torch.cat([start + torch.arange(count) for start, count in zip(starts, counts, strict=True)])
    row = torch.cat([prefix, *(suffix[:-1] for suffix in suffixes)])
    logits = model(
        input_ids=row[None], position_ids=positions[None], attention_mask=mask[None, None], use_cache=False,
        logits_to_keep=len(row) - len(prefix) + 1,
    ).logits[0]  # fmt: skip
    return [torch.cat([logits[:1], part]) for part in logits[1:].split(counts[1:])]


def loss(logits: list[Tensor], suffixes: list[Tensor]) -> Tensor:
    scores = zip(logits, suffixes, strict=True)
    return -torch.stack([x.log_softmax(-1).gather(1, suffix[:, None]).sum() for x, suffix in scores]).sum()


def child(way: str, count: int) -> None:
    torch.set_num_threads(1)
    model = build(MODEL, torch.float32)
    prefix, suffixes = text([LENGTH] * count, PROMPT, MODEL["vocab_size"])
    groups = [[suffix] for suffix in suffixes] if way == "one_by_one" else [suffixes]
    run: Callable[..., list[Tensor]] = {"ours": shared_prefix, "packed": packed}.get(way, repeated)
    check_shared_prefix(model)

    def forward() -> float:
        with torch.no_grad():
            return sum(float(loss(run(model, prefix, group), group)) for group in groups)

    def both() -> float:
        model.zero_grad()
        total = 0.0
        for group in groups:
            value = loss(run(model, prefix, group), group)
            value.backward()
            total += float(value.detach())
        return total

    found = {}
    for name, step in (("forward", forward), ("forward_backward", both)):
        if name == "forward":
            with torch.no_grad():
                check_shared_prefix(model)
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds: list[float] = []
        while sum(seconds) < LEAST:
            start = time.process_time()
            value = step()
            seconds.append(time.process_time() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found[name] = {"seconds": min(seconds), "peak_mb": (peak - base) / 1024, "loss": value}
    found["forward_backward"]["peak_mb"] += found["forward"]["peak_mb"]  # the peak never falls
    print(json.dumps(found))


def gradient_error() -> float:
    """Largest relative difference of a parameter's gradient, in float64, between ours and separate rows."""
    model = build(SMALL, torch.float64)
    prefix, suffixes = text([11, 3, 7, 1], 37, SMALL["vocab_size"])
    ways: tuple[Callable[..., list[Tensor]], ...] = (shared_prefix, repeated)
    ours, theirs = (
        torch.autograd.grad(loss(way(model, prefix, suffixes), suffixes), list(model.parameters())) for way in ways
    )
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", nargs=2)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.child[0], int(arguments.child[1]))
    rows = []
    for count in COUNTS:
        command = [sys.executable, __file__, "--child"]
        found = {
            way: json.loads(
                subprocess.run([*command, way, str(count)], check=True, capture_output=True, text=True).stdout
            )
            for way in WAYS
        }
        for name in ("forward", "forward_backward"):
            ways = {way: found[way][name] for way in WAYS}
            losses = [values.pop("loss") for values in ways.values()]
            assert max(losses) - min(losses) < 1e-5 * max(losses), losses
            ratios = {
                f"{way}_over_ours": {key: ways[way][key] / ways["ours"][key] for key in ("seconds", "peak_mb")}
                for way in WAYS[1:]
            }
            rows.append({"count": count, "what": name, **ways, **ratios})
            print(json.dumps(rows[-1]))
    as_it_is = gradient_error()
    # Llama normalises in float32 whatever its dtype; made as wide as the rest, both ways agree to float64.
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double  # type: ignore[misc, method-assign]
    wide = gradient_error()
    print(
        machine.write(
            "shared_prefix",
            {
                **machine.facts(SEED),
                "model": MODEL,
                "prompt": PROMPT,
                "length": LENGTH,
                "threads": 1,
                "rows": rows,
                "gradient_error": {"float64": as_it_is, "float64, norms too": wide},
            },
        )  # fmt: skip
    )
    return None


if __name__ == "__main__":
    main()
