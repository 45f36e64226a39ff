"""Lossless containers of SmolLM2: size and speed beside `zstd -19` and the order-0 entropy; and coders on one stream.

    python benchmarks/container.py --model DIR [--work DIR] [--only "int4 g64;bf16"]

DIR holds the model of benchmarks/peer_scripts/make_model.py. From it are made: bfloat16, and exports of plain rounding
to int8 (a scale a row), int4 (groups of 64 and 192; 128 does not divide its inputs) and int3 (64) for transformers,
embedding and head in float16; beside them the GGUF file that the model came from. Everything by one thread. MB are
those of the files before, a second of the wall clock and of the processor: on shared cores only the latter says
something. Packing includes reading back. `zstd -19` is the package zstandard at level 19 over the bytes of all files,
one after the other. The coders at the end all code the exponents of the bfloat16 weights, a megabyte at a time.
"""

import argparse
import json
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
import zstandard
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import save_file

import pennyweight as pw
from pennyweight.container.coders import HUFFMAN, shrink
from pennyweight.export import write
from pennyweight.flow.packing.pack import listed
from pennyweight.methods.quantization.round_to_nearest import RoundToNearest
from pennyweight.network.network import Site
from pennyweight.network.sources.gguf import embedded_default
from pennyweight.plan import Step

FORMATS = ("bf16", "int8 row sym", "int4 g64 sym", "int4 g192 sym", "int3 g64 sym", "gguf")
LEVEL = 19
PART = 1 << 20
EXPONENTS = 24 * PART  # symbols that the coders are compared on


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="where the files are made, and kept; without it, removed at the end")
    parser.add_argument("--only", default=";".join(FORMATS), help="formats, with a semicolon between")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        chosen = arguments.only.split(";")
        rows = machine.kept("container", {"level": LEVEL}, lambda row: row["format"] in chosen)
        for name in chosen:
            rows.append(measured(name, made(name, arguments.model, work), work))
            result = {**machine.facts(0), "level": LEVEL, "threads": 1, "rows": rows}
            machine.write("container", result)
            show(rows)
        machine.write("container", {**result, "coders": coders(made("bf16", arguments.model, work))})


def made(name: str, model: Path, work: Path) -> Path:
    """The files of a format, made if they are not there."""
    out = work / name.replace(" ", "-")
    if name == "gguf":
        return Path(embedded_default())
    if out.exists():
        return out
    if name == "bf16":
        out.mkdir(parents=True)
        with safe_open(model / "model.safetensors", "pt") as file:
            save_file({key: file.get_tensor(key).bfloat16() for key in file.keys()}, out / "model.safetensors")  # noqa: SIM118
        for path in model.iterdir():
            if path.suffix != ".safetensors":
                (out / path.name).write_bytes(path.read_bytes())
        return out
    network, step = pw.load(model), Step.parse(f"round_to_nearest {name}")
    format = step.stages[0].format
    formats = {site.name: format for site in network.sites if site.role == "linear"}

    def rounded(site: Site) -> pw.Compressed:
        weight = network.source.read(site.parameter).float()
        return RoundToNearest().compress(weight, None, format, generator=torch.Generator())

    part = out.with_name(f"{out.name}.part")
    part.mkdir(parents=True)
    write(network, formats, rounded, part, dtype="float16")
    return part.rename(out)


def measured(name: str, source: Path, work: Path) -> dict[str, Any]:
    target, back = work / "packed", work / "back"
    packed, packing = timed(lambda: pw.pack(source, target, threads=1))
    _, unpacking = timed(lambda: pw.unpack(target, back, threads=1))
    for path, restored in zip(listed(source).values(), listed(back).values(), strict=True):
        assert path.read_bytes() == restored.read_bytes(), path
        restored.unlink()
    target.unlink()
    if back.exists():
        back.rmdir()
    stored, squeezing, expanding = squeezed(source)
    speed = {
        key: {clock: packed.before / 1e6 / seconds for clock, seconds in took.items()}
        for key, took in {
            "pack": packing, "unpack": unpacking, "zstd": squeezing, "zstd_back": expanding,
        }.items()
    }  # fmt: skip
    return {
        "format": name, "bytes": packed.before, "packed": packed.after, "entropy_bound": packed.bound, "zstd": stored,
        "ratio": packed.ratio, "bound_ratio": packed.bound / packed.before, "zstd_ratio": stored / packed.before,
        "kinds": packed.summary()["kinds"], "megabytes_a_second": speed,
    }  # fmt: skip


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def squeezed(source: Path) -> tuple[int, dict[str, float], dict[str, float]]:
    """Bytes of all files by zstd, and seconds there and back."""
    parts = [path.read_bytes() for path in listed(source).values()]
    coder, back = zstandard.ZstdCompressor(level=LEVEL), zstandard.ZstdDecompressor()
    stored, there = timed(lambda: [coder.compress(part) for part in parts])
    _, again = timed(lambda: [back.decompress(part) for part in stored])
    return sum(map(len, stored)), there, again


def coders(bf16: Path) -> dict[str, Any]:
    """Bits a symbol and speed of every coder, on exponents."""
    with safe_open(bf16 / "model.safetensors", "pt") as file:
        words = [file.get_tensor(key).view(torch.int16).flatten() for key in sorted(file.keys())]
    weights = torch.cat(words)[-EXPONENTS:].numpy().view(np.uint16)
    symbols = (weights >> 7 & 255).astype(np.uint8)
    share = np.bincount(symbols, minlength=256) / len(symbols)
    entropy = float(-(share[share > 0] * np.log2(share[share > 0])).sum())
    back = zstandard.ZstdDecompressor()

    def deflate(part: bytes) -> bytes:
        coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
        return coder.compress(part) + coder.flush()

    pairs: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], Any]]] = {
        "zstd, Huffman alone": (lambda part: shrink(part, HUFFMAN)[1], back.decompress),
        "zlib, Huffman alone": (deflate, lambda part: zlib.decompress(part, -15)),
    }
    for level in (1, 3, 19):
        coder = zstandard.ZstdCompressor(level=level)
        pairs[f"zstd -{level}"] = (coder.compress, back.decompress)
    pairs |= range_coder(share)
    rows, data = [], symbols.tobytes()
    for name, (there, again) in pairs.items():
        piece = data if "-19" not in name else data[: len(data) // 6]
        parts = [piece[i : i + PART] for i in range(0, len(piece), PART)]
        stored, encoding = timed(lambda parts=parts, there=there: [there(part) for part in parts])
        restored, decoding = timed(lambda stored=stored, again=again: [again(part) for part in stored])
        assert b"".join(bytes(part) for part in restored) == piece, name
        bits = 8 * sum(len(part) if isinstance(part, bytes) else part.nbytes for part in stored) / len(piece)
        million = len(piece) / 1e6
        rows.append({
            "coder": name, "bits": bits, "encode": million / encoding["processor"],
            "decode": million / decoding["processor"],
        })  # fmt: skip
        print(json.dumps(rows[-1]))
    return {"symbols": len(symbols), "entropy": entropy, "unit": "million symbols a processor second", "rows": rows}


def range_coder(share: Any) -> dict[str, tuple[Callable[[bytes], Any], Callable[[Any], Any]]]:
    """Range coding by the package constriction, where it is installed."""
    try:
        import constriction
    except ImportError:
        return {}
    model = constriction.stream.model.Categorical(share, perfect=False)

    def there(part: bytes) -> Any:
        coder = constriction.stream.queue.RangeEncoder()
        coder.encode(np.frombuffer(part, dtype=np.uint8).astype(np.int32), model)
        return coder.get_compressed()

    def again(stored: Any) -> bytes:
        decoded = constriction.stream.queue.RangeDecoder(stored).decode(model, PART)
        return np.asarray(decoded).astype(np.uint8).tobytes()

    return {"range coder (constriction)": (there, again)}


def show(rows: list[dict[str, Any]]) -> None:
    table = Table()
    for heading in ("format", "MB", "packed", "entropy", "zstd -19", "pack MB/s", "unpack", "zstd -19", "back"):
        table.add_column(heading, justify="left" if heading == "format" else "right")
    for row in rows:
        speed = [row["megabytes_a_second"][key]["processor"] for key in ("pack", "unpack", "zstd", "zstd_back")]
        shares = [f"{row[key]:.1%}" for key in ("ratio", "bound_ratio", "zstd_ratio")]
        table.add_row(row["format"], f"{row['bytes'] / 1e6:.1f}", *shares, *(f"{value:,.0f}" for value in speed))
    Console().print(table)


if __name__ == "__main__":
    main()
