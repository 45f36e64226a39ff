"""Calibrating a mixture of experts: tokens counted by their gates, and text that the model writes itself (MoEQuant).

    python benchmarks/shelf_experts.py [--windows 64] [--items 300] [--seed 0]

The Mixtral of benchmarks/shelf_modules.py, trained on bytes, every weight but embeddings rounded by GPTQ. Statistics
rest on windows of text, or on as many that the model wrote itself by `expert_balanced` from the first bytes of that
text; all tokens of an expert count alike, or by their gates. KL of the predictions for held-out text, nats a token;
and how unevenly a calibration text uses the experts (0 all alike, 1 one alone).
"""

import argparse
from typing import Any

import any_module as networks
import machine
import torch
from shelf_modules import change, outputs, rounded

import pennyweight as pw
from pennyweight.flow.modules.look import look
from pennyweight.flow.progress import QUIET
from pennyweight.methods.calibration import ExpertBalanced
from pennyweight.methods.calibration.expert_balanced import imbalance
from pennyweight.network.running.routing import experts_of, routed
from pennyweight.numerics.random import stream

STEPS = ("gptq int4 g32 asym", "gptq int3 g32 asym", "gptq int2 g32 asym")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    given = networks.prepare_bytes(networks.mixtral, steps=200)
    module = given.module.eval().requires_grad_(False)
    network = pw.network_of(module, given.calibration[0])
    text = torch.cat([batch["input_ids"] for batch in given.calibration[: arguments.windows]])
    model = routed(lambda ids: module(input_ids=ids, use_cache=False).logits, experts_of(network))
    written = ExpertBalanced().degrade(text, generator=stream(arguments.seed, "shelf_experts"), model=model)
    held_out = given.held_out[: arguments.items]
    before = outputs(given, module, held_out)
    rows: list[dict[str, Any]] = []
    for name, ids in (("text", text), ("written by the model", written)):
        uneven = float(imbalance(model(ids)[1]).mean())
        for gates in (False, True):
            batches = [{"input_ids": window[None]} for window in ids]
            seen = look(
                module, network, batches, given.outputs, seed=arguments.seed, progress=QUIET, affinity=float(gates)
            )
            for label in STEPS:
                compressed, bits = rounded(label, module, network, seen, arguments.seed)
                kl = change("mixtral", before, outputs(given, compressed, held_out))
                rows.append({"step": label, "text": name, "gates": gates, "bits": bits, "change": kl,
                             "uneven": uneven})  # fmt: skip
                print(rows[-1], flush=True)
    settings = {"windows": arguments.windows, "items": len(held_out), "network": "mixtral"}
    machine.write("shelf_experts", {**machine.facts(arguments.seed), **settings, "rows": rows})


if __name__ == "__main__":
    main()
