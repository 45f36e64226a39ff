"""An artifact with its certificate, in other files: what was claimed holds for the same numbers, and for no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pennyweight.cli import main
from pennyweight.errors import VerificationFailed
from pennyweight.flow import artifact as records
from pennyweight.flow.converting.convert import Settings, convert
from pennyweight.flow.delivery import Outcome
from pennyweight.flow.load import load
from pennyweight.flow.verify import verify
from pennyweight.numerics.hashing import of_file

QUICK = Settings(windows=2, length=24)


@pytest.fixture(scope="module")
def carried(outcome: Outcome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main artifact as floats: nothing can fail to fit."""
    out = tmp_path_factory.mktemp("carried") / "floats"
    done = convert(outcome.out, out, to="dense", settings=QUICK, sealed=True)
    assert done.exact
    assert done.certificate == "carried over"
    assert done.statement == outcome.certificate.statement
    return out


def test_a_certificate_is_carried_to_the_same_numbers(outcome: Outcome, carried: Path) -> None:
    before, after = load(outcome.out).source, load(carried).source
    assert all(torch.equal(before.read(name).float(), after.read(name).float()) for name in before.tensors)
    told = json.loads((carried / "pennyweight" / "conversion.json").read_text())
    assert told["certificate"]["sha256"] == of_file(outcome.out / "pennyweight" / "certificate.json")
    assert told["certificate"]["weights"] == records.weights_hash(outcome.out)
    again = verify(carried)
    assert again.certificate == verify(outcome.out).certificate
    assert again.units > 0


def test_gptq_holds_it_too_and_it_is_carried_twice(carried: Path, outcome: Outcome, tmp_path: Path) -> None:
    done = convert(outcome.out, tmp_path / "gptq", to="gptq", settings=QUICK)
    assert done.exact, [row for row in done.rows if not row.exact]
    assert verify(tmp_path / "gptq").certificate.holds
    twice = convert(tmp_path / "gptq", tmp_path / "floats", to="dense", settings=QUICK)
    assert twice.certificate == "carried over"
    first, second = (json.loads((d / "pennyweight" / "conversion.json").read_text()) for d in (carried, twice.out))
    assert first["numbers"] == second["numbers"]
    assert verify(twice.out).certificate == verify(carried).certificate


def damage_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def damage_certificate(directory: Path) -> None:
    path = directory / "pennyweight" / "source" / "pennyweight" / "certificate.json"
    path.write_bytes(path.read_bytes().replace(b'"holds":true', b'"holds":false', 1))


def damage_record(directory: Path) -> None:
    path = directory / "pennyweight" / "conversion.json"
    path.write_bytes(path.read_bytes().replace(b'"carried":true', b'"carried":false'))


@pytest.mark.parametrize("damage", [damage_weights, damage_certificate, damage_record])
@pytest.mark.parametrize("sealed_again", [False, True])
def test_what_was_changed_is_found(damage: object, sealed_again: bool, carried: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(carried, tmp_path / "copy"))
    damage(copy)  # type: ignore[operator]
    if sealed_again:
        records.seal(copy)
    says = "numbers|does not follow|no certificate" if sealed_again else "changed since it was sealed"
    with pytest.raises(VerificationFailed, match=says):
        verify(copy)


def test_a_damaged_artifact_is_not_exported(artifact: Path, tmp_path: Path) -> None:
    damage_weights(artifact)
    with pytest.raises(VerificationFailed, match="changed since"):
        convert(artifact, tmp_path / "out", to="dense", sealed=True)
    assert not (tmp_path / "out").exists()


def test_changed_files_are_certified_again(
    outcome: Outcome, llama: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(outcome.out), str(out), "--to", "dense", "--dtype", "bfloat16", "--on", str(text)]
    code = main([*arguments, "--reference", str(llama), "--length", "32", "--windows", "4", "--quiet", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["exact"] is False
    assert 0 < told["kl"] < 0.01
    assert code == (0 if told["certificate"] == "certified again" else 1)
    assert told["statement"]
    certificate = out.with_name("out.certificate")
    assert verify(certificate).certificate.holds == (code == 0)
    evidence = json.loads((certificate / "pennyweight" / "evidence.json").read_text())
    assert evidence["weights"] == load(out).source.fingerprint
    assert [budget["at_most"] for budget in evidence["budgets"]] == [0.03]
    with pytest.raises(VerificationFailed, match="no certificate was carried over"):
        verify(out)


def test_llama_cpp_files_leave_for_others(for_llama_cpp: Outcome, tmp_path: Path) -> None:
    done = convert(for_llama_cpp.out, tmp_path / "floats", to="dense", settings=QUICK, sealed=True)
    assert done.certificate == "carried over"
    assert verify(tmp_path / "floats").certificate == for_llama_cpp.certificate
