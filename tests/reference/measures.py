"""Loss, divergence and agreement of two next-token distributions, from their definitions, one position at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence


def distribution(logits: Sequence[float]) -> list[float]:
    """exp(l) / Σ exp(l)."""
    top = max(logits)
    weights = [math.exp(l - top) for l in logits]  # noqa: E741
    total = math.fsum(weights)
    return [w / total for w in weights]


def loss(logits: Sequence[float], label: int) -> float:
    """−log p(label), nats; exp of its mean is the perplexity."""
    return -math.log(distribution(logits)[label])


def kl(reference: Sequence[float], compressed: Sequence[float]) -> float:
    """Σ p log(p / q), nats."""
    pairs = zip(distribution(reference), distribution(compressed), strict=True)
    return math.fsum(p * math.log(p / q) for p, q in pairs if p > 0)


def disagrees(reference: Sequence[float], compressed: Sequence[float]) -> float:
    """1 when the most likely tokens differ; the lowest token id wins a tie."""
    return float(
        max(range(len(reference)), key=lambda i: (reference[i], -i))
        != max(range(len(compressed)), key=lambda i: (compressed[i], -i))
    )
