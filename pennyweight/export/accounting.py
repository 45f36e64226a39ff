"""Where every tensor of the source went: kept, cast, transformed or dropped; nothing goes without a row saying so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pennyweight.errors import VerificationFailed

ACTIONS = ("kept", "cast", "transformed", "dropped")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tensor of the source.

    Args:
        name: in the source.
        action: `kept` bit for bit, `cast` to another float type, `transformed` into codes, or `dropped`.
        reason: from what to what, or why.
        bytes_before: in the source's file.
        bytes_after: in ours, scales and shapes included.
    """

    name: str
    action: str
    reason: str
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """What became of a source.

    Args:
        rows: one for every tensor of the source, in the order written.
        expected: names of the source's tensors.
        written: bytes of tensor data found in the files afterwards.
        auxiliary: SHA-256 of every other file that was copied, by relative name.
        added: one for every tensor of the files that no tensor of the source became, such as rotary factors.
    """

    rows: tuple[Row, ...]
    expected: tuple[str, ...]
    written: int
    auxiliary: Mapping[str, str] = field(default_factory=dict)
    added: tuple[Row, ...] = ()

    @property
    def bytes_after(self) -> int:
        """Sum over the rows."""
        return sum(row.bytes_after for row in (*self.rows, *self.added))

    def reconcile(self) -> None:
        """Check that every tensor of the source has exactly one row, and that the rows add up to what was written.

        Raises:
            VerificationFailed: names the tensors, or the two sums.
        """
        counts = Counter(row.name for row in self.rows)
        expected = set(self.expected)
        missing = sorted(expected - counts.keys())
        invented = sorted(counts.keys() - expected)
        repeated = sorted(name for name, count in counts.items() if count > 1)
        wrong = [(words, names) for words, names in (
            ("without a row", missing), ("not in the source", invented), ("counted twice", repeated),
        ) if names]  # fmt: skip
        if wrong:
            raise VerificationFailed(
                "; ".join(f"{len(names)} tensors {words} ({', '.join(names[:3])})" for words, names in wrong),
                expected=f"one row for each of {len(expected)} tensors of the source",
                mend="report this: it is our mistake, and the output must not be used",
            )
        if unknown := sorted({row.action for row in self.rows} - set(ACTIONS)):
            raise VerificationFailed(f"unknown action {unknown[0]!r}", expected=", ".join(ACTIONS))
        if self.bytes_after != self.written:
            raise VerificationFailed(
                f"the files hold {self.written} bytes of tensors, the rows add up to {self.bytes_after}",
                expected="equal sums",
                mend="a file was changed or replaced since it was written: write into an empty directory",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "expected": list(self.expected),
            "written": self.written,
            "auxiliary": dict(self.auxiliary),
            "added": [asdict(row) for row in self.added],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Accounting:
        """Restore the value `to_dict` was made of."""
        return cls(
            rows=tuple(Row(**row) for row in data["rows"]),
            expected=tuple(data["expected"]),
            written=data["written"],
            auxiliary=dict(data["auxiliary"]),
            added=tuple(Row(**row) for row in data.get("added", ())),
        )
