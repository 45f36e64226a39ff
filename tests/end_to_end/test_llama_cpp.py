"""The main job for llama.cpp: one certified file, whose reader shares nothing with what wrote it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from end_to_end import world
from end_to_end.world import Nursery

from pennyweight.budget import Budget
from pennyweight.cli import main
from pennyweight.errors import InfeasibleBudget, InvalidModel, InvalidPlan, VerificationFailed
from pennyweight.flow.certifying.pair import Judging, certify_pair
from pennyweight.flow.compress import compress
from pennyweight.flow.delivery import Outcome
from pennyweight.flow.load import load
from pennyweight.flow.verify import verify
from pennyweight.plan import Plan

gguf = pytest.importorskip("gguf", reason="the gguf extra is not installed")
OUTCOMES = ["for_llama_cpp", "gguf_to_gguf"]


@pytest.fixture(params=OUTCOMES)
def each(request: pytest.FixtureRequest) -> Outcome:
    made: Outcome = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def plan_of(outcome: Outcome) -> Plan:
    return Plan.from_toml((outcome.out / "pennyweight" / "plan.toml").read_text())


def record(outcome: Outcome, name: str) -> Any:
    return json.loads((outcome.out / "pennyweight" / name).read_text())


def test_one_file_and_its_certificate(each: Outcome) -> None:
    assert [path.name for path in sorted(each.out.iterdir())] == ["model.gguf", "pennyweight"]
    assert verify(each.out).certificate == each.certificate
    assert each.holds
    assert each.summary["engine"] == "llama.cpp"


def test_sizes_are_exact(each: Outcome) -> None:
    """By the gguf package, which says where the data begins."""
    path = each.out / "model.gguf"
    reader = gguf.GGUFReader(path)
    data = path.stat().st_size - reader.data_offset
    assert plan_of(each).bytes == data == record(each, "accounting.json")["written"]
    assert each.summary["bytes_after"] == path.stat().st_size
    padded = sum(-(-int(tensor.n_bytes) // 32) * 32 for tensor in reader.tensors)
    assert padded == data
    assert all(tensor.data_offset % 32 == 0 for tensor in reader.tensors)


def test_the_file_holds_what_the_plan_says(each: Outcome) -> None:
    network, plan = load(each.out), plan_of(each)
    assert plan.steps
    for site in network.sites:
        stored = network.source.tensors[network.stored_name(site.parameter)].dtype
        if site.name in plan.steps:
            assert stored == plan.steps[site.name].stages[0].format.label()
    if each.summary["source"].startswith("weights already"):
        return
    assert {plan.steps[name].stages[0].format.name for name in plan.steps} == {"gguf_legacy", "gguf_k"}


def test_what_is_not_compressed_of_a_gguf_file_is_copied(gguf_file: Path, gguf_to_gguf: Outcome) -> None:
    before, after = (gguf.GGUFReader(path) for path in (gguf_file, gguf_to_gguf.out / "model.gguf"))
    stored = {tensor.name: tensor for tensor in after.tensors}
    same = [t for t in before.tensors if np.array_equal(t.data, stored[t.name].data)]
    rows = {row["name"]: row for row in record(gguf_to_gguf, "accounting.json")["rows"]}
    kept = {str(name) for name, row in rows.items() if row["action"] == "kept"}
    source: Any = load(gguf_file).source
    assert {source._parameter(tensor.name) for tensor in same} == kept
    assert "model.norm.weight" in kept
    assert any(rows[name]["reason"].endswith("byte for byte") for name in kept)
    left = [row for row in record(gguf_to_gguf, "ledger.json") if row["intended"] == "dense"]
    assert left
    assert {row["actual"] for row in left} <= {"q4_1, as it was", "q8_0, as it was"}
    assert len(same) < len(before.tensors)
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.pre", "tokenizer.ggml.bos_token_id"):
        ours, theirs = (reader.fields[key].contents() for reader in (after, before))
        assert ours == theirs


def test_a_flipped_bit_is_seen(for_llama_cpp: Outcome, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in for_llama_cpp.out.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(for_llama_cpp.out)).parent.mkdir(exist_ok=True)
            (copy / path.relative_to(for_llama_cpp.out)).write_bytes(path.read_bytes())
    verify(copy)
    data = bytearray((copy / "model.gguf").read_bytes())
    data[-1000] ^= 1
    (copy / "model.gguf").write_bytes(data)
    with pytest.raises(VerificationFailed, match="changed since it was sealed"):
        verify(copy)


def test_measure_report_inspect(
    for_llama_cpp: Outcome, splitting: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    small = for_llama_cpp.out
    some = world.write_text(tmp_path / "some.txt", world.documents(8, 3, seed=7))
    code, out, err = run("measure", splitting, small, "--on", some, "--length", "32", "--quiet", "--json")
    assert code == 0, err
    assert json.loads(out)
    code, out, err = run("report", small, "--output", tmp_path / "page.html")
    assert code == 0, err
    assert "llama-cli -m" in (tmp_path / "page.html").read_text()
    code, out, err = run("inspect", splitting, "--json")
    assert code == 0, err
    takes = {row["site"]: row["takes"]["llama.cpp"] for row in json.loads(out)["sites"]}
    assert "q4_k" in takes["model.layers.0.mlp.down_proj"]
    assert "q4_0" in takes["model.layers.0.mlp.up_proj"]
    assert takes["lm_head"] == takes["model.embed_tokens"] == ["iq4_nl", "q5_1", "q8_0"]


def test_certify_a_pair(for_llama_cpp: Outcome, splitting: Path, text: Path, tmp_path: Path) -> None:
    made = certify_pair(
        splitting, for_llama_cpp.out, tmp_path / "pair", budgets=[Budget.lose("5%")], on=text,
        judging=Judging(length=world.LENGTH, threads=1),
    )  # fmt: skip
    assert made.holds
    assert verify(made.out)


def test_the_command_line_killed_and_again(
    splitting: Path, text: Path, nursery: Nursery, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """A plan by hand, killed at some changes of files: the same bytes, and never half a file."""
    code, _, err = run(
        "plan", splitting, "--for", "llama.cpp", "--bits", "5", "--calibration", text, *world.OPTIONS, "--json"
    )
    assert code == 0, err
    command = ["compress", str(splitting), "--for", "llama.cpp", "--bits", "9", "--calibration", str(text)]
    command += world.OPTIONS
    quiet, out = tmp_path / "quiet" / "small", tmp_path / "killed" / "small"
    ended = nursery.run([*command, "--out", str(quiet)], count=1)
    assert ended.code == 0, ended.stderr
    _, moved, _ = ended.counts()
    for kill_at in (moved // 2, moved // 3):  # counted from where the one before it stopped
        assert nursery.run([*command, "--out", str(out)], kill_at=kill_at).code == -9
        found = list(out.with_name("small.run").rglob("model.gguf"))
        assert all(path.stat().st_size == (quiet / "model.gguf").stat().st_size for path in found)
    ended = nursery.run([*command, "--out", str(out)])
    assert ended.code == 0, ended.stderr
    assert world.hashes(out) == world.hashes(quiet)


def test_refused_before_any_work(
    splitting: Path, wide: Path, text: Path, tmp_path: Path, for_llama_cpp: Outcome
) -> None:
    settings = world.settings(engine="llama.cpp")
    with pytest.raises(InvalidModel, match="no name for how its tokenizer splits text"):
        compress(wide, tmp_path / "a", budget=Budget.lose("3%"), calibration=text, settings=settings)
    with pytest.raises(InfeasibleBudget, match="no plan"):
        compress(splitting, tmp_path / "b", budget=Budget.fit("100KB"), calibration=text, settings=settings)
    plan = plan_of(for_llama_cpp)
    site = next(iter(plan.steps))
    changed = Plan.from_toml(plan.to_toml().replace(plan.steps[site].label(), "gptq int4 g32 sym"))
    with pytest.raises(InvalidPlan, match="reads the block types of GGUF"):
        compress(splitting, tmp_path / "c", budget=Budget.lose("3%"), calibration=text, plan=changed, settings=settings)
    assert list(tmp_path.iterdir()) == []


def test_the_weights_are_those_that_were_scored(for_llama_cpp: Outcome) -> None:
    """Every matrix, by the gguf package alone."""
    source: Any = load(for_llama_cpp.out).source
    for tensor in gguf.GGUFReader(for_llama_cpp.out / "model.gguf").tensors:
        if "attn_q" in tensor.name or "attn_k" in tensor.name:
            continue  # in another order there
        name = source._parameter(tensor.name)
        expected = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
        assert torch.equal(source.read(name).float(), expected.reshape(source.tensors[name].shape)), name
