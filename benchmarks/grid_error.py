"""Relative squared error of formats on normal weights, the whole range kept and searched: 1024 x 2048, seeded."""

import machine
import torch

from pennyweight import formats
from pennyweight.numerics.random import stream

LABELS = (
    *(f"int{bits} g128 {kind}" for bits in (8, 6, 5, 4, 3, 2) for kind in ("sym", "asym")),
    *(f"int{bits} g64 affine" for bits in (4, 3, 2, 1)),
    "fp8 e4m3 row", "mxfp8 e4m3", "mxint8", "mxfp6 e2m3", "fp4 e2m1 g64", "fp4 e2m1 g128", "mxfp4", "nvfp4",
    "int4 g128 progressive", "nf4 g64", "nf4 row", "log2 5bit row", "log-sqrt2 5bit row", "rf8 row",
    "ternary row", "binary row", "binary2 row", "binary3 row",
    *(f"kmeans{bits} {shared}" for bits in (1, 2, 3, 4) for shared in ("row", "tensor")),
    "vector2 16 row", "vector2 64 row", "vector4 16 row", "vector4 256 row", "vector4 256 g64",
    "vector1 16 g64", "vector2 256 g64", "vector8 256 row",
    "fairy1 row", "fairy2 row", "fairy2 tensor", "fairy3 row",
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl",
    "q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "tq1_0", "tq2_0",
)  # fmt: skip


def main() -> None:
    weight = torch.randn(1024, 2048, generator=stream(0, "grid_error"))
    rows = []
    for label in LABELS:
        format = formats.parse(label)
        row: dict[str, object] = {"format": label, "bits": format.stored_bits(tuple(weight.shape)) / weight.numel()}
        for name, search in (("whole", False), ("searched", True)):
            part = format.store(weight, search=search)
            error = format.decode(part.tensors, tuple(weight.shape)) - weight
            row[name] = float(error.square().sum() / weight.square().sum())
        rows.append(row)
        print(row)
    print(machine.write("grid_error", {**machine.facts(0), "rows": rows}))


if __name__ == "__main__":
    main()
