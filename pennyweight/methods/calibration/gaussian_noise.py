"""Calibrate on images with noise: a share of them gets Gaussian noise of a random strength.

Source: Quantization Robustness to Input Degradations for Object Detection. 2025. arXiv:2508.19600 (noise of 10 to 55 of
255, clean and degraded images mixed).
Departs from it: nothing is cut off at the ends of the range, which the images here need not have.

When: to find out whether ranges depend on clean inputs. Cost: none. Known failures: the source finds no consistent gain
from it, large models under noise excepted; it widens the ranges of early layers and little else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.methods.calibration.pool import between, check_share, drawn, where
from pennyweight.promises import Deterministic, Promise


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Add noise to some images.

    Args:
        share: of the images that are degraded.
        weakest: standard deviation at least, in the units of the images; 10 of 255 where they run from 0 to 1.
        strongest: standard deviation at most.
    """

    name: ClassVar[str] = "gaussian_noise"
    paper: ClassVar[str] = "arXiv:2508.19600"
    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[str] = "images"
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    share: float = 0.5
    weakest: float = 10 / 255
    strongest: float = 55 / 255

    def __post_init__(self) -> None:
        check_share(self.share, self.name)
        if not 0 < self.weakest <= self.strongest:
            raise InvalidMethod(
                f"noise from {self.weakest!r} to {self.strongest!r}", expected="above zero, ascending",
                mend="gaussian_noise()", site=self.name,
            )  # fmt: skip

    def degrade(
        self, pool: Float[Tensor, "n channels height width"], *, generator: Generator, other: Tensor | None = None
    ) -> Float[Tensor, "n channels height width"]:
        """The pool with noise on some images, in the same order."""
        chosen = drawn(len(pool), self.share, generator)
        strength = between(self.weakest, self.strongest, len(pool), generator)
        noise = torch.randn(pool.shape, generator=generator) * strength
        return where(chosen, pool + noise.to(pool.dtype), pool)
