"""Calibrate on blurred images: every pixel of some images becomes the mean of a square around it.

Source: Quantization Robustness to Input Degradations for Object Detection. 2025. arXiv:2508.19600 (kernels of 3 to 11).
Departs from it: the square is weighed evenly, and mirrored at the edges; the paper's kernel is not known to us.

When: as `gaussian_noise`. Cost: one convolution. Known failures: blur narrows ranges, so that clean inputs saturate if
no clean image is left; keep the share below one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F  # noqa: N812

from pennyweight.errors import InvalidMethod
from pennyweight.methods.calibration.pool import check_share, drawn, where
from pennyweight.promises import Deterministic, Promise


@dataclass(frozen=True, kw_only=True)
class BoxBlur:
    """Blur some images.

    Args:
        share: of the images that are degraded.
        sizes: of the square in pixels, odd; one is drawn for each image.
    """

    name: ClassVar[str] = "box_blur"
    paper: ClassVar[str] = "arXiv:2508.19600"
    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[str] = "images"
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    share: float = 0.5
    sizes: tuple[int, ...] = (3, 5, 7)

    def __post_init__(self) -> None:
        check_share(self.share, self.name)
        if not self.sizes or any(size < 3 or size % 2 == 0 for size in self.sizes):
            raise InvalidMethod(
                f"sizes={self.sizes!r}", expected="odd, 3 or more", mend="box_blur(sizes=(3, 5))", site=self.name
            )

    def degrade(
        self, pool: Float[Tensor, "n channels height width"], *, generator: Generator, other: Tensor | None = None
    ) -> Float[Tensor, "n channels height width"]:
        """The pool with some images blurred, in the same order.

        Raises:
            InvalidMethod: images that are no larger than half a square, so that their edges cannot be mirrored.
        """
        if max(self.sizes) // 2 >= min(pool.shape[-2:]):
            raise InvalidMethod(
                f"squares of {max(self.sizes)} on images of {pool.shape[-2]} x {pool.shape[-1]}",
                expected="images larger than half a square", mend="choose smaller sizes", site=self.name,
            )  # fmt: skip
        chosen = drawn(len(pool), self.share, generator)
        size = torch.randint(len(self.sizes), (len(pool),), generator=generator)
        result = pool
        for number, width in enumerate(self.sizes):
            padded = F.pad(pool, [width // 2] * 4, mode="reflect")
            result = where(chosen & (size == number), F.avg_pool2d(padded, width, stride=1), result)
        return result
