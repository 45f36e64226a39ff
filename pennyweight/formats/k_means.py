"""Learned tables: 2 to 64 numbers of its own for every row, group or tensor, each weight a code into them.

Source: Han, Mao, Dally. Deep Compression. arXiv:1510.00149, for one table a tensor learned by k-means; Kim et al.
SqueezeLLM: Dense-and-Sparse Quantization. arXiv:2306.07629, for a table a row and means weighted by how much each
weight matters; Lloyd 1957 and Max 1960 for the rounds. Every level becomes the mean of what is nearest to it. The
rounds start from cells of equal error, which the best table has too as levels grow many, and from even steps of the
range; the better end is taken. Without search the table is even steps from minimum to maximum; with one bit it is
mean ± mean |w − mean|, the centred sign of XNOR-Net (arXiv:1603.05279).

Departs from the sources: any input's importance weighs all rows alike (E[x²] of a layer, not a gradient of each
weight). Of tiles with more than a million weights a sorted sample is learned from.

When to use it: two to four bits in rows of a thousand inputs or more, where an engine looks numbers up. Normal weights
in rows of 2048 have a relative squared error of .117 with two bits, .034 with three and .0090 with four, the bounds of
Lloyd and Max. A table takes 16 · 2^bits bits: .125 a weight at four bits in rows of 2048, a whole bit at three bits in
groups of 128, where two numbers a group (affine) are the better use of them.

Cost: a sort and some hundred rounds of look-ups, half a second for a million weights. Known failures: one table
for a tensor whose rows differ in size; a level or two spent on an outlier. `coordinate_descent` refits tables of up to
four bits, with 2^bits numbers a weight in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.binary import round_scale_or_zero
from pennyweight.formats.dense import DTYPES
from pennyweight.formats.format import Field, Fitted
from pennyweight.formats.sharing import Sharing, refuse_blocks
from pennyweight.formats.tables import TableFit, Tables
from pennyweight.numerics.partitions import Lines, equal_errors, lines, settled

ROUNDS = 100
CHUNK = 1 << 18  # weights fitted at once
SAMPLE = 1 << 20  # weights of a tile that a table is learned from
LINEAR_BITS = 4  # of tables that are refitted: a refit holds as many numbers a weight as there are levels
ROW = Sharing()


@dataclass(frozen=True, kw_only=True)
class KMeans(Tables):
    """A learned table of numbers for each tile.

    Args:
        bits: of a code, 1 to 6.
        sharing: which weights share a table: a group, a row or the tensor.
        table_dtype: what its numbers are stored in: float16, bfloat16 or float32.

    Raises:
        InvalidFormat: a parameter outside its range.
    """

    name: ClassVar[str] = "k_means"
    bits: int = 4
    sharing: Sharing = ROW
    table_dtype: str = "float16"

    def __post_init__(self) -> None:
        refuse_blocks(self.sharing, "k_means")
        if not 1 <= self.bits <= 6 or self.table_dtype not in DTYPES:
            raise InvalidFormat(
                f"a table of {self.bits} bits in {self.table_dtype}", expected=f"1 to 6 bits, {', '.join(DTYPES)}",
                mend="eight bits are as good on an even grid: 'int8 g128 sym'", site="k_means",
            )  # fmt: skip

    @property
    def levels(self) -> int:
        """2^bits."""
        return 1 << self.bits

    def label(self) -> str:
        """Such as `kmeans4 row`, `kmeans3 tensor bfloat16`."""
        dtype = "" if self.table_dtype == "float16" else f" {self.table_dtype}"
        return f"kmeans{self.bits} {self.sharing.label()}{dtype}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"kmeans(\d) (\w+)(?: (\w+))?", label.strip())
        sharing = None if match is None else Sharing.parse(match[2])
        if match is None or sharing is None:
            return None
        return cls(bits=int(match[1]), sharing=sharing, table_dtype=match[3] or "float16")

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """One to five bits; rows, groups and the tensor."""
        labels = ("kmeans1 row", "kmeans2 g48", "kmeans3 row bfloat16", "kmeans4 row", "kmeans5 tensor")
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def fields(self, shape: tuple[int, ...]) -> Sequence[Field]:
        """Codes, and a table for each tile."""
        tables, dtype = (*self.sharing.tiles(shape), self.levels), DTYPES[self.table_dtype]
        return [
            Field("codes", tuple(shape), self.levels),
            Field("table", tables, dtype=dtype, by_row=self.rows_stand_alone),
        ]

    def tables(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "down across levels"]:
        """As they are stored."""
        return tensors["table"].float()

    def fit(
        self, weight: Float[Tensor, "out in"], *, search: bool = True, importance: Float[Tensor, " in"] | None = None
    ) -> Fitted:
        """Learn tables: see `Scalar.fit`."""
        table = torch.empty(*self.sharing.tiles(weight.shape), self.levels)
        for part, tiles, share in self.sharing.chunks(weight, importance, CHUNK):
            found = lines(tiles, share, SAMPLE) if search else None
            table[part] = self._even(tiles) if found is None else self._learn(tiles, found)
        return self.with_tables(table)

    def with_tables(self, table: Float[Tensor, "down across levels"]) -> Fitted:
        """The format with given tables, rounded to the type they are stored in.

        Raises:
            InvalidFormat: a number overflows the type.
        """
        stored = {"table": self.stored(table).to(DTYPES[self.table_dtype])}
        return (LearnedTables if self.bits <= LINEAR_BITS else TableFit)(self, stored)

    def stored(self, table: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Numbers as they will be read back.

        Raises:
            InvalidFormat: one overflows its type.
        """
        return round_scale_or_zero(table.float(), self.table_dtype)

    def _even(self, w: Tensor) -> Tensor:
        """Even steps over the whole range, or the centred sign."""
        if self.bits == 1:
            mean = w.mean(-1, keepdim=True)
            size = (w - mean).abs().mean(-1, keepdim=True)
            return self.stored(torch.cat([mean - size, mean + size], -1))
        low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
        return self.stored(low + (high - low) * torch.linspace(0, 1, self.levels))

    def _learn(self, w: Tensor, found: Lines) -> Tensor:
        best, least = self._even(w), torch.full(w.shape[:2], torch.inf, dtype=torch.float64)
        for start in (equal_errors(found, self.levels), best.double()):
            table = self.stored(settled(found, start, ROUNDS))
            error = found.error(table.double())
            best = torch.where((error < least)[..., None], table, best)
            least = torch.minimum(error, least)
        return best


@dataclass(frozen=True, eq=False)
class LearnedTables(TableFit):
    """Tables whose numbers can be chosen again: a weight is the sum of all levels, each times whether it is its own."""

    format: KMeans

    def parameters(self) -> Float[Tensor, "levels down across"]:
        """The tables, in float32: see `Linear`."""
        return self.stored["table"].float().movedim(-1, 0)

    def factors(self, codes: Float[Tensor, "out in"]) -> Float[Tensor, "levels out in"]:
        """One for the level of the code, zero for all others."""
        return (codes == torch.arange(self.format.levels)[:, None, None]).float()

    def refitted(self, parameters: Float[Tensor, "levels down across"]) -> LearnedTables:
        """Other tables; their numbers need not ascend."""
        found = self.format.with_tables(parameters.movedim(0, -1))
        assert isinstance(found, LearnedTables)
        return found
