"""Which weights share a scale: a row, a group of inputs, a block of rows and inputs, or the whole tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from pennyweight.errors import InvalidFormat

USUAL = (16, 32, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class Sharing:
    """Tiles of `rows` outputs by `columns` inputs, each with parameters of its own.

    Args:
        rows: outputs in a tile; None for all of them.
        columns: inputs in a tile; None for all of them.

    Raises:
        InvalidFormat: a tile without rows or columns, or one that has no name: see `label`.
    """

    rows: int | None = 1
    columns: int | None = None

    def __post_init__(self) -> None:
        if (self.rows is not None and self.rows < 1) or (self.columns is not None and self.columns < 1):
            raise InvalidFormat(
                f"tiles of {self.rows} x {self.columns}", expected="at least one row and one input that share a scale"
            )
        if self.rows != 1 and self.rows != self.columns:
            raise InvalidFormat(
                f"tiles of {self.rows} x {self.columns}",
                expected="a row, a group of its inputs, a square block, or the whole tensor",
            )

    def label(self) -> str:
        """`row`, `g64` (inputs of a row), `b128` (a square block) or `tensor`."""
        if self.rows is None:
            return "tensor"
        if self.columns is None:
            return "row"
        return f"g{self.columns}" if self.rows == 1 else f"b{self.rows}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """What a label names, or None."""
        match = re.fullmatch(r"(row)|(tensor)|g(\d+)|b(\d+)", label)
        if match is None:
            return None
        if match[1]:
            return cls()
        if match[2]:
            return cls(None, None)
        return cls(1, int(match[3])) if match[3] else cls(int(match[4]), int(match[4]))

    @property
    def rows_stand_alone(self) -> bool:
        """Whether no two rows share anything."""
        return self.rows == 1

    def tiles(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Tiles down and across; only blocks may stand over the edge.

        Raises:
            InvalidFormat: groups do not divide the inputs.
        """
        rows, columns = shape
        down = 1 if self.rows is None else -(-rows // self.rows)
        if self.columns is None:
            return down, 1
        if self.rows == 1 and columns % self.columns:
            raise _undivided(columns, self.columns)
        return down, -(-columns // self.columns)

    def split(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "down across elements"]:
        """The weights of every tile, one after the other; zeros where a tile stands over the edge."""
        rows, columns = weight.shape
        down, across = self.tiles((rows, columns))
        if self.rows == 1:
            return weight.reshape(rows, across, columns // across)
        height, width = self.rows or rows, self.columns or columns
        padded = pad(weight, (0, across * width - columns, 0, down * height - rows))
        return padded.reshape(down, height, across, width).transpose(1, 2).reshape(down, across, height * width)

    def chunks(
        self, weight: Float[Tensor, "out in"], importance: Float[Tensor, " in"] | None, limit: int
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Some tiles at a time, of about `limit` weights: which, their weights, and the importance of each weight."""
        tiles, shared = self.split(weight.float()), None
        if importance is not None:
            shared = self.split(importance.float().expand(1 if self.rows_stand_alone else len(weight), -1))
        step = max(1, limit // tiles[0].numel())
        for start in range(0, len(tiles), step):
            part = slice(start, start + step)
            yield part, tiles[part], shared if shared is None or self.rows_stand_alone else shared[part]

    def spread(self, values: Float[Tensor, "down across"], shape: tuple[int, ...]) -> Float[Tensor, "out in"]:
        """For every weight the value of its tile."""
        rows, columns = shape
        down, across = values.shape
        if (down, across) == (1, 1):
            return values.expand(rows, columns)
        if self.rows == 1:
            return values[..., None].expand(down, across, columns // across).reshape(rows, columns)
        assert self.rows is not None
        assert self.columns is not None
        tall = values.repeat_interleave(self.rows, 0)[:rows]
        return tall.repeat_interleave(self.columns, 1)[:, :columns]

    def by_column(self, values: Float[Tensor, "down across"], shape: tuple[int, ...]) -> Float[Tensor, "across out"]:
        """The values that each run of `width(columns)` inputs uses, contiguous over outputs."""
        tall = values if self.rows == 1 else values.repeat_interleave(self.rows or shape[0], 0)[: shape[0]]
        return tall.float().T.contiguous()

    def width(self, columns: int) -> int:
        """Inputs of a tile."""
        return self.columns or columns


def _undivided(columns: int, size: int) -> InvalidFormat:
    fitting = [g for g in USUAL if columns % g == 0]
    near = min(fitting, key=lambda g: abs(g - size)) if fitting else None
    return InvalidFormat(
        f"{columns} inputs do not split into groups of {size} ({columns // size} groups, {columns % size} left over)",
        expected=f"a group_size that divides {columns}"
        + (f", such as {', '.join(map(str, fitting))}" if fitting else ", or none (one scale a row)"),
        mend=f"set group_size={near} for this site, or keep it dense",
    )


def refuse_blocks(sharing: Sharing, site: str) -> None:
    """See that a format without square blocks gets none.

    Raises:
        InvalidFormat: it does.
    """
    if sharing.rows not in (1, None):
        raise InvalidFormat(f"{site} in blocks of {sharing.rows}", expected="row, g64 or tensor", site=site)
