"""The main job for onnxruntime: a certified directory, which onnxruntime computes as we do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from end_to_end import world

from pennyweight.cli import main
from pennyweight.flow.verify import verify

pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime")


def test_a_certified_program(
    trained: Callable[[str], Path], text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, model = tmp_path / "small", trained("tied")
    given = ["--lose", "10%", "--for", "onnxruntime", "--calibration", str(text), "--json"]
    assert main(["compress", str(model), "--out", str(out), *given, *world.OPTIONS]) == 0
    capfd.readouterr()
    assert {file.name for file in out.iterdir()} >= {"model.onnx", "model.onnx.data", "config.json", "tokenizer.json"}
    assert verify(out).certificate is not None
    summary = json.loads((out / "pennyweight" / "summary.json").read_text())
    assert summary["engine"] == "onnxruntime"
    ledger = (out / "pennyweight" / "ledger.json").read_text()
    assert "int4" in ledger
    assert main(["check", str(out), "--json", "--windows", "2", "--length", "32"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["loaded"]
    assert found["kl"] < 1e-9
    data = bytearray((out / "model.onnx.data").read_bytes())
    data[-100] ^= 1
    (out / "model.onnx.data").write_bytes(data)
    assert main(["verify", str(out)]) == 2
    assert "model.onnx.data" in capfd.readouterr().err
