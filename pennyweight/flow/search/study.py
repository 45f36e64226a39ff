"""What was measured in a search, in one SQLite file: a later run asks it first.

An answer hangs on everything it follows from: the model, the text, the options and how they were carried out. That is
the `world` of a row, a hash; a study of another model is not touched, it has other rows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pennyweight.errors import InvalidOutput
from pennyweight.numerics.hashing import of_value

SCHEMA = """
CREATE TABLE IF NOT EXISTS trial (
    world TEXT NOT NULL, tokens INTEGER NOT NULL, draw INTEGER NOT NULL, choice TEXT NOT NULL,
    kl REAL NOT NULL, error REAL NOT NULL, labels TEXT NOT NULL, PRIMARY KEY (world, tokens, draw, choice)
)
"""


@dataclass(frozen=True)
class Answer:
    """What a choice cost.

    Args:
        kl: mean over the tokens, nats per token.
        error: its standard error, from windows that are taken as independent.
    """

    kl: float
    error: float


@dataclass(frozen=True)
class Study:
    """Answers by world, tokens, draw and choice.

    Args:
        connection: to the file.
        world: hash of everything else that an answer follows from.
        path: of the file.
    """

    connection: sqlite3.Connection
    world: str
    path: Path

    def get(self, labels: Sequence[str], tokens: int, draw: int) -> Answer | None:
        """What was measured, if it was.

        Raises:
            InvalidOutput: the file is damaged.
        """
        with _readable(self.path):
            row = self.connection.execute(
                "SELECT kl, error FROM trial WHERE world = ? AND tokens = ? AND draw = ? AND choice = ?",
                (self.world, tokens, draw, of_value(list(labels))),
            ).fetchone()
            return None if row is None else Answer(*map(float, row))

    def put(self, labels: Sequence[str], tokens: int, draw: int, answer: Answer) -> None:
        """Remember an answer; it is on disk when this returns.

        Raises:
            InvalidOutput: the file is damaged, or cannot be written to.
        """
        row = (self.world, tokens, draw, of_value(list(labels)), answer.kl, answer.error, json.dumps(list(labels)))
        with _readable(self.path), self.connection:
            self.connection.execute("INSERT OR REPLACE INTO trial VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def rows(self) -> list[tuple[int, int, float, list[str]]]:
        """Tokens, draw, KL and labels of everything measured in this world, in the order it was.

        Raises:
            InvalidOutput: the file is damaged.
        """
        with _readable(self.path):
            found = self.connection.execute(
                "SELECT tokens, draw, kl, labels FROM trial WHERE world = ? ORDER BY rowid", (self.world,)
            )
            return [
                (int(tokens), int(draw), float(kl), msgspec.json.decode(labels, type=list[str]))
                for tokens, draw, kl, labels in found
            ]


@contextmanager
def open_study(path: Path, world: str) -> Iterator[Study]:
    """Open a study, or begin one.

    Args:
        path: of the file.
        world: hash of everything that answers follow from, beside the choice.

    Raises:
        InvalidOutput: the file is something else.
    """
    with _readable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path)
    try:
        with _readable(path):
            connection.execute(SCHEMA)
            connection.execute("SELECT world, tokens, draw, choice, kl, error, labels FROM trial LIMIT 0")
        yield Study(connection, world, path)
    finally:
        connection.close()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, ValueError, TypeError, RecursionError) as error:
        raise InvalidOutput(
            f"this is no study: {error}", expected="a file that a search wrote, or none",
            mend="choose another one, or remove it", site=str(path),
        ) from error  # fmt: skip
