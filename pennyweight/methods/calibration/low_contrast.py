"""Calibrate on images of low contrast: pixels of some images move towards the mean of their image.

Source: Quantization Robustness to Input Degradations for Object Detection. 2025. arXiv:2508.19600 (contrast changed by
−.6 to −.3).
Departs from it: the centre is the mean of the image over all channels.

When: as `gaussian_noise`. Cost: none. Known failures: as blur, it narrows ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.methods.calibration.pool import between, check_share, drawn, where
from pennyweight.promises import Deterministic, Promise


@dataclass(frozen=True, kw_only=True)
class LowContrast:
    """Take contrast from some images.

    Args:
        share: of the images that are degraded.
        least: share of the contrast that is left at least, above 0.
        most: share that is left at most, up to 1.
    """

    name: ClassVar[str] = "low_contrast"
    paper: ClassVar[str] = "arXiv:2508.19600"
    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[str] = "images"
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    share: float = 0.5
    least: float = 0.4
    most: float = 0.7

    def __post_init__(self) -> None:
        check_share(self.share, self.name)
        if not 0 < self.least <= self.most <= 1:
            raise InvalidMethod(
                f"contrast from {self.least!r} to {self.most!r}", expected="above 0, ascending, up to 1",
                mend="low_contrast()", site=self.name,
            )  # fmt: skip

    def degrade(
        self, pool: Float[Tensor, "n channels height width"], *, generator: Generator, other: Tensor | None = None
    ) -> Float[Tensor, "n channels height width"]:
        """The pool with less contrast in some images, in the same order."""
        chosen = drawn(len(pool), self.share, generator)
        left = between(self.least, self.most, len(pool), generator).to(pool.dtype)
        mean = pool.mean((1, 2, 3), keepdim=True)
        return where(chosen, mean + left * (pool - mean), pool)
