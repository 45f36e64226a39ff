"""`verify` sees every change of every sealed byte, and claims that do not follow from their evidence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from end_to_end import world

from pennyweight.errors import VerificationFailed
from pennyweight.flow import artifact as artifacts
from pennyweight.flow.delivery import Outcome
from pennyweight.flow.verify import verify
from pennyweight.numerics.hashing import canonical, of_file, of_value


def test_untouched(outcome: Outcome, for_vllm: Outcome, by_bits: Outcome, from_gguf: Outcome) -> None:
    for made in (outcome, for_vllm, by_bits, from_gguf):
        result = verify(made.out)
        assert result.files == len(world.hashes(made.out)) - 1, "all but the seal itself"
        assert result.certificate == made.certificate
        assert result.windows == made.certificate.scored


def test_a_copy_elsewhere(artifact: Path) -> None:
    verify(artifact)
    moved = shutil.move(artifact, artifact.with_name("another name"))
    (Path(moved) / "report.html").write_text("a page")
    (Path(moved) / "pennyweight" / "timing.json").write_text("nothing")
    verify(moved)


def test_any_flipped_byte(artifact: Path) -> None:
    names = list(world.hashes(artifact))
    assert "pennyweight/seal.json" in names
    undetected = []
    for name in names:
        path = artifact / name
        whole = path.read_bytes()
        for position in sorted({0, 1, len(whole) // 3, len(whole) // 2, 2 * len(whole) // 3, len(whole) - 1}):
            for mask in (1, 0x20, 0x80):  # a digit, the case of a letter, and no ASCII any more
                damaged = bytearray(whole)
                damaged[position] ^= mask
                path.write_bytes(damaged)
                try:
                    verify(artifact)
                    undetected.append((name, position, mask))
                except VerificationFailed:
                    pass
        path.write_bytes(whole)
    assert not undetected
    verify(artifact)


def test_every_byte_of_the_seal_and_the_certificate(artifact: Path) -> None:
    for name in ("seal.json", "certificate.json"):
        path = artifact / "pennyweight" / name
        whole = path.read_bytes()
        for position in range(0, len(whole), 3):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 2]) + whole[position + 1 :])
            with pytest.raises(VerificationFailed):
                verify(artifact)
        path.write_bytes(whole)


@pytest.mark.parametrize("change", ["cut", "longer", "empty", "removed"])
def test_files_of_another_length(change: str, artifact: Path) -> None:
    for name in world.hashes(artifact):
        path = artifact / name
        whole = path.read_bytes()
        if change == "removed":
            path.unlink()
        else:
            path.write_bytes({"cut": whole[:-1], "longer": whole + b"\n", "empty": b""}[change])
        with pytest.raises(VerificationFailed):
            verify(artifact)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["added.txt", "model-00002.safetensors", "pennyweight/extra.json", "deep/er/file"])
def test_an_added_file(name: str, artifact: Path) -> None:
    (artifact / name).parent.mkdir(parents=True, exist_ok=True)
    (artifact / name).write_text("x")
    with pytest.raises(VerificationFailed, match="not sealed"):
        verify(artifact)


def test_a_link_instead_of_a_file(artifact: Path) -> None:
    (artifact / "tokenizer.json").rename(artifact.parent / "tokenizer.json")
    (artifact / "tokenizer.json").symlink_to(artifact.parent / "gone.json")
    with pytest.raises(VerificationFailed):
        verify(artifact)


def bound(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["bound"] *= 0.5


def bound_slightly(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["bound"] -= 1e-6


def statement(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["statement"] = c["statement"].replace("5,", "9,", 1) + " "


def verdict(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["verdict"] = "exact"


def estimate(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["estimate"] -= 1e-12


def margin(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["budget"]["at_most"] = 0.02


def margin_and_terms(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["budget"]["at_most"] = 0.02
    c["terms"]["margin"] = 0.0198026


def confidence(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["budget"]["confidence"] = 0.999


def population(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["terms"]["population"] -= 1


def most(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["terms"]["n_max"] += 1


def scope(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["scope"] = c["scope"].replace("text.txt", "WikiText-2")


def scored(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["scored"] += 100


def a_score(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["certification"]["metrics"]["perplexity"]["compressed"][5] -= 0.01


def all_scores(c: dict[str, Any], e: dict[str, Any]) -> None:
    columns = e["certification"]["metrics"]["perplexity"]
    columns["compressed"] = [value - 0.001 for value in columns["compressed"]]


def a_pilot_score(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["selection"]["metrics"]["perplexity"]["compressed"][0] += 0.5


def reordered(c: dict[str, Any], e: dict[str, Any]) -> None:
    certification = e["certification"]
    for columns in [certification, *certification["metrics"].values()]:
        for name, values in columns.items():
            if isinstance(values, list):
                columns[name] = values[1::-1] + values[2:]


def left_out(c: dict[str, Any], e: dict[str, Any]) -> None:
    certification = e["certification"]
    for columns in [certification, *certification["metrics"].values()]:
        for name, values in columns.items():
            if isinstance(values, list):
                columns[name] = values[:-1]


def repeated(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["certification"]["windows"][1] = e["certification"]["windows"][0]


def salted(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["salt"] += "another"


def no_salt(c: dict[str, Any], e: dict[str, Any]) -> None:
    del e["salt"]


def other_artifact(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["artifact"] = "0" * 64


def other_plan(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["plan"] = "0" * 64


def other_text(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["certification"] = e["certification"]["fingerprint"] = "0" * 64


def other_model(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["model"] = "0" * 64


def other_code(c: dict[str, Any], e: dict[str, Any]) -> None:
    c["fingerprints"]["code"] = "0" * 64


def not_a_number(c: dict[str, Any], e: dict[str, Any]) -> None:
    e["certification"]["metrics"]["perplexity"]["compressed"][3] = None


def no_perplexity(c: dict[str, Any], e: dict[str, Any]) -> None:
    del e["certification"]["metrics"]["perplexity"]


def nothing(c: dict[str, Any], e: dict[str, Any]) -> None:
    e.clear()


Edit = Callable[[dict[str, Any], dict[str, Any]], None]
EDITS: list[Edit] = [
    bound, bound_slightly, statement, verdict, estimate, margin, margin_and_terms, confidence, population, most, scope,
    scored, a_score, all_scores, a_pilot_score, reordered, left_out, repeated, salted, no_salt, other_artifact,
    other_plan, other_text, other_model, other_code, not_a_number, no_perplexity, nothing,
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_edited_and_sealed_again(edit: Edit, artifact: Path) -> None:
    records = [artifacts.read_record(artifact, name) for name in ("certificate.json", "evidence.json")]
    before = json.dumps(records)
    edit(*records)
    assert json.dumps(records) != before
    for name, value in zip(("certificate.json", "evidence.json"), records, strict=True):
        artifacts.write_record(artifact, name, value)
    artifacts.seal(artifact)
    with pytest.raises(VerificationFailed):
        verify(artifact)


def test_sealing_again_changes_nothing_by_itself(artifact: Path) -> None:
    before = of_file(artifact / "pennyweight" / "seal.json")
    artifacts.seal(artifact)
    assert of_file(artifact / "pennyweight" / "seal.json") == before
    verify(artifact)


def test_another_model_under_the_certificate(artifact: Path, outcome: Outcome) -> None:
    """The weights are changed, and everything that names their hash is changed along."""
    path = artifact / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    certificate = artifacts.read_record(artifact, "certificate.json")
    certificate["fingerprints"]["artifact"] = artifacts.model_hash(artifact)
    certificate["fingerprints"]["weights"] = artifacts.weights_hash(artifact)
    artifacts.write_record(artifact, "certificate.json", certificate)
    artifacts.seal(artifact)
    with pytest.raises(VerificationFailed, match="order"):
        verify(artifact)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("summary.json", "holds", False), ("summary.json", "bytes_after", 10), ("summary.json", "bound", 0.001),
        ("summary.json", "statement", "Nothing was lost."), ("summary.json", "rise", 0.0),
        ("summary.json", "perplexity_after", 2.0), ("summary.json", "agreement", 1.0), ("summary.json", "kl", 0.0),
        ("run.json", "model", "0" * 64), ("run.json", "code", "0" * 64),
    ],
)  # fmt: skip
def test_what_the_report_shows_agrees_with_the_certificate(name: str, field: str, value: Any, artifact: Path) -> None:
    """The table and the page are made of these: they may not say anything else than the certificate."""
    record = artifacts.read_record(artifact, name)
    assert record[field] != value
    artifacts.write_record(artifact, name, {**record, field: value})
    artifacts.seal(artifact)
    with pytest.raises(VerificationFailed):
        verify(artifact)


@pytest.mark.parametrize(
    "seal", [b"{}", b"[]", b"null", b'{"sha256":[]}', b'{"sha256":{}}', b'{"sha256":null}', b"\xff"]
)
def test_a_seal_that_is_none(seal: bytes, artifact: Path) -> None:
    (artifact / "pennyweight" / "seal.json").write_bytes(seal)
    with pytest.raises(VerificationFailed):
        verify(artifact)


@pytest.mark.parametrize("content", [[], None, 5, "x", {"selection": 1, "certification": []}, {"selection": {}}])
def test_evidence_that_is_none(content: Any, artifact: Path) -> None:
    artifacts.write_record(artifact, "evidence.json", content)
    artifacts.seal(artifact)
    with pytest.raises(VerificationFailed):
        verify(artifact)


def test_a_plan_that_is_none(artifact: Path) -> None:
    (artifact / "pennyweight" / "plan.toml").write_bytes(b"\xff\xfe not a plan")
    artifacts.seal(artifact)
    with pytest.raises(VerificationFailed):
        verify(artifact)


@pytest.mark.parametrize("name", ["certificate.json", "evidence.json", "plan.toml"])
def test_a_record_that_is_missing(name: str, artifact: Path) -> None:
    (artifact / "pennyweight" / name).unlink()
    artifacts.seal(artifact)
    with pytest.raises(VerificationFailed):
        verify(artifact)


def test_hashes_are_what_they_say(outcome: Outcome) -> None:
    certificate = msgspec.json.decode((outcome.out / "pennyweight/certificate.json").read_bytes())
    plan = (outcome.out / "pennyweight/plan.toml").read_text()
    assert certificate["fingerprints"]["plan"] == of_value(plan)
    raw = (outcome.out / "pennyweight/evidence.json").read_bytes()
    assert canonical(msgspec.json.decode(raw)) == raw
