"""What RMSNorm saves over LayerNorm: forward passes of a GPT-2 and a ViT before and after `layer_to_rms`.

Random weights, real sizes. Equality is checked first: in float64 on unrounded weights, and in float32 as the models
run. The models run one after the other in every round, first and last by turns; seconds are processor time of one
thread, and a ratio is the median over rounds. A second copy of the LayerNorm model is timed as well: what differs
between the two is where their weights lie in memory, and a smaller difference says nothing. The norm's own time is
given too.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import machine
import torch
from torch import Tensor, nn

from pennyweight.methods.rewrites.layer_to_rms import LayerToRMS
from pennyweight.methods.rewrites.untie import Untie
from pennyweight.network.finding.trace import network_of
from pennyweight.network.network import Network
from pennyweight.network.running.run import change, materialised, outputs
from pennyweight.numerics.random import stream

SEED = 0
ROUNDS = 15
CASES = (("gpt2", 1, 16), ("gpt2", 1, 128), ("gpt2", 4, 128), ("vit-s", 1, 224), ("vit-s", 8, 224))  # batch, length


def build(kind: str) -> nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    if kind == "gpt2":
        config = transformers.GPT2Config()
        model: Any = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
        model = transformers.ViTForImageClassification(config)
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            noise = torch.randn(parameter.shape, generator=stream(SEED, "noise", name))
            parameter.add_(0.1 * noise)
    return model


def given(kind: str, batch: int, length: int) -> dict[str, Tensor]:
    generator = stream(SEED, "inputs", kind, str(batch), str(length))
    if kind == "gpt2":
        return {"input_ids": torch.randint(0, 50257, (batch, length), generator=generator)}
    return {"pixel_values": torch.randn(batch, 3, length, length, generator=generator)}


def timed(ways: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each way in each round, the ways one after the other and the first of them by turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 2):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            start = time.thread_time()
            ways[name]()
            if number >= 2:
                seconds[name].append(time.thread_time() - start)
    return seconds


def ratio(seconds: dict[str, list[float]]) -> dict[str, Any]:
    over = {
        name: sorted(b / a for a, b in zip(seconds["layer"], values, strict=True)) for name, values in seconds.items()
    }
    ratios, again = over["rms"], over.get("again")
    return {
        "layer_s": statistics.median(seconds["layer"]), "rms_s": statistics.median(seconds["rms"]),
        "rms_over_layer": statistics.median(ratios), "quartiles": [ratios[ROUNDS // 4], ratios[-1 - ROUNDS // 4]],
        **({"copy_over_layer": statistics.median(again)} if again else {}),
    }  # fmt: skip


def equality(kind: str, before: Network, after: Network) -> dict[str, float]:
    small = given(kind, 1, 16 if kind == "gpt2" else 224)
    exact = change(outputs(before, small), outputs(after, small))
    with torch.no_grad(), materialised(before, exact=False, dtype=torch.float32) as layer:
        first = layer(**small).logits
    with torch.no_grad(), materialised(after, exact=False, dtype=torch.float32) as rms:
        second = rms(**small).logits
    return {"float64": exact, "float32": float((second - first).norm() / first.norm())}


def norm_alone(rows: int, size: int) -> dict[str, float]:
    x, layer, rms = torch.randn(rows, size, generator=stream(SEED, "rows")), nn.LayerNorm(size), nn.RMSNorm(size, 1e-5)
    with torch.no_grad():
        return ratio(
            timed({"layer": lambda: [layer(x) for _ in range(20)], "rms": lambda: [rms(x) for _ in range(20)]})
        )


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, Any] = {**machine.facts(SEED), "threads": 1, "rounds": ROUNDS, "equality": {}, "rows": []}
    for kind in ("gpt2", "vit-s"):
        before = Untie().rewrite(network_of(build(kind)))
        after = LayerToRMS().rewrite(before)
        result["equality"][kind] = equality(kind, before, after)
        print(kind, result["equality"][kind], after.source.description, flush=True)
        with (
            materialised(before, exact=False, dtype=torch.float32) as layer,
            materialised(after, exact=False, dtype=torch.float32) as rms,
            materialised(before, exact=False, dtype=torch.float32) as again, torch.no_grad(),
        ):  # fmt: skip
            models = {"layer": layer, "rms": rms, "again": again}
            for _, batch, length in (case for case in CASES if case[0] == kind):
                inputs = given(kind, batch, length)
                seconds = timed({name: lambda x=inputs, m=m: m(**x) for name, m in models.items()})
                tokens = batch * (length if kind == "gpt2" else 197)
                row = {
                    "model": kind, "batch": batch, "length": length, **ratio(seconds),
                    "norm_alone": {"rows": tokens, **norm_alone(tokens, 768 if kind == "gpt2" else 384)},
                }  # fmt: skip
                print(row, flush=True)
                result["rows"].append(row)
    print(machine.write("pre_rms_norm", result))


if __name__ == "__main__":
    main()
