"""One engine in a process of its own, which waits until it is asked: see `export/probes/loop.py`."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pennyweight
from pennyweight.errors import EngineFailed
from pennyweight.export.probes import LOOP
from pennyweight.flow.bench.contenders import Contender

MARK = "pennyweight "
LINES = 6  # of what an engine said before it failed
PATIENCE = 10  # seconds to end after it was told that nothing more is asked


class Process:
    """An engine that is loaded.

    Args:
        running: its process.
        said: its stderr.
    """

    def __init__(self, running: subprocess.Popen[str], said: IO[str]) -> None:
        self._running, self._said = running, said
        self.loaded = self._answer()

    def ask(self, batch: int, prompt: int, written: int) -> Mapping[str, Any]:
        """Seconds to read prompts and to write after them.

        Raises:
            EngineFailed: it cannot.
        """
        assert self._running.stdin is not None
        try:
            self._running.stdin.write(json.dumps({"batch": batch, "prompt": prompt, "written": written}) + "\n")
            self._running.stdin.flush()
        except OSError as error:
            raise EngineFailed(self._end(), site="bench") from error
        return self._answer()

    def _answer(self) -> Mapping[str, Any]:
        assert self._running.stdout is not None
        for line in self._running.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                if "error" in found:
                    raise EngineFailed(found["error"], site="bench")
                return found
        raise EngineFailed(self._end(), site="bench")

    def _end(self) -> str:
        self._running.wait()
        self._said.seek(0)
        said = "\n".join(self._said.read().strip().splitlines()[-LINES:])
        if self._running.returncode < 0:
            said = f"it was ended by signal {-self._running.returncode}\n{said}".strip()
        return said or f"it ended with code {self._running.returncode}"


@contextmanager
def started(contender: Contender, options: Mapping[str, Any]) -> Iterator[Process]:
    """A process that has loaded its files; it is ended with the context.

    Raises:
        EngineFailed: it could not load them.
    """
    command = [contender.python, LOOP, contender.probe, contender.files]
    root = Path(pennyweight.__file__).resolve().parents[1]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": str(options["threads"]), "PYTHONPATH": path}
    given = json.dumps({**options, **contender.options})
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        try:
            running = subprocess.Popen(
                [*map(str, command), given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
                env=environment,
            )  # fmt: skip
        except OSError as error:
            raise EngineFailed(f"{contender.python}: {error.strerror}", site="bench") from error
        try:
            yield Process(running, said)
        finally:
            _close(running)


def _close(running: subprocess.Popen[str]) -> None:
    assert running.stdin is not None
    assert running.stdout is not None
    try:
        running.stdin.close()
        running.wait(PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        running.kill()
        running.wait()
    running.stdout.close()
