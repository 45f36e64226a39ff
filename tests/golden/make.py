"""Write the golden numbers from the slow twins: `python tests/golden/make.py`. Only when a convention changes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from reference import cholesky, quantizers  # noqa: E402

CASES = [(bits, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]


def main() -> None:
    rng = np.random.default_rng(2210_17323)
    x = rng.standard_normal((64, 8)) @ rng.standard_normal((8, 8))
    # Short decimals, so that float32 in the package and float64 here start from the same numbers.
    weight = np.round(rng.standard_normal((3, 8)) * 64) / 64
    gram = np.round(x.T @ x / 64 * 64) / 64
    cases = []
    for bits, symmetric in CASES:
        fitted = quantizers.min_max(weight, bits, 4, symmetric)
        swept, loss = quantizers.gptq(weight, gram, fitted, 0.01)
        cases.append(
            {
                "bits": bits, "symmetric": symmetric,
                "scale": fitted.scale.tolist(), "zero_point": fitted.zero.tolist(),
                "round_to_nearest": quantizers.round_to_nearest(weight, fitted).tolist(), "gptq": swept.tolist(),
                "damped_error": loss,
            }
        )  # fmt: skip
    factor = cholesky.upper_factor_of_inverse(quantizers.damped(gram, 0.01))
    golden = {
        "weight": weight.tolist(),
        "gram": gram.tolist(),
        "group_size": 4,
        "upper": factor.tolist(),
        "cases": cases,
    }
    (HERE / "quantization.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
