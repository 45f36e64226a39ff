"""Time files in every engine that reads them: in turn, so that what else the machine does falls on all of them."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pennyweight.errors import EngineFailed, InvalidMethod, MissingFile
from pennyweight.flow.bench.contenders import Contender, chosen, contenders
from pennyweight.flow.bench.process import Process, started
from pennyweight.flow.load import check_pair, load
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.latency import this_machine
from pennyweight.network.network import Network

WARM = (16, 2)  # tokens read and written before anything counts


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Tokens a second over repeats.

    Args:
        median: of them.
        least: of them.
        most: of them.
    """

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, tokens: int, seconds: Sequence[float]) -> Spread:
        """Of some repeats that took so long."""
        rates = [tokens / one for one in seconds]
        return cls(median=statistics.median(rates), least=min(rates), most=max(rates))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One engine.

    Args:
        name: as `Contender` has it.
        version: of what ran.
        bytes: of its files.
        loading: seconds.
        peak: most resident memory of its process, bytes; a file that is mapped counts as far as it was read.
        prefill: by batch, tokens read a second, all texts of it together.
        decode: by batch, tokens written a second, all texts together.
        failed: what it said where it could not go on.
    """

    name: str
    version: str = ""
    bytes: int = 0
    loading: float = 0.0
    peak: int = 0
    prefill: Mapping[int, Spread] = field(default_factory=dict)
    decode: Mapping[int, Spread] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One table.

    Args:
        machine: its processor.
        threads: of the arithmetic, in each engine.
        prompt: tokens read.
        written: tokens written after them.
        repeats: that count.
        rows: engines.
        without: engines that could not be asked, and why.
    """

    machine: str
    threads: int
    prompt: int
    written: int
    repeats: int
    rows: tuple[Row, ...]
    without: Mapping[str, str]


def bench(
    path: str | Path,
    *,
    engines: Sequence[str] = ("all",),
    pythons: Sequence[str | Path] = (),
    reference: str | Path | None = None,
    batches: Sequence[int] = (1, 8),
    prompt: int = 512,
    written: int = 64,
    repeats: int = 5,
    threads: int | None = None,
    progress: Progress = QUIET,
) -> Bench:
    """Time files; all engines are in memory at once, each in a process of its own, and one runs at a time.

    Args:
        path: what compress wrote, another directory, or a .gguf file.
        engines: `all`, or some of pennyweight, dense, and engines by name.
        pythons: interpreters that may have engines.
        reference: the model before, for the dense rows; None for the same weights, decoded.
        batches: texts at once.
        prompt: tokens read in each.
        written: tokens written after them.
        repeats: that count, after a short one that does not.
        threads: of the arithmetic; None for as many as PyTorch uses here.
        progress: told about every stage.

    Raises:
        UnknownName: an engine that there is not.
        MissingFile: a named interpreter is not there.
        InvalidMethod: more tokens than the model has positions.
        PennyweightError: the files cannot be read.
    """
    names = chosen(engines)
    for python in pythons:
        if shutil.which(python) is None:
            raise MissingFile(
                "there is no such interpreter", expected="a python that may be run", mend="--python venv/bin/python",
                site=str(python),
            )  # fmt: skip
    network = load(path)
    before = load(reference) if reference is not None else None
    if before is not None:
        check_pair(before, network)
    _check_room(network, prompt + written)
    threads = threads or torch.get_num_threads()
    options = {
        "threads": threads, "batch": max(batches), "length": prompt + written, "vocabulary": _vocabulary(network),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        places = [Path(python) for python in pythons]
        found, without = contenders(network, before, names, places, Path(work), progress)
        table = _Table(found, batches, prompt, written)
        with progress.stage("loading", len(found)) as advance:
            for contender in found:
                table.start(contender, stack, options)
                advance()
        with progress.stage("timing", repeats * len(batches) * len(found)) as advance:
            for turn in range(repeats):
                for batch in batches:
                    for place in range(len(found)):
                        table.ask(found[(place + turn) % len(found)], batch)
                        advance()
        rows = tuple(table.row(contender) for contender in found)
    return Bench(
        machine=this_machine(), threads=threads, prompt=prompt, written=written, repeats=repeats, rows=rows,
        without=without,
    )  # fmt: skip


class _Table:
    """What is known so far."""

    def __init__(self, found: Sequence[Contender], batches: Sequence[int], prompt: int, written: int) -> None:
        self._batches, self._prompt, self._written = batches, prompt, written
        self._processes: dict[str, Process] = {}
        self._failed: dict[str, str] = {}
        self._peaks: dict[str, int] = {}
        self._seconds: dict[tuple[str, int], list[Mapping[str, Any]]] = {
            (c.name, b): [] for c in found for b in batches
        }

    def start(self, contender: Contender, stack: ExitStack, options: Mapping[str, Any]) -> None:
        """Load it, and let it run once for each batch."""
        try:
            self._processes[contender.name] = process = stack.enter_context(started(contender, options))
            for batch in self._batches:
                process.ask(batch, min(WARM[0], self._prompt), min(WARM[1], self._written))
        except EngineFailed as error:
            self._failed[contender.name] = error.happened

    def ask(self, contender: Contender, batch: int) -> None:
        """Time it once, unless it failed before."""
        if contender.name in self._failed:
            return
        try:
            answer = self._processes[contender.name].ask(batch, self._prompt, self._written)
        except EngineFailed as error:
            self._failed[contender.name] = error.happened
            return
        self._peaks[contender.name] = answer["peak"]
        self._seconds[contender.name, batch].append(answer)

    def row(self, contender: Contender) -> Row:
        """What it came to."""
        name, process = contender.name, self._processes.get(contender.name)
        if process is None or name in self._failed:
            return Row(name=name, bytes=contender.bytes, failed=self._failed[name])
        spreads = {
            kind: {
                batch: Spread.of(tokens * batch, [answer[kind] for answer in self._seconds[name, batch]])
                for batch in self._batches
            }
            for kind, tokens in (("prefill", self._prompt), ("decode", self._written))
        }
        return Row(
            name=name, version=process.loaded["version"], bytes=contender.bytes, loading=process.loaded["loading"],
            peak=self._peaks[name], prefill=spreads["prefill"], decode=spreads["decode"],
        )  # fmt: skip


def _vocabulary(network: Network) -> int:
    return min((site.shape[0] for site in network.sites if site.role == "embedding"), default=2)


def _check_room(network: Network, tokens: int) -> None:
    longest = network.source.config.get("max_position_embeddings") or network.source.config.get("n_positions")
    if isinstance(longest, int) and tokens > longest:
        raise InvalidMethod(
            f"{tokens} tokens, and the model has {longest} positions", expected="no more than that",
            mend="--prompt and --tokens together must fit", site=str(network.source.path),
        )  # fmt: skip
