"""Calibrate on text with wrong tokens: some tokens of some windows are replaced by others.

Source: ours, after the noise on images of arXiv:2508.19600: what a typing error or a bad scan is to text.
Departs from it: a token is replaced by one drawn from the pool, so that how often tokens occur stays the same and
only their order suffers.

When: to see whether static ranges depend on well-formed text. Cost: none. Known failures: outliers of language models
sit on first tokens and punctuation, and replacing a fifth of all tokens hardly moves them: with one static scale,
SmolLM2 at W8A8 has a KL of .781 with it and of .777 without (`benchmarks/results/activations.json`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from pennyweight.methods.calibration.pool import check_share, drawn
from pennyweight.promises import Deterministic, Promise


@dataclass(frozen=True, kw_only=True)
class TokenNoise:
    """Replace tokens by others of the pool.

    Args:
        share: of the windows that are degraded.
        tokens: share of the tokens of such a window that are replaced.
    """

    name: ClassVar[str] = "token_noise"
    paper: ClassVar[str] = "ours"
    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[str] = "tokens"
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    share: float = 0.5
    tokens: float = 0.1

    def __post_init__(self) -> None:
        check_share(self.share, self.name)
        check_share(self.tokens, self.name)

    def degrade(
        self, pool: Int[Tensor, "n length"], *, generator: Generator, other: Tensor | None = None
    ) -> Int[Tensor, "n length"]:
        """The pool with some tokens replaced, in the same order."""
        chosen = drawn(len(pool), self.share, generator)
        replaced = torch.rand(pool.shape, generator=generator) < self.tokens
        drawn_tokens = pool.flatten()[torch.randint(pool.numel(), pool.shape, generator=generator)]
        return torch.where(chosen[:, None] & replaced, drawn_tokens, pool)
