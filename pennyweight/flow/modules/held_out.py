"""Batches as items: what a user's function reads of each, checked and counted, and kept apart from calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pennyweight.errors import InvalidMeasurement
from pennyweight.flow.certifying.claims import Asked
from pennyweight.flow.certifying.compare import Items, fingerprint_of, population_of, set_aside
from pennyweight.flow.progress import Advance

Batch = Mapping[str, Any]
Outputs = Callable[[nn.Module, Batch], Any]
LEAST = 40  # items, of which a share plans and the others carry the claim


class Read:
    """The outputs of one module on batches, an item at a time; a batch is run when the first of its items is asked for.

    Args:
        module: whose outputs are read.
        outputs: the user's function.
        batches: keyword arguments of its forward.
        counts: items of each batch; None to run all of them now and see.
        advance: told about every batch that is run now.
    """

    def __init__(
        self, module: nn.Module, outputs: Outputs, batches: Sequence[Batch], counts: Sequence[int] | None = None, *,
        advance: Advance = lambda _=1: None,
    ) -> None:  # fmt: skip
        self._module, self._outputs, self._batches = module, outputs, batches
        self._rows: dict[int, Any] = {}
        self.counts = list(counts or ())
        for number in range(0 if counts is not None else len(batches)):
            self.counts.append(len(self._batch(number)))
            advance()
        self._starts = np.cumsum([0, *self.counts])

    def __call__(self, item: int) -> Any:
        """The outputs of one item.

        Raises:
            InvalidMeasurement: an output is NaN or infinite, or a batch has another number of items than before.
        """
        batch = int(np.searchsorted(self._starts, item, side="right")) - 1
        found = self._batch(batch)
        if len(found) != self.counts[batch]:
            raise InvalidMeasurement(
                f"{len(found)} outputs of a batch that had {self.counts[batch]} before", site=f"batch {batch}",
                expected="one output an item, whatever the module", mend="mend the function that reads outputs",
            )  # fmt: skip
        return found[item - int(self._starts[batch])]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _batch(self, number: int) -> Any:
        if number not in self._rows:
            with torch.no_grad():
                self._rows[number] = checked(self._outputs(self._module, self._batches[number]), f"batch {number}")
        return self._rows[number]


def checked(outputs: Any, site: str) -> Any:
    """The outputs of one batch, one an item.

    Raises:
        InvalidMeasurement: there are none, or one is NaN or infinite.
    """
    each = isinstance(outputs, list | tuple) or (isinstance(outputs, Tensor | np.ndarray) and outputs.ndim > 0)
    if not each or len(outputs) == 0:
        raise InvalidMeasurement(
            f"the outputs are of type {type(outputs).__name__}, with nothing for each item", site=site,
            expected="a tensor, an array or a list, one entry an item of the batch",
            mend="return the part that matters, such as module(**batch).logits",
        )  # fmt: skip
    for leaf in tree_leaves(outputs):
        values = leaf if isinstance(leaf, Tensor) else torch.as_tensor(np.asarray(leaf))
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise InvalidMeasurement(
                "an output is NaN or infinite", expected="finite outputs", site=site,
                mend="look at what the module returns on this batch: it overflows, or a weight is damaged",
            )  # fmt: skip
    return outputs


def populations(
    count: int, held_out: Sequence[Batch], targets: Sequence[Any] | None, documents: Sequence[int] | None,
    asked: Sequence[Asked], scope: str,
) -> list[tuple[Items, Items]]:  # fmt: skip
    """For every claim the items that plan it and the items that carry it; the choice follows from their hash.

    Raises:
        InvalidMeasurement: too few items or documents, or targets or documents that are not one an item.
    """
    if count < LEAST:
        raise InvalidMeasurement(
            f"{count} held-out items", expected=f"{LEAST} or more, better thousands", site="held_out",
            mend="give more: some plan the search, and the others carry the claim",
        )  # fmt: skip
    found, fingerprint = list[tuple[Items, Items]](), fingerprint_of(held_out, targets)
    for one in asked:
        whole = replace(population_of(range(count), one.metric, targets, documents, fingerprint, 1), on=one.on)
        planning, claimed = set_aside(whole, scope)
        if planning is None:
            raise InvalidMeasurement(
                "a few documents hold most of the items, and none can be spared for planning", site="documents",
                expected="items of many documents", mend="give items of more documents, or use scope='corpus'",
            )  # fmt: skip
        found.append((planning, claimed))
    return found


def check_apart(calibration: Sequence[Batch], held_out: Sequence[Batch]) -> None:
    """Refuse held-out batches, or rows of them, that methods look at.

    Raises:
        InvalidMeasurement: names the first.
    """
    for what, batches in (("calibration", calibration), ("held_out", held_out)):
        if isinstance(batches, Mapping) or not len(batches) or not all(isinstance(b, Mapping) for b in batches):
            raise InvalidMeasurement(
                f"{what} is not a list of batches", expected="dictionaries of keyword arguments, one or more",
                mend="[{'input_ids': ids}, …]", site=what,
            )  # fmt: skip
    known = {key: place for batch in range(len(calibration)) for key, place in _hashes(calibration, batch)}
    for batch in range(len(held_out)):
        for key, place in _hashes(held_out, batch):
            if key in known:
                raise InvalidMeasurement(
                    f"{place} of the held-out data is {known[key]} of the calibration data",
                    expected="held-out data that no method has seen", site="held_out",
                    mend="leave it out of one of the two: a certificate on data the codes were fitted to says little",
                )  # fmt: skip


def _hashes(batches: Sequence[Batch], number: int) -> list[tuple[str, str]]:
    """Hashes of a batch and, where all its tensors are as long, of its rows."""
    batch = batches[number]
    found = [(fingerprint_of([batch]), f"batch {number}")]
    tensors = [value for value in batch.values() if isinstance(value, Tensor) and value.dim() > 1]
    lengths = {len(tensor) for tensor in tensors}
    if len(lengths) == 1 and (rows := lengths.pop()) > 1:
        found += [(fingerprint_of([[t[i] for t in tensors]]), f"row {i} of batch {number}") for i in range(rows)]
    return found
