"""What became of every byte: by kind of stream, what there was, what is the least, what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pennyweight.container import Coded, entropy
from pennyweight.container.fields import KINDS, SCALES, Layout

SCALE_NAMES = ("scale", "scales", "scale_inv", "zero_point", "qzeros")  # how tensors of scales end


@dataclass
class Account:
    """Of one kind of stream, in bytes.

    Args:
        size: before.
        bound: order-0 entropy of its symbols, with one distribution a stream and tensor; what no code that looks
            at symbols one by one, and has one table for all, can go below.
        stored: after.
    """

    size: float = 0.0
    bound: float = 0.0
    stored: float = 0.0


@dataclass
class Accounts:
    """Of all kinds, filled while chunks are written."""

    kinds: dict[str, Account] = field(default_factory=lambda: {kind: Account() for kind in KINDS})

    def begin(self, name: str, layout: Layout) -> Tally:
        """The tally of one tensor."""
        scales = name.endswith(SCALE_NAMES)
        return Tally(tuple(SCALES if scales else kind for kind in layout.kinds), layout, self.kinds)

    def total(self) -> Account:
        """Over all kinds."""
        rows = self.kinds.values()
        return Account(sum(r.size for r in rows), sum(r.bound for r in rows), sum(r.stored for r in rows))


@dataclass
class Tally:
    """Counts of one tensor's symbols, until it is complete."""

    names: tuple[str, ...]
    layout: Layout
    kinds: Mapping[str, Account]
    counts: NDArray[np.int64] | None = None

    def add(self, size: int, coded: Coded) -> None:
        """Count a chunk; what is stored whole is dealt out by the sizes of its streams."""
        self.counts = coded.counts if self.counts is None else self.counts + coded.counts
        sizes = np.array(self.layout.sizes(size), dtype=float)
        shares, lengths = sizes / sizes.sum(), [len(stream) for stream in coded.streams]
        stored = shares * lengths[0] if coded.whole else np.array(lengths, dtype=float)
        for name, share, length in zip(self.names, shares, stored, strict=True):
            self.kinds[name].size += size * float(share)
            self.kinds[name].stored += float(length)

    def close(self) -> None:
        """The tensor is complete: add its entropy."""
        if self.counts is not None:
            for name, counts in zip(self.names, self.counts, strict=True):
                self.kinds[name].bound += entropy(counts)
        self.counts = None
