"""Openings of held-out texts: a second certificate on the same text knows that it is the second.

A certificate's confidence counts on a text that was looked at once. Whoever fails and tries again on the same text has
two chances, so every opening is written down before the text is scored, in a file that is named by the text and kept
for the user, outside of any run: another directory or a deleted artifact does not make the text new. A run that is
killed and resumed, or repeated unchanged, is the same opening and costs nothing.

What it cannot see: openings by other users, on other machines, or in a state directory that was deleted; certificates
from Python for functions (`certify_outputs`); and an edited text or reference. The number then starts at 1 again, but
the order of the units is a new one all the same: see `rules.lot_of`.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

import msgspec

from pennyweight.budget import Opening as Opened
from pennyweight.errors import InvalidMethod, InvalidOutput, PennyweightError, VerificationFailed
from pennyweight.flow.journal import disk_errors
from pennyweight.methods.multiplicity import AlphaLedger
from pennyweight.numerics.hashing import canonical

MEND = "set PENNYWEIGHT_STATE to a directory that can be written to"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of the ledger.

    Args:
        key: of the run; the same run has the same key.
        candidate: hash of the candidate's weights.
        claims: what was to be certified, in words.
        alpha: error level the opening was given.
        date: when the line was written, in UTC.
        verdict: how it ended; None in the line that announces the opening, and after it if the run never ended.
    """

    key: str
    candidate: str
    claims: tuple[str, ...]
    alpha: float
    date: str
    verdict: str | None = None


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The right to score a held-out text once. Number, alpha and spent do not depend on the clock.

    Args:
        number: of the opening, from 1.
        alpha: its error level.
        spent: sum of the levels of all openings up to and including this.
        earlier: what the text was opened for before, the first opening first.
        key: of the run.
        path: file of the ledger.
    """

    number: int
    alpha: float
    spent: float
    earlier: tuple[Record, ...]
    key: str
    path: Path


def open_corpus(
    fingerprint: str, key: str, *, total: float, candidate: str, claims: Sequence[str], reserve: bool = False,
    state: Path | None = None,
) -> Opening:  # fmt: skip
    """Write down that a held-out text is about to be scored, and learn at which level.

    Args:
        fingerprint: of the text, a hash that can be a file's name.
        key: of the run: a hash of all that the verdict depends on (candidate, claims, total, order of the units).
        total: error level of a first certificate, in (0, 1).
        candidate: hash of the weights to be certified.
        claims: what is to be certified, in words.
        reserve: see `AlphaLedger`.
        state: where ledgers are kept; by default `state_directory()`.

    Returns:
        The opening. With a key that was seen before, the same as then, and nothing is written.

    Raises:
        InvalidBudget: the total is outside (0, 1).
        InvalidMethod: a fingerprint that cannot name a file, or a key that stands for another opening.
        InvalidOutput: the state directory cannot be written to.
        DiskFull: the line could not be written; the ledger is as it was.
        VerificationFailed: a line of the ledger is damaged.
    """
    rule = AlphaLedger(reserve=reserve)
    rule.level(total, 1)  # a total that means nothing is refused before anything is written
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}", fingerprint):
        raise InvalidMethod(
            f"{fingerprint!r} cannot name a ledger",
            expected="a hash in hexadecimal",
            mend="give the text's fingerprint",
            site="fingerprint",
        )
    path = (state_directory() if state is None else state) / "openings" / f"{fingerprint}.jsonl"
    with _locked(path) as ledger:
        records = _read(ledger, path)
        known = {record.key: index for index, record in enumerate(records)}
        number = known.get(key, len(records)) + 1
        alpha = rule.level(total, number)
        new = Record(key=key, candidate=candidate, claims=tuple(claims), alpha=alpha, date=_now())
        if number > len(records):
            _append(ledger, new, path)
            records.append(new)
        else:
            before = records[number - 1]
            if _terms(before) != _terms(new):
                raise InvalidMethod(
                    "this key stands for an opening with another candidate, other claims or another level",
                    expected=f"{before.candidate}, {list(before.claims)} at level {before.alpha:g}",
                    mend="make the key from everything that the verdict depends on",
                    site=key,
                )
    return Opening(
        number=number, alpha=alpha, spent=math.fsum(r.alpha for r in records[:number]),
        earlier=tuple(records[: number - 1]), key=key, path=path,
    )  # fmt: skip


def open_all(
    fingerprints: Mapping[str, str],
    key: str,
    *,
    total: float,
    candidate: str,
    claims: Sequence[str],
    reserve: bool = False,
) -> tuple[list[Opening], Opened, dict[str, int]]:
    """Open several populations for one certificate: it has the smallest level that any of them leaves.

    Args:
        fingerprints: what the ledger counts by, of each population.
        key: of the run.
        total: error level of a first certificate.
        candidate: hash of the weights to be certified.
        claims: what is to be certified, in words.
        reserve: see `AlphaLedger`.

    Returns:
        The openings, what they leave together, and the number of each population's own opening.

    Raises:
        PennyweightError: as `open_corpus`.
    """
    openings = {
        on: open_corpus(fingerprint, key, total=total, candidate=candidate, claims=claims, reserve=reserve)
        for on, fingerprint in fingerprints.items()
    }
    last = max(openings.values(), key=lambda opening: opening.number)
    most = max(opening.spent for opening in openings.values())
    numbers = {on: opening.number for on, opening in openings.items()}
    return list(openings.values()), Opened(number=last.number, alpha=last.alpha, spent=most), numbers


def close_opening(opening: Opening, verdict: str) -> None:
    """Write down how an opening ended. The same verdict again changes nothing.

    Raises:
        InvalidOutput: the ledger cannot be written to.
        DiskFull: the line could not be written; the ledger is as it was.
        VerificationFailed: a line is damaged, the opening is not in the ledger, or ended otherwise before.
    """
    with _locked(opening.path) as ledger:
        record = next((r for r in _read(ledger, opening.path) if r.key == opening.key), None)
        if record is None:
            raise VerificationFailed(
                f"opening {opening.number} is no longer written here",
                expected="the line that was written before the text was scored",
                mend="restore the ledger from a copy",
                site=str(opening.path),
            )
        if record.verdict is None:
            _append(ledger, replace(record, date=_now(), verdict=verdict), opening.path)
        elif record.verdict != verdict:
            raise VerificationFailed(
                f"opening {opening.number} ended before as {record.verdict!r}, and now as {verdict!r}",
                expected="the same verdict from the same key",
                mend="the first verdict stands; if settings differ, such as threads, they belong into the key",
                site=str(opening.path),
            )


def state_directory() -> Path:
    """Where ledgers are kept: $PENNYWEIGHT_STATE, else $XDG_STATE_HOME/pennyweight, else ~/.local/state/pennyweight.

    Raises:
        InvalidOutput: none of them is set and the user has no home directory.
    """
    try:
        if own := os.environ.get("PENNYWEIGHT_STATE"):
            return Path(own).expanduser()
        shared = Path(os.environ.get("XDG_STATE_HOME", ""))
        if not shared.is_absolute():  # unset, or relative, which the XDG standard says to ignore
            shared = Path.home() / ".local" / "state"
        return shared / "pennyweight"
    except RuntimeError as error:
        raise InvalidOutput(
            "there is no home directory to keep the ledger of openings in", expected="a directory for the user's state",
            mend=MEND, site="PENNYWEIGHT_STATE",
        ) from error  # fmt: skip


@contextmanager
def _locked(path: Path) -> Iterator[FileIO]:
    """An open ledger that no other process or thread reads or writes meanwhile."""
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b", buffering=0) as ledger:
                fcntl.flock(ledger, fcntl.LOCK_EX)  # waits: whoever holds it writes one line and lets go
                yield ledger
    except PennyweightError:
        raise
    except OSError as error:
        raise InvalidOutput(
            f"cannot write the ledger of openings: {error.strerror or error}",
            expected="a directory for the user's state that can be written to",
            mend=MEND,
            site=str(path),
        ) from error


def _read(ledger: FileIO, path: Path) -> list[Record]:
    """Openings in the order they were made, each with its verdict if it has one."""
    ledger.seek(0)
    *lines, rest = ledger.readall().split(b"\n")
    records: dict[str, Record] = {}
    for number, line in enumerate(lines, 1):
        record = _parse(line)
        before = None if record is None else records.get(record.key)
        if record is None or not (_opens(record) if before is None else _closes(record, before)):
            raise _damaged(path, number, "restore the ledger from a copy; without one, certify on fresh text")
        records[record.key] = record if before is None else replace(before, verdict=record.verdict)
    if rest:
        mend = f"remove line {len(lines) + 1}: it was cut short, and the run that wrote it writes it again"
        raise _damaged(path, len(lines) + 1, mend)
    return list(records.values())


def _parse(line: bytes) -> Record | None:
    try:
        record = msgspec.json.decode(line, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    # one way to write each record: whatever reads back otherwise was edited, or has fields that we do not know
    return record if 0 < record.alpha < 1 and canonical(record) == line else None


def _opens(record: Record) -> bool:
    return record.verdict is None


def _closes(record: Record, before: Record) -> bool:
    return before.verdict is None and record.verdict is not None and _terms(record) == _terms(before)


def _terms(record: Record) -> tuple[object, ...]:
    return record.key, record.candidate, record.claims, record.alpha


def _damaged(path: Path, line: int, mend: str) -> VerificationFailed:
    return VerificationFailed(
        f"line {line} is not what was written", expected="the lines that pennyweight appended, unchanged", mend=mend,
        site=str(path),
    )  # fmt: skip


def _append(ledger: FileIO, record: Record, path: Path) -> None:
    """Add a line that is on the disk when this returns, or not in the file at all."""
    line, size = canonical(record) + b"\n", ledger.seek(0, os.SEEK_END)
    try:
        if ledger.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(ledger)
        if size == 0:  # a new file lasts once its directory does
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    except BaseException:
        ledger.truncate(size)
        raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
