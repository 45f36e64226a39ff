"""What compress wrote survives packing: the seal and the certificate hold after it, and the network is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from end_to_end.world import hashes

import pennyweight as pw
from pennyweight.flow.delivery import Outcome
from pennyweight.network.running.run import outputs

pytest.importorskip("zstandard", reason="the container extra is not installed")


def test_an_artifact_is_the_same_artifact_after_it(outcome: Outcome, tmp_path: Path) -> None:
    packed = pw.pack(outcome.out, tmp_path / "small.pwpack")
    restored = pw.unpack(packed.out)
    assert restored.out == tmp_path / "small"
    assert hashes(restored.out) == hashes(outcome.out)
    assert pw.verify(restored.out).certificate == pw.verify(outcome.out).certificate
    assert packed.after < packed.before
    assert outputs(pw.load(restored.out)).equal(outputs(pw.load(outcome.out)))


def test_a_gguf_file_is_the_same_file_after_it(gguf_file: Path, tmp_path: Path) -> None:
    packed = pw.pack(gguf_file, tmp_path / "tiny.gguf.pwpack")
    assert pw.unpack(packed.out).out.read_bytes() == gguf_file.read_bytes()
    assert packed.kinds["codes"].size + packed.kinds["exponents"].size > 0
