"""What the end-to-end tests work on: a text, tiny models that learnt something from it, and ways to run the program."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from torch import Tensor, nn

from pennyweight.flow.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 32
# What every run of these tests has in common, as the command line says it and as Python says it.
OPTIONS = ["--length", "32", "--calibration-windows", "32", "--selection-windows", "32", "--threads", "1", "--quiet"]
SETTINGS: Mapping[str, Any] = {
    "length": LENGTH, "calibration_windows": 32, "selection_windows": 32, "fisher_windows": 8, "threads": 1,
}  # fmt: skip
VOLATILE = ("pennyweight/timing.json", "report.html")  # seconds differ from run to run, and the report shows them
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "default",
}  # fmt: skip


def environment() -> dict[str, str]:
    """Of a program started by a test; openings of texts are remembered where those of the test are."""
    return {**os.environ, **ENVIRONMENT}


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


def write_quiz(path: Path, count: int, seed: int = 5) -> Path:
    """Which of two endings belongs to the beginning of a sentence: something the tiny models know a little of."""
    sentences = [s.strip() for part in documents(20, 4, seed=seed) for s in re.split(r"[.?]\s", part)]
    usable = list(dict.fromkeys(s for s in sentences if len(s.split()) >= 6))
    draw, records = random.Random(seed), []
    for number, sentence in enumerate(usable[:count]):
        begin, end = sentence.rsplit(" ", 2)[0], " ".join(sentence.rsplit(" ", 2)[1:])
        wrong = "".join(draw.sample(end, len(end))).strip() or "ka"
        choices = [end, wrong + "x"] if draw.random() < 0.5 else [wrong + "x", end]
        records.append(
            {"question": begin, "choices": choices, "answer": choices.index(end), "topic": "ab"[number % 2]}
        )  # fmt: skip
    assert len(records) == count
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
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


def write_gguf(path: Path) -> Path:
    """A random llama of two blocks as llama.cpp would store it, with one token a byte."""
    import gguf
    import numpy as np

    hidden, inner, heads, kv_heads, blocks = 64, 128, 4, 2, 2
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", *alphabet, "ka"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["k a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    kv = hidden // heads * kv_heads
    block = {
        "attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, hidden),
        "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner), "attn_norm": (hidden,),
        "ffn_norm": (hidden,),
    }  # fmt: skip
    shapes = {"token_embd": (len(tokens), hidden), "output_norm": (hidden,)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(blocks) for name, shape in block.items()}
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        weight = (np.ones(shape) if len(shape) == 1 else 0.15 * generator.normal(size=shape)).astype(np.float32)
        kind = gguf.GGMLQuantizationType["F32" if len(shape) == 1 else "Q8_0" if name == "token_embd" else "Q4_1"]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file that must not differ between two runs of one command."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.relative_to(directory).as_posix() not in VOLATILE
    }


def python(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the interpreter of these tests, warm or not, and wait."""
    given = {"env": environment(), "capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([sys.executable, *arguments], check=False, **given)


@dataclass(frozen=True)
class Ended:
    """How a process ended: `code` is its exit code, or the signal that killed it with a minus."""

    code: int
    stdout: str
    stderr: str
    seconds: float = 0.0

    def counts(self) -> tuple[int, int, int]:
        """What `count` asked for: files opened for writing, the change that moved the artifact, all changes."""
        opened, moved, changes = map(int, self.stderr.rpartition("changes: ")[2].split())
        return opened, moved, changes


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

    def spend(self, seconds: float) -> None:
        """Wait until it spent so many seconds of the processor, or ended; other processes do not count."""
        while self.running():
            if int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) >= 1e9 * seconds:
                return
            time.sleep(0.002)

    def signal(self, number: int) -> None:
        """Send a signal; it stays a zombie until `wait`, so the process number cannot be another's."""
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for its end."""
        answer = self._nursery.ask({"wait": self.pid})
        return Ended(answer["code"], self._stdout.read_text(), self._stderr.read_text(), answer["seconds"])


class Nursery:
    """A process that has imported everything once, and forks a child for every run: seconds saved, nothing shared."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._count = directory, 0
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))], env=environment(), text=True,
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
