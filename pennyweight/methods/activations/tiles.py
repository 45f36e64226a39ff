"""What the static calibrators share: numbers that share a scale, one row a tile, and ranges of them.

Source: the quantities that calibrators have in common (arXiv:2004.09602). Only channels and the whole tensor are tiles
here; tokens find their own ranges.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidMethod, MissingStatistics
from pennyweight.formats.passing import Passing
from pennyweight.statistics import Statistics


def check_static(method: Any, format: Passing) -> None:
    """See that a method writes a format.

    Raises:
        InvalidMethod: it is of another kind, or shares scales over something else.
    """
    if format.over.kind not in method.over or not isinstance(format, method.takes):
        kinds = ", ".join(sorted(kind.__name__ for kind in method.takes))
        raise InvalidMethod(
            f"{method.name} does not choose scales of {format.label()}",
            expected=f"{kinds} over {' or '.join(sorted(method.over))}",
            mend="dynamic for token and g128, static_range and its kin for tensor and channel", site=method.name,
        )  # fmt: skip


def whole_range(
    statistics: Statistics | None, format: Passing
) -> tuple[Float[Tensor, " tiles"], Float[Tensor, " tiles"]]:
    """Smallest and largest number of every tile, zero among them.

    Raises:
        MissingStatistics: no ranges were collected.
    """
    if statistics is None or statistics.low is None or statistics.high is None:
        raise _missing(statistics, "range")
    low, high = statistics.low.float(), statistics.high.float()
    if format.over.kind == "tensor":
        low, high = low.min()[None], high.max()[None]
    return low.clamp(max=0), high.clamp(min=0)


def tiles_of(statistics: Statistics | None, format: Passing) -> Float[Tensor, "tiles elements"]:
    """Some rows of what passed, sorted into tiles.

    Raises:
        MissingStatistics: no rows were kept.
    """
    if statistics is None or statistics.sample is None or not statistics.sample.numel():
        raise _missing(statistics, "sample")
    sample = statistics.sample.float()
    return sample.reshape(1, -1) if format.over.kind == "tensor" else sample.T.contiguous()


def rounded(
    tiles: Float[Tensor, "tiles elements"], low: Float[Tensor, " tiles"], high: Float[Tensor, " tiles"], format: Passing
) -> Float[Tensor, "tiles elements"]:
    """What the numbers of every tile become when its codes cover a range."""
    scale, zero = format.ends(low, high)
    column = None if zero is None else zero[:, None]
    return format.decode(format.encode(tiles, scale[:, None], column), scale[:, None], column)


def squared_error(
    tiles: Float[Tensor, "tiles elements"], low: Float[Tensor, " tiles"], high: Float[Tensor, " tiles"], format: Passing
) -> Float[Tensor, " tiles"]:
    """Sum over every tile of the squared change."""
    return (rounded(tiles, low, high, format) - tiles).square().sum(1, dtype=torch.float64)


def _missing(statistics: Statistics | None, what: str) -> MissingStatistics:
    return MissingStatistics(
        f"no {what} was collected here", expected=f"statistics with {what}",
        mend="collect them with pennyweight.flow.observe.observe, or choose dynamic",
        site="activation" if statistics is None else statistics.edge,
    )  # fmt: skip
