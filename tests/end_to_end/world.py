"""What the end-to-end tests work on: a text, tiny models that learnt something from it, and ways to run the program."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from pennyweight.flow.compress import Settings

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 32
# What every run of these tests has in common, as the command line says it and as Python says it.
OPTIONS = ["--length", "32", "--calibration-windows", "32", "--selection-windows", "32", "--threads", "1", "--quiet"]
SETTINGS: Mapping[str, Any] = {
    "length": LENGTH, "calibration_windows": 32, "selection_windows": 32, "fisher_windows": 8, "threads": 1,
}  # fmt: skip
VOLATILE = ("pennyweight/timing.json", "report.html")  # seconds differ from run to run, and the report shows them
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "default",
}  # fmt: skip


def settings(**changes: Any) -> Settings:
    """The settings of OPTIONS."""
    return Settings(**{**SETTINGS, **changes})


def documents(count: int, kilobytes: int, seed: int) -> list[str]:
    """Documents of made-up sentences: words follow words as in a language, and no two documents agree."""
    draw = random.Random(seed)
    syllables = ["ka", "to", "mi", "ren", "sol", "va", "ple", "dor", "ni", "us", "bra", "el"]
    words = ["".join(random.Random(i).choices(syllables, k=1 + i % 3)) for i in range(400)]
    followers = {word: random.Random(word).sample(words, 6) for word in words}
    made = []
    for _ in range(count):
        text, word = "", draw.choice(words)
        while len(text) < 1000 * kilobytes:
            sentence = []
            for _ in range(draw.randint(5, 14)):
                sentence.append(word)
                word = draw.choice(followers[word]) if draw.random() < 0.95 else draw.choice(words)
            text += " ".join(sentence).capitalize() + draw.choice([". ", ". ", "? ", ".\n"])
        made.append(text)
    return made


def write_text(path: Path, parts: list[str]) -> Path:
    """One file, documents between form feeds."""
    path.write_text("\f".join(parts), encoding="utf-8")
    return path


def teach(model: nn.Module, tokenizer: Tokenizer, parts: list[str], *, steps: int = 150) -> None:
    """Train a model a little, so that rounding its weights costs something."""
    ids = torch.tensor(tokenizer.encode("\n".join(parts)).ids)
    generator = torch.Generator().manual_seed(3)
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - LENGTH - 1, (24,), generator=generator)
        batch: Tensor = torch.stack([ids[s : s + LENGTH + 1] for s in starts.tolist()])
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().requires_grad_(False)


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file that must not differ between two runs of one command."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.relative_to(directory).as_posix() not in VOLATILE
    }


def python(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the interpreter of these tests, warm or not, and wait."""
    given = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([sys.executable, *arguments], check=False, **given)


@dataclass(frozen=True)
class Ended:
    """How a process ended: `code` is its exit code, or the signal that killed it with a minus."""

    code: int
    stdout: str
    stderr: str


class Child:
    """One run of the program, forked off the nursery."""

    def __init__(self, nursery: Nursery, pid: int, stdout: Path, stderr: Path) -> None:
        self._nursery, self.pid, self._stdout, self._stderr = nursery, pid, stdout, stderr

    def running(self) -> bool:
        """Whether it still does something (a zombie does not)."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        return state != "Z"

    def signal(self, number: int) -> None:
        """Send a signal; it stays a zombie until `wait`, so the process number cannot be another's."""
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for its end."""
        code = self._nursery.ask({"wait": self.pid})["code"]
        return Ended(code, self._stdout.read_text(), self._stderr.read_text())


class Nursery:
    """A process that has imported everything once, and forks a child for every run: seconds saved, nothing shared."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._count = directory, 0
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))], env=ENVIRONMENT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def start(self, arguments: list[str], **wishes: int) -> Child:
        """Run the program; `wishes` are those of nursery.py."""
        self._count += 1
        stdout, stderr = (self._directory / f"{self._count:03d}.{name}" for name in ("stdout", "stderr"))
        request = {"arguments": arguments, "stdout": str(stdout), "stderr": str(stderr), **wishes}
        return Child(self, self.ask(request)["pid"], stdout, stderr)

    def run(self, arguments: list[str], **wishes: int) -> Ended:
        """Run the program to its end."""
        return self.start(arguments, **wishes).wait()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One line there, one line back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


@contextmanager
def nursery(directory: Path) -> Iterator[Nursery]:
    """A nursery for as long as it is needed."""
    made = Nursery(directory)
    try:
        yield made
    finally:
        made.close()
