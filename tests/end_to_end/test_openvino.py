"""The main job for OpenVINO: a certified directory, which OpenVINO computes as we do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from end_to_end import world

from pennyweight.cli import main
from pennyweight.flow.verify import verify

pytest.importorskip("openvino", reason="the openvino extra is not installed")


def test_a_certified_model(
    trained: Callable[[str], Path], text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, model = tmp_path / "small", trained("tied")
    given = ["--lose", "10%", "--for", "openvino", "--calibration", str(text), "--json"]
    assert main(["compress", str(model), "--out", str(out), *given, *world.OPTIONS]) == 0
    capfd.readouterr()
    names = {"openvino_model.xml", "openvino_model.bin", "config.json", "tokenizer.json"}
    assert {file.name for file in out.iterdir()} >= names
    assert verify(out).certificate is not None
    assert json.loads((out / "pennyweight" / "summary.json").read_text())["engine"] == "openvino"
    assert "int4" in (out / "pennyweight" / "ledger.json").read_text()
    assert main(["check", str(out), "--json", "--windows", "2", "--length", "32"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["loaded"]
    assert found["kl"] < 1e-9
    data = bytearray((out / "openvino_model.bin").read_bytes())
    data[-100] ^= 1
    (out / "openvino_model.bin").write_bytes(data)
    assert main(["verify", str(out)]) == 2
    assert "openvino_model.bin" in capfd.readouterr().err
