"""Calibrate on a mixture of texts: some windows come from another domain.

Source: ours, after the mixed sets of arXiv:2508.19600; arXiv:2411.02355 finds that the text matters for 4-bit weights
and hardly for 8-bit activations.
Departs from it: windows are exchanged one for one, so that the count stays.

When: a model that will meet other text than there is at hand for calibration. Cost: none. Known failures: half of the
text is then not the one the model is judged on; statistics of weights' inputs suffer more than ranges gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.methods.calibration.pool import check_share, drawn
from pennyweight.promises import Deterministic, Promise


@dataclass(frozen=True, kw_only=True)
class OtherText:
    """Exchange windows for those of another text.

    Args:
        share: of the windows that are exchanged.
    """

    name: ClassVar[str] = "other_text"
    paper: ClassVar[str] = "ours"
    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[str] = "tokens"
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    share: float = 0.5

    def __post_init__(self) -> None:
        check_share(self.share, self.name)

    def degrade(
        self, pool: Int[Tensor, "n length"], *, generator: Generator, other: Int[Tensor, "m length"] | None = None
    ) -> Int[Tensor, "n length"]:
        """The pool with some windows of the other text in place of its own, each at most once.

        Raises:
            InvalidMethod: no other text, or too few windows of it, or of another length.
        """
        chosen = drawn(len(pool), self.share, generator)
        asked = int(chosen.sum())
        if other is None or len(other) < asked or other.shape[1:] != pool.shape[1:]:
            raise InvalidMethod(
                "no other text" if other is None else f"windows {tuple(other.shape)} of another text",
                expected=f"{asked} windows of {pool.shape[1]} tokens at least", mend="pass other=...", site=self.name,
            )  # fmt: skip
        result = pool.clone()
        result[chosen] = other[torch.randperm(len(other), generator=generator)[:asked]].to(pool.dtype)
        return result
