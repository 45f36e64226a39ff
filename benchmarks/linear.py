"""float32 products by oneDNN and by PyTorch's default library: seconds, as a ratio, and the error of both."""

import statistics
import time

import machine
import torch

from pennyweight.numerics.linear import ONEDNN, linear

SHAPES = ((1024, 576, 1536), (1024, 1536, 576), (1024, 4096, 4096), (64, 576, 49152))
ROUNDS = 15


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for tokens, inputs, outputs in SHAPES:
        x, w = torch.randn(tokens, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator)
        exact = x.double() @ w.double().T
        ratios = []
        with torch.no_grad():
            for _ in range(ROUNDS):
                start = time.perf_counter()
                torch.nn.functional.linear(x, w)
                middle = time.perf_counter()
                linear(x, w)
                ratios.append((middle - start) / (time.perf_counter() - middle))
            errors = [
                float((f(x, w) - exact).abs().max() / exact.abs().max()) for f in (torch.nn.functional.linear, linear)
            ]
        rows.append(
            {"shape": [tokens, inputs, outputs], "default_over_ours": statistics.median(ratios), "errors": errors}
        )
    print(machine.write("linear", {**machine.facts(0), "onednn": ONEDNN, "rows": rows}))


if __name__ == "__main__":
    main()
