"""Pennyweight, every linear layer in one format.

    run_pennyweight.py MODEL TEXT OUT BITS [corrected|trained|vectors]

GPTQ, symmetric, in groups of 64, on all 128 windows: for transformers. The others take the windows in a random order.
`corrected` and `trained`: with zero points, for vLLM at 4 bits and GPTQModel at others; the first codes rest on some
windows. Then `corrected` chooses codes again on half of the windows, for what layers really read; `trained` begins with
coordinate descent and trains scales end to end on all windows. `vectors`: GPTVQ on half of the windows;
no engine loads these, so that the values are written as floats, and `bits` counts what is stored by its format.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from common import windows
from transformers import AutoModelForCausalLM, AutoTokenizer

import pennyweight as pw
from pennyweight.flow.apply import apply
from pennyweight.flow.journal import open_run
from pennyweight.numerics.random import permutation
from pennyweight.plan import Plan, Step

ENGINES = {8: "gptqmodel", 4: "vllm", 3: "gptqmodel", 2: "gptqmodel"}  # that load zero points of this width
VECTORS = {3: "vector2 64 g64", 2: "vector4 256 g64"}
RECOVERY = {"corrected": "corrected_target", "trained": "end_to_end(steps=40)"}
FIRST = {"": 128, "corrected": 16, "trained": 32, "vectors": 64}  # windows that the first codes rest on
ALL = {"": 128, "corrected": 64, "trained": 128}  # and recovery, which holds out the last of them


def part(ids: torch.Tensor, text: str) -> pw.Windows:
    """Some windows as calibration text."""
    return pw.Windows(
        ids=ids, documents=torch.zeros(len(ids), dtype=torch.long), names=(text,), source=Path(text).name,
        split="calibration", fingerprint=f"{text} {ids.shape} {int(ids.sum())}", dropped_tokens=0, text_bytes=0,
    )  # fmt: skip


def label(bits: int, mode: str) -> str:
    """The step for every layer."""
    if mode == "vectors":
        return f"gptvq {VECTORS[bits]}"
    method = "coordinate_descent" if mode == "trained" else "gptq"
    return f"{method} int{bits} g64 {'asym' if mode else 'sym'}"


def dense(plan: Plan, network: pw.Network, statistics: pw.Collected, source: str, out: str, work: str) -> None:
    """Write the values as floats, for every tool to read, and say how many bits their format stores."""
    model, bits, elements = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), 0, 0
    with open_run(Path(work) / "run", {"steps": "vectors"}) as journal:
        applied = apply(plan, network, statistics, journal)
        for name in plan.steps:
            site, compressed = network.by_name[name], applied.compressed(network.by_name[name])
            model.get_parameter(site.parameter).data = compressed.dequantize()
            bits += compressed.parts[0].format.stored_bits(site.shape)
            elements += site.elements
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)
    print(json.dumps({"bits": bits / elements}))


def main() -> None:
    model, text, out, width, *modes = sys.argv[1:]
    mode, bits = "".join(modes), int(width)
    shutil.rmtree(out, ignore_errors=True)
    network, ids = pw.load(model), windows(model, text, 128)
    if mode:
        ids = ids[torch.from_numpy(permutation(len(ids), 0, "windows"))]
    step = Step.parse(label(bits, mode))
    plan = Plan(
        steps={site.name: step for site in network.sites if site.role == "linear"}, kept={},
        engine=ENGINES[bits] if mode else "transformers", dtype="float16", seed=0, bytes=0,
        damage=0.0, model=network.source.fingerprint, recovery=tuple(filter(None, [RECOVERY.get(mode)])),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        shown = part(ids[: FIRST[mode]], text)
        statistics = pw.collect(network, shown, needs=frozenset({"gram"}), work=f"{work}/statistics")
        if mode == "vectors":
            dense(plan, network, statistics, model, out, work)
        else:
            pw.apply(plan, network, statistics, out=out, calibration=part(ids[: ALL[mode]], text))


if __name__ == "__main__":
    main()
