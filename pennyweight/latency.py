"""Times of an engine on a machine, by shape and format, as somebody measured them there; never inferred from bits.

    {"engine": "vllm 0.33.0", "machine": "NVIDIA L4", "rows": [
        {"shape": [576, 576], "format": "dense", "milliseconds": 0.021},
        {"shape": [576, 576], "format": "int4 g64 sym", "milliseconds": 0.009}]}

A row is one product with a weight `[out, in]` for one token. Layers an engine joins (q, k and v) may stand there as one
shape or each by itself: the sum of their outputs is looked for first.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from pennyweight.errors import InvalidBudget, MissingFile

Key = tuple[int, int, str]


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    shape: tuple[int, int]
    format: str
    milliseconds: float


class _File(msgspec.Struct, forbid_unknown_fields=True):
    engine: str
    machine: str
    rows: list[_Row]


@dataclass(frozen=True)
class Latency:
    """A table of times.

    Args:
        engine: with its version.
        machine: it ran on.
        rows: outputs, inputs, label of the format or `dense`, milliseconds a token.
    """

    engine: str
    machine: str
    rows: tuple[tuple[int, int, str, float], ...]

    @classmethod
    def read(cls, path: str | Path, *, machine: str | None = None) -> Latency:
        """Read a table.

        Args:
            path: of a JSON file.
            machine: where the result is to run; None for this one.

        Raises:
            MissingFile: there is none.
            InvalidBudget: it is not such a table, or of another machine.
        """
        try:
            found = msgspec.json.decode(Path(path).read_bytes(), type=_File)
        except FileNotFoundError as error:
            raise MissingFile("there is no such table", expected="a JSON file", site=str(path)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
            raise InvalidBudget(
                f"this is no table of times: {error}",
                expected='{"engine": …, "machine": …, "rows": [{"shape": [out, in], "format": …, "milliseconds": …}]}',
                mend="see pennyweight/latency.py for an example", site=str(path),
            ) from error  # fmt: skip
        wanted = machine or this_machine()
        if found.machine != wanted:
            raise InvalidBudget(
                f"the table was measured on {found.machine}, and the result is to run on {wanted}",
                expected="times of the machine it will run on",
                mend=f"--machine '{found.machine}' if it will run there", site=str(path),
            )  # fmt: skip
        wrong = [row for row in found.rows if not 0 < row.milliseconds < float("inf")]
        if wrong or not found.rows:
            raise InvalidBudget(
                f"{wrong[0].milliseconds:g} milliseconds" if wrong else "no rows", expected="times above zero",
                mend="measure it again", site=str(path),
            )  # fmt: skip
        return cls(found.engine, found.machine, tuple((*row.shape, row.format, row.milliseconds) for row in found.rows))

    @cached_property
    def _times(self) -> dict[Key, float]:
        return {(out, size, label): time for out, size, label, time in self.rows}

    def knows(self, shapes: Sequence[tuple[int, int]], format: str) -> bool:
        """Whether there are times of these weights in this format."""
        return self._joined(shapes, format) in self._times or all((*s, format) in self._times for s in shapes)

    def of(self, shapes: Sequence[tuple[int, int]], format: str) -> float:
        """Milliseconds of some weights that read one activation, in one format.

        Raises:
            InvalidBudget: the table has no such row.
        """
        if not self.knows(shapes, format):
            missing = next(shape for shape in shapes if (*shape, format) not in self._times)
            raise InvalidBudget(
                f"nothing is known of {missing[0]} x {missing[1]} in {format} on {self.machine}",
                expected="a row for every shape, dense ones too", mend="measure it, and add the row", site="--latency",
            )  # fmt: skip
        joined = self._times.get(self._joined(shapes, format))
        return sum(self._times[(*shape, format)] for shape in shapes) if joined is None else joined

    @staticmethod
    def _joined(shapes: Sequence[tuple[int, int]], format: str) -> Key:
        return sum(out for out, _ in shapes), shapes[0][1], format


def this_machine() -> str:
    """What a table of this machine calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def factor(text: str) -> float:
    """Read `2x` or `1.5`.

    Raises:
        InvalidBudget: anything else, or nothing faster.
    """
    try:
        value = float(text.strip().lower().removesuffix("x"))
    except ValueError:
        value = 0.0
    if not 1 < value < float("inf"):
        raise InvalidBudget(
            f"{text!r} is not a speed", expected="how many times faster than dense, above 1", mend="--speed 2x",
            site="--speed",
        )  # fmt: skip
    return value
