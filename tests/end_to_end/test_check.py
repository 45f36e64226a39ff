"""Files in their engine: loaded, compared, and told apart from files that are damaged or read wrongly."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from end_to_end import world
from end_to_end.world import Nursery

from pennyweight.cli import main
from pennyweight.errors import MissingExtra, MissingFile, UnknownName
from pennyweight.flow.check import check
from pennyweight.flow.delivery import Outcome

SMALL = {"windows": 2, "length": 24}
# A llama.cpp of three lines: it reads the file with our own loader, and changes what it is told to.
STUB = """
import sys
sys.path.insert(0, {root!r})
import numpy as np, torch
from pennyweight.flow.load import load
from pennyweight.network.running.run import materialised

__version__ = "0.0 (a stub)"

class Llama:
    def __init__(self, path, **_):
        self.network = load(path)
        self.context = materialised(self.network, exact=False, dtype=torch.float32)
        self.model = self.context.__enter__()
        self.seen = []
    def reset(self):
        self.seen = []
    def eval(self, tokens):
        self.seen += tokens
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([self.seen]), use_cache=False).logits[0]
        self.scores = ({change}).numpy()
"""


@pytest.fixture
def gguf(for_llama_cpp: Outcome) -> Path:
    return for_llama_cpp.out


def stub(directory: Path, change: str) -> Path:
    """An interpreter in which `import llama_cpp` finds a stub."""
    (directory / "llama_cpp.py").write_text(STUB.format(root=str(world.ROOT), change=change))
    script = directory / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{directory}" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return script


def test_transformers_computes_what_we_do(outcome: Outcome, text: Path, nursery: Nursery) -> None:
    pytest.importorskip("compressed_tensors")
    found = check(outcome.out, text=text, **SMALL)  # type: ignore[arg-type]
    assert found.loaded, found.said
    assert found.kl < 1e-6
    assert found.agreement == 1.0
    assert found.perplexity == pytest.approx(found.ours, rel=1e-5)
    assert 1 < found.ours < 256
    assert found.positions == 48
    assert found.prefill > 0
    assert found.decode > 0
    assert "compressed-tensors" in found.version
    ended = nursery.run(["check", str(outcome.out), "--on", str(text), "--windows", "1", "--length", "16", "--json"])
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["holds"] is True


def test_a_damaged_file_is_not_loaded(outcome: Outcome, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    broken = tmp_path / "broken"
    shutil.copytree(outcome.out, broken)
    config = json.loads((broken / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["no_such_field"] = 1
    (broken / "config.json").write_text(json.dumps(config))
    found = check(broken, text=text, **SMALL)  # type: ignore[arg-type]
    assert not found.loaded
    assert "no_such_field" in found.said
    assert not found.holds()
    arguments = ["check", str(broken), "--on", str(text), "--windows", "1", "--length", "16", "--quiet"]
    assert main(arguments) == 1


def test_an_engine_that_reads_the_file_otherwise_is_found_out(
    gguf: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, change, holds in (("same", "logits", True), ("other", "logits.roll(1, -1)", False)):
        folder = tmp_path / name
        folder.mkdir()
        python = stub(folder, change)
        found = check(gguf, python=python, text=text, **SMALL)  # type: ignore[arg-type]
        assert found.loaded, found.said
        assert found.engine == "llama.cpp"
        assert found.holds() is holds
        arguments = ["check", str(gguf / "model.gguf"), "--python", str(python), "--on", str(text), "--windows", "1"]
        assert main([*arguments, "--length", "16", "--quiet"]) == (0 if holds else 1)
        said = capsys.readouterr().out
        assert ("something else than what was certified" in said) is not holds


def test_an_engine_that_fails_says_why(gguf: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    python = stub(tmp_path / "bad", "int('no such tensor type')")
    found = check(gguf, python=python, text=text, **SMALL)  # type: ignore[arg-type]
    assert not found.loaded
    assert "no such tensor type" in found.said
    nothing = check(gguf, python=tmp_path / "no-python", text=text, **SMALL)  # type: ignore[arg-type]
    assert not nothing.loaded
    assert "No such file" in nothing.said


def test_what_is_missing_is_said_before_any_work(gguf: Path, outcome: Outcome, text: Path) -> None:
    with pytest.raises(MissingExtra) as error:
        check(gguf, text=text)
    assert "llama-cpp-python==" in error.value.expected
    assert "--allow-network" in error.value.mend
    with pytest.raises(UnknownName, match="pytorch cannot be run"):
        check(outcome.out, engine="pytorch")
    with pytest.raises(MissingFile, match="no GGUF file"):
        check(outcome.out, engine="llama.cpp")
