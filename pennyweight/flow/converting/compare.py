"""Which numbers of a model are other numbers in its new files: read back from both, tensor by tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pennyweight.errors import VerificationFailed
from pennyweight.flow.converting.choose import DENSE, ROUNDED, Choice
from pennyweight.flow.progress import Advance
from pennyweight.network.network import Network

ROUNDED_DENSE = "rounded"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tensor.

    Args:
        name: of it.
        before: format in the source.
        after: format in the files.
        how: `exact (same codes)`, `exact (wider)`, `re-rounded`; of tensors without codes `dense`, or `rounded`.
        error: squared change over squared weight; zero where every number is equal.
    """

    name: str
    before: str
    after: str
    how: str
    error: float

    @property
    def exact(self) -> bool:
        """Whether every number is equal."""
        return self.how not in (ROUNDED, ROUNDED_DENSE)


def rows_of(choice: Choice, after: Network, advance: Advance) -> tuple[Row, ...]:
    """A row for every tensor of the files; the numbers of both sides are compared as float32.

    Raises:
        VerificationFailed: the files lack a tensor, or numbers differ that should not.
    """
    before = choice.network
    promised = {before.stored_name(site.parameter): choice.how.get(site.name, DENSE) for site in before.sites}
    labels = {
        before.stored_name(site.parameter): choice.formats[site.name].label()
        for site in before.sites if site.name in choice.formats
    }  # fmt: skip
    kept = {before.stored_name(name) for name in before.source.tensors if name not in _copies(before)}
    if missing := sorted(kept - {before.stored_name(name) for name in after.source.tensors}):
        raise VerificationFailed(
            f"{len(missing)} tensors are not in the files, such as {missing[0]}",
            expected="every tensor of the source", mend="report this; the files must not be used",
        )  # fmt: skip
    rows = []
    for name, info in after.source.tensors.items():
        stored = before.stored_name(name)
        if stored not in before.source.tensors:  # made of the configuration, as rotary factors are: see the probe
            continue
        first, second = before.source.read(stored), after.source.read(name)
        how, error = promised.get(stored, DENSE), change(first, second)
        if error and how == DENSE:
            how = ROUNDED_DENSE
        elif error and how != ROUNDED:
            raise VerificationFailed(
                f"its numbers differ by {error:.1e}, relative and squared", expected="equal numbers, as promised",
                mend="report this; the files must not be used", site=name,
            )  # fmt: skip
        rows.append(
            Row(name=stored, before=before.source.tensors[stored].dtype, after=labels.get(stored, info.dtype),
                how=how, error=error)
        )  # fmt: skip
        advance(info.bytes)
    return tuple(rows)


def change(before: Tensor, after: Tensor) -> float:
    """Squared change over squared size; exactly zero where all numbers are equal, infinite where shapes differ."""
    if before.shape != after.shape:
        return float("inf")
    if torch.equal(before.float(), after.float()):
        return 0.0
    difference = (after.double() - before.double()).square().sum()
    return float(difference / before.double().square().sum().clamp(min=1e-300))


def numbers_hash(network: Network, names: Iterable[str]) -> str:
    """SHA-256 of the float32 numbers of tensors, in the order of their names: the same whatever they are stored as."""
    digest = hashlib.sha256()
    for name in sorted(set(names)):
        tensor = network.source.read(network.stored_name(name)).float() + 0.0  # minus zero is zero
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def totals(rows: Iterable[Row]) -> Mapping[str, int]:
    """Tensors by what became of them."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.how] = counts.get(row.how, 0) + 1
    return counts


def _copies(network: Network) -> frozenset[str]:
    """Second names of tensors that are stored once."""
    return frozenset(name for names in network.tied for name in names if name != network.stored_name(names[0]))
