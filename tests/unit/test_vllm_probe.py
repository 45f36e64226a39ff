"""The program that runs vLLM, with a stub in its place: which logits it keeps, and how it writes a token at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pennyweight.export.engines import find
from pennyweight.export.probes import FOLDER
from pennyweight.flow.bench.contenders import Contender
from pennyweight.flow.bench.process import started

# An engine whose logits are the token, a place behind it for the row that is sampled from; it says what it is asked.
VLLM = """
import os, types
import torch
__version__ = "0 (a stub)"
assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
SamplingParams = types.SimpleNamespace

class Model:
    def compute_logits(self, ids):
        return torch.nn.functional.one_hot(torch.as_tensor(ids), 11).to(torch.bfloat16)

class Engine:
    def __init__(self):
        self.running = {}
    def add_request(self, name, prompt, settings):
        self.running[name] = 0
    def abort_request(self, names):
        for name in names:
            del self.running[name]
    def step(self):
        first = min(self.running.values())
        found = []
        for name, written in self.running.items():  # a prompt is read in a step of its own
            if written == first:
                self.running[name] += 1
                tokens = [0] * self.running[name]
                found.append(types.SimpleNamespace(request_id=name, outputs=[types.SimpleNamespace(token_ids=tokens)]))
                if not first:
                    break
        return found

class LLM:
    def __init__(self, path, **options):
        assert options["skip_tokenizer_init"] and not options["enable_prefix_caching"]
        self.model, self.llm_engine = Model(), Engine()
    def apply_model(self, function):
        return [function(self.model)]
    def generate(self, prompts, settings, use_tqdm):
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            if getattr(settings, "prompt_logprobs", None) is not None:
                self.model.compute_logits(ids[-1:])  # what is sampled from may come first
                self.model.compute_logits(ids[:-1])
            else:
                for _ in range(settings.max_tokens):
                    self.model.compute_logits(ids[-1:])
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter in which `import vllm` finds the stub."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "vllm.py").write_text(VLLM)
    found = tmp_path / "python"
    found.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path / "stub"}" exec "{sys.executable}" "$@"\n')
    found.chmod(0o755)
    return found


def test_every_position_has_its_logits(python: Path, tmp_path: Path) -> None:
    windows = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], dtype=np.int32)
    np.save(tmp_path / "tokens.npy", windows)
    probe = str(FOLDER / find("vllm").probe)
    subprocess.run([str(python), probe, "files", str(tmp_path / "tokens.npy"), str(tmp_path / "out.npz")], check=True)
    with np.load(tmp_path / "out.npz") as found:
        assert found["logits"].shape == (2, 5, 11)
        assert found["logits"].dtype == np.float32
        assert (found["logits"].argmax(-1) == windows).all()
        assert int(found["decoded"]) == 5
        assert str(found["version"]) == "vllm 0 (a stub)"


def test_texts_are_read_and_then_written_together(python: Path, tmp_path: Path) -> None:
    row = find("vllm")
    contender = Contender(name="x", probe=FOLDER / row.probe, python=python, files=tmp_path, bytes=0)
    with started(contender, {"threads": 1, "batch": 3, "length": 12, "vocabulary": 7}) as process:
        for _ in range(2):
            answer = process.ask(3, 4, 2)
            assert answer["prefill"] > 0
            assert answer["decode"] > 0
