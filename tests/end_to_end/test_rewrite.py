"""Rewriting from the command line: a checkpoint any tool loads, a proof of it, and compression in another basis."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from end_to_end import world
from end_to_end.world import Nursery
from torch import Tensor

from pennyweight.cli import main
from pennyweight.cli.arguments import names
from pennyweight.cli.inspection import grouped
from pennyweight.errors import InvalidOutput, InvalidPlan, VerificationFailed
from pennyweight.flow import artifact
from pennyweight.flow import rewrite as rewriting
from pennyweight.flow.journal import Journal
from pennyweight.flow.load import load
from pennyweight.flow.prove import prove
from pennyweight.flow.save import save
from pennyweight.flow.steps import apply, sample
from pennyweight.flow.verify import verify
from pennyweight.network.finding.trace import network_of
from pennyweight.network.running.run import passes as run_network
from pennyweight.plan import Plan

Run = Callable[..., tuple[int, str, str]]
BASIS = "untie,fold_norms,hadamard"
COMPRESS = ["--lose", "5%", "--rewrite", BASIS, *world.OPTIONS]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def logits(directory: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        found: Tensor = model(torch.arange(40)[None]).logits
    return found


# Saving and proving


def test_rewrite_and_prove(trained: Callable[[str], Path], text: Path, tmp_path: Path, run: Run) -> None:
    model, out = trained("tied"), tmp_path / "turned"
    code, printed, err = run(
        "rewrite", model, "--with", "untie, fold_norms,smoothquant(alpha=0.4),hadamard", "--out", out,
        "--calibration", text, "--length", "32", "--calibration-windows", "8", "--json", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    value = json.loads(printed)
    steps = ["untie", "fold_norms", "smoothquant(alpha=0.4)", "hadamard"]
    assert [step["method"] for step in value["steps"]] == steps
    assert all(step["change"] < 1e-10 for step in value["steps"])
    assert value["change"] < 1e-5
    written = artifact.read_record(out, "rewrite.json")
    assert [step["method"] for step in written["steps"]] == steps
    assert written["before"] == load(model).source.fingerprint
    assert written["after"] == load(out).source.fingerprint == value["fingerprint"]
    assert not list(tmp_path.glob("*.part"))
    assert (out / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert torch.allclose(logits(model), logits(out), atol=1e-3, rtol=1e-4)
    code, printed, _ = run("prove", model, out, "--on", text, "--length", "16", "--quiet")
    assert code == 0
    assert printed.startswith("The same function up to rounding")
    code, printed, _ = run("prove", model, out, "--json", "--quiet")
    assert (code, json.loads(printed)["verdict"]) == (0, "algebraic")
    code, printed, _ = run("prove", model, model, "--quiet")
    assert (code, printed.split(":")[0]) == (0, "The same function, bit for bit")


def test_prove_says_no(trained: Callable[[str], Path], llama: Path, run: Run) -> None:
    code, printed, _ = run("prove", llama, trained("tied"), "--quiet")
    assert code == 1
    assert printed.startswith("Different functions")
    assert "model.embed_tokens:output" in printed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_from_codes(dtype: str, gguf_file: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    code, _, err = run("rewrite", gguf_file, "--with", "fold_norms", "--out", out, "--dtype", dtype, "--quiet")
    assert code == 0, err
    assert {info.dtype for info in load(out).source.tensors.values()} == {dtype}
    assert prove(load(gguf_file), load(out)).holds


def test_misuse(llama: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for arguments, word in (
        (["--with", "hadamrd", "--out", tmp_path / "out"], "hadamard"),
        (["--with", "fold_norms(bais=False)", "--out", tmp_path / "out"], "bias"),
        (["--with", "fold_norms", "--out", tmp_path / "full"], "not empty"),
    ):
        code, printed, err = run("rewrite", llama, *arguments, "--quiet")
        assert code == 2
        assert not printed
        assert word in err
    assert (tmp_path / "full" / "file").read_text() == "mine"
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "full"]


def test_a_module_has_no_files(tmp_path: Path) -> None:
    network = network_of(torch.nn.Sequential(torch.nn.Linear(4, 3)))
    with pytest.raises(ValueError, match=r"no config\.json"):
        save(network, network, (), tmp_path / "out")


def test_names_between_commas() -> None:
    assert names("untie,fold_norms(bias=False),a(b=[1,2],c='x'),smoothquant+") == (
        "untie", "fold_norms(bias=False)", "a(b=[1,2],c='x')", "smoothquant+",
    )  # fmt: skip
    for text in ("", "a,,b", "a(b=1", "a)"):
        with pytest.raises(argparse.ArgumentTypeError):
            names(text)


# Inspecting


def test_inspect(trained: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, printed, err = run("inspect", trained("tied"), "--symmetries", "--quiet")
    assert (code, err) == (0, "")
    assert max(map(len, printed.splitlines())) <= 120
    for part in ("model.layers.{0..2}.mlp.up_proj ", "invertible (32, 2 blocks of 16, shift)", "o_proj:input heads"):
        assert part in printed
    value = json.loads(run("inspect", trained("tied"), "--symmetries", "--quiet", "--json")[1])
    assert len(value["sites"]) == 23, "every row where a program reads"
    found = value["coverage"]
    shares = [row["parameters"] for row in found["roles"].values()]
    assert sum(shares) == found["in_sites"] == found["parameters"] - sum(found["untouched"].values())
    for engine in found["engines"].values():
        assert engine["parameters"] + sum(engine["kept"].values()) == found["in_sites"]
    (stream,) = [row for row in value["symmetries"] if row["group"] == "orthogonal"]
    assert len(stream["norms"]) == 7


def test_rows_that_repeat() -> None:
    rows = [(f"a.{i}.b.{j}.c", ("4 x 4",)) for i in (0, 1, 3) for j in range(2)] + [("a.0.d", ("2 x 2",))]
    assert grouped(rows) == [("a.{0..1,3}.b.{0..1}.c", ("4 x 4",)), ("a.0.d", ("2 x 2",))]
    assert grouped([("0.weight", ()), ("1.weight", ())]) == [("{0..1}.weight", ())]


# A journal


def test_what_is_in_the_journal_is_not_chosen_again(
    llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, journal = load(llama), Journal(tmp_path)
    windows = sample(text, network, count=4, length=16)
    methods = ["untie", "fold_norms", "smoothquant", "random_rotation"]
    first, steps = rewriting.rewrite(network, methods, calibration=windows, seed=3, journal=journal)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done before")

    with monkeypatch.context() as patch:
        patch.setattr(rewriting, "observe", never)
        patch.setattr(rewriting, "outputs", never)
        again, told = rewriting.rewrite(load(llama), methods, calibration=windows, seed=3, journal=journal)
    assert told == steps
    assert again.source.fingerprint == first.source.fingerprint
    (tmp_path / "rewrites" / "03.safetensors").unlink()
    half, told = rewriting.rewrite(load(llama), methods, calibration=windows, seed=3, journal=journal)
    assert half.source.fingerprint == first.source.fingerprint
    assert told == steps
    for name in first.source.tensors:
        assert torch.equal(first.source.read(name), again.source.read(name))


# Compressing in another basis


@pytest.fixture(scope="module")
def command(llama: Path, text: Path) -> list[str]:
    return ["compress", str(llama), "--calibration", str(text), *COMPRESS]


@pytest.fixture(scope="module")
def turned(command: list[str], nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """An artifact made in another basis, and how many changes of files that took."""
    out = tmp_path_factory.mktemp("turned") / "small"
    ended = nursery.run([*command, "--out", str(out)], count=1)
    assert ended.code == 0, ended.stderr
    return out, ended.counts()[1]


def test_compress_in_another_basis(turned: tuple[Path, int], llama: Path) -> None:
    """The certificate is about the model handed in; what is compressed is a rewrite of it."""
    out = turned[0]
    plan = Plan.from_toml((out / "pennyweight" / "plan.toml").read_text())
    assert plan.rewrites == ("untie", "fold_norms", "hadamard")
    assert plan.model == load(llama).source.fingerprint, "the model that the user has"
    found = verify(out)
    assert found.certificate.holds
    assert found.certificate.fingerprints["model"] == plan.model
    steps = artifact.read_record(out, "rewrite.json")["steps"]
    assert [step["method"] for step in steps] == list(plan.rewrites)
    assert all(step["change"] < 1e-10 for step in steps)
    network = load(out)
    gain = network.source.read("model.layers.1.input_layernorm.weight")
    assert torch.equal(gain, torch.ones_like(gain)), "the norms were folded"
    (ours,) = run_network(network, [{"input_ids": torch.arange(40)[None]}], read=network.source.read)
    assert torch.allclose(logits(out).double().flatten(), ours, atol=1e-3)


def test_records_that_do_not_agree(turned: tuple[Path, int], tmp_path: Path) -> None:
    out = tmp_path / "copy"
    for name, change in (
        ("rewrite.json", lambda value: {"steps": value["steps"][1:]}),
        ("rewrite.json", lambda value: {"steps": [step | {"change": 1.0} for step in value["steps"]]}),
        ("run.json", lambda value: value | {"settings": value["settings"] | {"rewrites": ["untie"]}}),
    ):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(turned[0], out)
        artifact.write_record(out, name, change(artifact.read_record(out, name)))
        artifact.seal(out)
        with pytest.raises(VerificationFailed, match="do not bear it out"):
            verify(out)


def test_a_plan_says_what_comes_first(llama: Path, text: Path, tmp_path: Path, run: Run) -> None:
    toml, out = tmp_path / "plan.toml", tmp_path / "small"
    common = ["--calibration", text, *world.OPTIONS]
    code, _, err = run("plan", llama, "--bits", "6", "--rewrite", "fold_norms", *common, "-o", toml)
    assert code == 0, err
    plan = Plan.from_toml(toml.read_text())
    assert plan.rewrites == ("fold_norms",)
    assert Plan.from_toml(plan.to_toml()) == plan
    code, _, err = run("compress", llama, "--out", out, "--plan", toml, "--rewrite", "untie", *common)
    assert code == 2
    assert "--rewrite" in err
    code, _, err = run("compress", llama, "--out", out, "--plan", toml, "--max-windows", "20", *common)
    assert code == 0, err
    assert artifact.read_record(out, "run.json")["settings"]["rewrites"] == ["fold_norms"]
    verify(out)
    with pytest.raises(InvalidPlan, match="rewrites the model first"):
        apply(plan, load(llama), None, out=tmp_path / "other")  # type: ignore[arg-type]


def test_other_rewrites_do_not_go_on_here(command: list[str], nursery: Nursery, tmp_path: Path) -> None:
    out = tmp_path / "small"
    assert nursery.run([*command, "--out", str(out)], kill_at=20).code == -signal.SIGKILL
    before = world.hashes(tmp_path)
    other = [word if word != BASIS else "untie,fold_norms" for word in command]
    ended = nursery.run([*other, "--out", str(out)])
    assert ended.code == 2
    assert ended.stderr.startswith(InvalidOutput.__name__)
    assert "settings" in ended.stderr
    assert world.hashes(tmp_path) == before


@pytest.mark.slow
def test_killed_on_the_way(command: list[str], turned: tuple[Path, int], nursery: Nursery, tmp_path: Path) -> None:
    """Before the rewrites, between them, and later: the same bytes."""
    out = tmp_path / "small"
    for moment in (5, 8, 11, 14, 40):
        ended = nursery.run([*command, "--out", str(out)], kill_at=moment)
        assert ended.code == -signal.SIGKILL, ended.stderr
    assert len(list((tmp_path / "small.run" / "rewrites").iterdir())) == 3
    ended = nursery.run([*command, "--out", str(out)])
    assert ended.code == 0, ended.stderr
    assert world.hashes(out) == world.hashes(turned[0])
