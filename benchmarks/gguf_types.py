"""GGUF block types against llama.cpp's own quantizer: weighted squared error, seconds, and a model's perplexity.

    python benchmarks/gguf_types.py --library libggml-base.so
        [--model DIR --calibration TRAIN.txt --test TEST.txt] [--types q4_k,q6_k] [--seed 0]

The library is a part of llama.cpp; the wheel of llama-cpp-python has it in `llama_cpp/lib`. It quantizes float32 rows
with or without an importance matrix, which is what llama-quantize calls. Both get the same weights and the same
importance, one thread each; errors are sums of importance · change², read back by the package `gguf`. Its own search
counts weights by their size too where it can: so it is held to an error here that it does not quite search for.

With a model (SmolLM2-135M-Instruct with its channels permuted, see benchmarks/peer_scripts/make_model.py) its down
projections are among the weights, importance E[x²]. Then all linear weights with a multiple of 256 inputs are stored
in each of `--types` by either, the rest stays, and windows of 256 tokens of the test text are scored in float32. Rows
of an earlier run with the same settings and other types are kept. `--orders 6` does all this six times more, with the
inputs of every weight in a random order, the same for all: other numbers share a block then, errors keep their size,
and perplexities show how far they stray by chance.
"""

import argparse
import ctypes
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import torch
from gguf import GGMLQuantizationType, quants
from rich.console import Console
from rich.table import Table
from scoring import scores
from torch import Tensor, nn

import pennyweight as pw
from pennyweight import catalogue, formats
from pennyweight.formats.gguf import KQuant, Legacy, TernaryBlocks
from pennyweight.network.network import Network, Site
from pennyweight.network.running.run import materialised
from pennyweight.numerics.random import permutation, stream
from pennyweight.statistics import Statistics

TYPES = (*Legacy.types(), *KQuant.types(), *TernaryBlocks.types())
SHAPE = (512, 1536)
BY = ("round_to_nearest", "gptq", "llama.cpp")
Store = Callable[[str, Tensor, Tensor | None], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--types", default="q4_k,q6_k", help="of the second part, with a comma between")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--by", default=",".join(BY), help="who stores them in the second part")
    parser.add_argument("--orders", type=int, default=0, help="of the inputs, at random, besides their own")
    parser.add_argument("--calibration-windows", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the library has one
    llama, version = library(arguments.library)
    generator = stream(arguments.seed, "gguf_types")
    normal, chi = torch.randn(SHAPE, generator=generator), torch.randn(5, *SHAPE, generator=generator)
    student = torch.randn(SHAPE, generator=generator) / (chi.square().sum(0) / 5).sqrt()
    importance = torch.randn(SHAPE[1], generator=generator).exp()
    weights = {"normal": [(normal / 50, importance)], "student t5": [(student / 50, importance)]}
    facts = {**machine.facts(arguments.seed), "ggml": version, "threads": 1, "shape": list(SHAPE)}
    if arguments.model is None:
        result = facts | {"errors": errors(weights, llama)}
        machine.write("gguf_types", result)
        show(result)
        return
    network = pw.load(arguments.model)
    calibration = pw.sample(
        arguments.calibration, network, count=arguments.calibration_windows, length=256, seed=arguments.seed
    )
    text = pw.held_out(arguments.test, network, length=256)
    test = text.ids[torch.from_numpy(permutation(len(text), arguments.seed, "shelf")[: arguments.windows])]
    with tempfile.TemporaryDirectory() as work, materialised(network, exact=False, dtype=torch.float32) as model:
        seen = pw.collect(network, calibration, needs=frozenset({"gram"}), work=work)
        found = [(site, seen.block(site.block)[site.reads]) for site in sites(network)]
        parameters, last = dict(model.named_parameters()), len(found) - 1
        weights["down projections"] = [
            (parameters[site.parameter].data, statistics.require_gram().diagonal())
            for site, statistics in (found[i] for i in (0, last // 2, last))
        ]
        settings = {
            "model": "SmolLM2-135M-Instruct, channels permuted", "windows": arguments.windows, "tokens": 256,
            "calibration_windows": arguments.calibration_windows, "seed": arguments.seed, "ggml": version,
        }  # fmt: skip
        asked = [
            {"type": type, "by": name, "order": order}
            for type in arguments.types.split(",")
            for order in range(arguments.orders + 1)
            for name in arguments.by.split(",")
        ]
        rows = machine.kept("gguf_types", settings, lambda row: {key: row.get(key, 0) for key in asked[0]} in asked)
        before = [scores(model, window) for window in test]
        reference = {"reference": perplexity(before, test)}
        result = {**facts, **settings, **reference, "errors": errors(weights, llama), "rows": rows}
        for row in asked:
            rows.append({"commit": facts["commit"], **row, **scored(**row, model=model, found=found, test=test,
                                                                    before=before, llama=llama)})  # fmt: skip
            print(rows[-1], flush=True)
            machine.write("gguf_types", result)  # after each: a row takes a minute
    show(result)


def library(path: Path) -> tuple[Store, str]:
    """What llama.cpp reads back after its own quantizer, and its version."""
    ggml = ctypes.CDLL(str(path))
    quantize, size = ggml.ggml_quantize_chunk, ctypes.c_int64
    quantize.restype, ggml.ggml_version.restype = ctypes.c_size_t, ctypes.c_char_p
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, size, size, size, ctypes.c_void_p]

    def store(type: str, weight: Tensor, importance: Tensor | None) -> Tensor:
        kind, rows, columns = GGMLQuantizationType[type.upper()], *weight.shape
        weight = weight.float().contiguous()
        shared = None if importance is None else importance.float().contiguous()
        data = torch.empty(rows, formats.parse(type).stored_bits((rows, columns)) // 8 // rows, dtype=torch.uint8)
        written = quantize(
            int(kind), weight.data_ptr(), data.data_ptr(), 0, rows, columns,
            None if shared is None else shared.data_ptr(),
        )  # fmt: skip
        assert written == data.numel()
        return torch.from_numpy(quants.dequantize(data.numpy(), kind))

    return store, ggml.ggml_version().decode()


def ours(type: str, weight: Tensor, importance: Tensor | None) -> Tensor:
    """What the package reads of the bytes that rounding to nearest gives."""
    format, shape = formats.parse(type), tuple(weight.shape)
    data = format.pack(format.store(weight, importance=importance).tensors, shape)
    return torch.from_numpy(quants.dequantize(data.numpy().reshape(shape[0], -1), GGMLQuantizationType[type.upper()]))


def errors(weights: dict[str, list[tuple[Tensor, Tensor]]], llama: Store) -> list[dict[str, Any]]:
    """Of every type and kind of weight, with importance and without."""
    rows = []
    for type in TYPES:
        for kind, pairs in weights.items():
            for weighted in (False, True):
                row: dict[str, Any] = {"type": type, "weights": kind, "importance": weighted}
                for name, store in (("ours", ours), ("theirs", llama)):
                    start, lost, size = time.process_time(), 0.0, 0.0
                    backs = [store(type, weight, importance if weighted else None) for weight, importance in pairs]
                    row[f"{name}_seconds"] = time.process_time() - start
                    for (weight, importance), back in zip(pairs, backs, strict=True):
                        share = importance.double() if weighted else torch.ones(weight.shape[1], dtype=torch.float64)
                        lost += float(((back - weight).double().square() * share).sum())
                        size += float((weight.double().square() * share).sum())
                    row[name] = lost / size
                rows.append(row | {"ratio": row["ours"] / row["theirs"]})
                print(rows[-1], flush=True)
    return rows


def sites(network: Network) -> list[Site]:
    """The linear weights whose rows split into blocks of 256."""
    return [s for s in network.sites if s.role == "linear" and s.block is not None and s.shape[1] % 256 == 0]


def scored(
    type: str, by: str, order: int, model: nn.Module, found: list[tuple[Site, Statistics]], test: Tensor,
    before: list[Tensor], llama: Store,
) -> dict[str, float]:  # fmt: skip
    """Store the weights, score, and put them back."""
    parameters, originals, format = dict(model.named_parameters()), dict[str, Tensor](), formats.parse(type)
    start = time.process_time()
    for site, statistics in found:
        weight, gram = parameters[site.parameter].data, statistics.require_gram()
        turned = torch.arange(weight.shape[1])
        if order:
            turned = torch.randperm(weight.shape[1], generator=stream(0, site.name, str(order)))
        given, seen = weight[:, turned].contiguous(), replace(statistics, gram=gram[turned][:, turned].contiguous())
        if by == "llama.cpp":
            back = llama(type, given, seen.require_gram().diagonal())
        else:
            method = catalogue.find(by, "quantization")
            back = method.compress(given, seen, format, generator=stream(0, site.name, by)).dequantize()
        originals[site.parameter], parameters[site.parameter].data = weight, back[:, turned.argsort()].contiguous()
    seconds = time.process_time() - start
    loss = kl = 0.0
    for window, p in zip(test, before, strict=True):
        q = scores(model, window)
        loss -= float(q.gather(1, window[1:, None]).double().sum())
        kl += float((p.exp() * (p - q)).double().sum())
    for parameter, weight in originals.items():
        parameters[parameter].data = weight
    count = test[:, 1:].numel()
    return {"perplexity": math.exp(loss / count), "kl": kl / count, "cpu_seconds": seconds}


def perplexity(found: list[Tensor], test: Tensor) -> float:
    """Of the tokens after the first of each window."""
    loss = [float(q.gather(1, window[1:, None]).double().mean()) for q, window in zip(found, test, strict=True)]
    return float(torch.tensor(-sum(loss) / len(loss)).exp())


def show(result: dict[str, Any]) -> None:
    table = Table(show_edge=False, title="error ours / theirs, and seconds ours / theirs")
    for heading in ("type", "weights", "plain", "with importance", "seconds"):
        table.add_column(heading, justify="left" if heading in ("type", "weights") else "right")
    rows = result["errors"]
    for plain, weighed in zip(rows[::2], rows[1::2], strict=True):
        seconds = (plain["ours_seconds"] + weighed["ours_seconds"]) / (
            plain["theirs_seconds"] + weighed["theirs_seconds"]
        )
        table.add_row(
            plain["type"], plain["weights"], f"{plain['ratio']:.3f}", f"{weighed['ratio']:.3f}", f"{seconds:.1f}"
        )
    console = Console(width=120)
    console.print(table)
    for row in result.get("rows", []):
        name = f"{row['type']} {row['by']}, order {row.get('order', 0)}"
        console.print(f"{name:34} {row['perplexity']:.4f} kl {row['kl']:.6f} {row['cpu_seconds']:.0f} s")


if __name__ == "__main__":
    main()
