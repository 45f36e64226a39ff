"""What a network rounds while it runs, ready to be used: what sites read, and the keys and values that it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pennyweight.formats.passing.quantizer import Quantizer, Static


class KeysAndValues(NamedTuple):
    """How one layer of attention rounds what it keeps, after positions were turned into the keys."""

    keys: Static
    values: Static


@dataclass(frozen=True, eq=False)
class Activations:
    """Roundings by name.

    Args:
        inputs: by the name of a site, of what it reads.
        caches: by the name of a module of attention.
    """

    inputs: Mapping[str, Quantizer] = field(default_factory=dict)
    caches: Mapping[str, KeysAndValues] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.inputs or self.caches)

    def same(self, other: Activations) -> bool:
        """Whether two round alike, bit for bit."""
        pairs = [(self.inputs[name], other.inputs.get(name)) for name in self.inputs]
        for name, (keys, values) in self.caches.items():
            there = other.caches.get(name)
            pairs += [(keys, there and there.keys), (values, there and there.values)]
        return (
            self.inputs.keys() == other.inputs.keys() and self.caches.keys() == other.caches.keys()
            and all(_alike(one, two) for one, two in pairs)
        )  # fmt: skip


def _alike(one: Quantizer, other: Quantizer | None) -> bool:
    if other is None or one.format != other.format or type(one) is not type(other):
        return False
    if not isinstance(one, Static) or not isinstance(other, Static):
        return True
    same = one.scale.dtype == other.scale.dtype and one.scale.equal(other.scale)
    if one.zero_point is None or other.zero_point is None:
        return same and one.zero_point is other.zero_point
    return same and one.zero_point.equal(other.zero_point)
