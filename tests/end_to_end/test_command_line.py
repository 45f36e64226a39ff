"""The command line: results on stdout and nothing else there, the rest on stderr, and three exit codes."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from end_to_end import world
from end_to_end.world import Nursery

from pennyweight.cli import main
from pennyweight.flow.delivery import Outcome
from pennyweight.flow.verify import verify
from pennyweight.plan import Plan

LOUD = [option for option in world.OPTIONS if option != "--quiet"]
MEASURE = ["--length", "32", "--max-units", "20"]
ESCAPE = "\x1b["


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a verb in process; what reaches the file descriptors counts, whoever writes it."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def text_arguments(text: Path) -> list[str]:
    return ["--calibration", str(text)]


def arguments_of(verb: str, llama: Path, outcome: Outcome, text: Path, tmp_path: Path) -> list[str]:
    return {
        "compress": ["compress", str(llama), "--out", str(tmp_path / "s"), "--bits", "5", "--calibration", str(text),
                     "--max-windows", "20", *LOUD],
        "plan": ["plan", str(llama), "--lose", "3%", "--calibration", str(text), *LOUD],
        "inspect": ["inspect", str(llama)],
        "measure": ["measure", str(llama), str(outcome.out), "--on", str(text), *MEASURE],
        "verify": ["verify", str(outcome.out)],
        "report": ["report", str(outcome.out), "-o", str(tmp_path / "page.html")],
        "list": ["list"],
    }[verb]  # fmt: skip


VERBS = ["compress", "plan", "inspect", "measure", "verify", "report", "list"]
PROGRESS = {"compress", "plan", "measure"}


@pytest.mark.parametrize("verb", VERBS)
def test_json_and_nothing_else(
    verb: str, llama: Path, outcome: Outcome, text: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = run(*arguments_of(verb, llama, outcome, text, tmp_path), "--json")
    assert code == 0, err
    strange: list[str] = []
    value = json.loads(out, parse_constant=strange.append)  # NaN and Infinity are no JSON
    assert isinstance(value, dict)
    assert not strange
    assert bool(err) is (verb in PROGRESS)
    assert ESCAPE not in out + err


@pytest.mark.parametrize("verb", VERBS)
def test_quiet(
    verb: str, llama: Path, outcome: Outcome, text: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = run(*arguments_of(verb, llama, outcome, text, tmp_path), "--quiet")
    assert code == 0, err
    assert err == ""
    assert out.strip()
    assert ESCAPE not in out, "no colours where nobody watches"


def test_words_of_the_result(outcome: Outcome, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("verify", outcome.out)
    assert code == 0
    assert outcome.certificate.statement in out
    code, out, _ = run("verify", outcome.out, "--json")
    assert json.loads(out)["statement"] == outcome.certificate.statement
    assert json.loads(out)["holds"] is True


@pytest.mark.parametrize("way", ["tight", "coarse"])
def test_a_budget_that_nothing_meets(
    way: str, outcome: Outcome, llama: Path, text: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """The best result is kept, and called uncertified.

    Tight: a limit just above what another dtype does to the model, which 20 windows cannot tell from nothing. Coarse:
    a plan of two bits everywhere, where three per cent are allowed.
    """
    out, toml = tmp_path / "small", tmp_path / "plan.toml"
    plan = (outcome.out / "pennyweight" / "plan.toml").read_text()
    toml.write_text(re.sub(r'step = "[^"]*"', 'step = "round_to_nearest int2 g32 sym"', plan))
    tight = math.expm1(1.2 * outcome.certificate.noise_floor["perplexity"])
    options = (
        ["--lose", f"{100 * tight:.4f}%", "--max-windows", "20"] if way == "tight" else ["--lose", "3%", "--plan", toml]
    )
    code, table, err = run("compress", llama, "--out", out, *options, "--calibration", text, *world.OPTIONS)
    assert code == 1, err
    assert err == ""
    assert "uncertified" in table
    assert "NOT certified" in table
    summary = json.loads((out / "pennyweight" / "summary.json").read_text())
    assert summary["holds"] is False
    assert summary["verdict"] in (("futile", "exhausted") if way == "tight" else ("futile",))
    assert way == "coarse" or summary["scored"] <= 20
    assert sum(rung["chosen"] for rung in json.loads((out / "pennyweight" / "ladder.json").read_text())) == 1
    assert not verify(out).certificate.holds
    assert run("verify", out)[0] == 0, "the files and the certificate are what they were, and it says what it says"


def test_plan_edit_compress(llama: Path, text: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    toml, out = tmp_path / "plan.toml", tmp_path / "small"
    code, _, err = run("plan", llama, "--bits", "5", "--calibration", text, *world.OPTIONS, "-o", toml)
    assert code == 0, err
    made = Plan.from_toml(toml.read_text())
    site = "model.layers.1.mlp.down_proj"
    row = re.compile(rf'(\[steps\."{re.escape(site)}"\]\nstep = )"[^"]*"')
    changed = row.sub(r'\1"round_to_nearest int8 row sym"', toml.read_text())
    toml.write_text(changed)
    expected = Plan.from_toml(changed)
    assert expected.steps[site] != made.steps[site]
    code, printed, err = run(
        "compress", llama, "--out", out, "--plan", toml, "--calibration", text, "--max-windows", "20", *world.OPTIONS,
        "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(printed)["verdict"] == "measured"
    rows = {row["site"]: row for row in json.loads((out / "pennyweight" / "ledger.json").read_text())}
    assert {name: rows[name]["actual"] for name in expected.steps} == {n: s.label() for n, s in expected.steps.items()}
    verify(out)


def test_a_plan_is_the_same_every_time(
    llama: Path, text: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    arguments = ["plan", llama, "--lose", "3%", "--calibration", text, *world.OPTIONS, "--work", tmp_path / "work"]
    first, second = run(*arguments)[1], run(*arguments)[1]
    assert first == second
    assert Plan.from_toml(first).steps


def test_measure_against_itself(
    llama: Path, gguf_file: Path, outcome: Outcome, text: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    for model in (llama, gguf_file, outcome.out):
        code, out, err = run("measure", model, model, "--on", text, *MEASURE, "--json")
        assert code == 0, err
        value = json.loads(out)
        assert value["kl"] == 0
        assert value["agreement"] == 1
        assert value["rise"] == 0
        assert value["perplexity_before"] == value["perplexity_after"]
        assert value["windows"] == 20


def test_measure_agrees_with_the_certificate(
    llama: Path, outcome: Outcome, text: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    value = json.loads(
        run("measure", llama, outcome.out, "--on", text, "--length", "32", "--max-units", "400", "--json")[1]
    )
    assert value["perplexity_before"] == pytest.approx(outcome.summary["perplexity_before"], rel=0.1)
    assert 0 < math.log1p(value["rise"]) < 0.06
    assert value["upper_approximate"] > value["rise"]


def test_inspect_tells_what_is_there(trained: Callable[[str], Path], run: Callable[..., tuple[int, str, str]]) -> None:
    value = json.loads(run("inspect", trained("tied"), "--json")[1])
    assert len(value["blocks"]) == 3
    assert len([row for row in value["sites"] if row["role"] == "linear"]) == 21
    assert value["tied"] == [["model.embed_tokens.weight", "lm_head.weight"]]
    assert ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"] in value["groups"]
    takes: dict[str, Any] = {row["site"]: row["takes"] for row in value["sites"]}
    assert takes["model.layers.0.mlp.up_proj"]["transformers"]
    assert not takes["lm_head"]["vllm"]


def test_list_names_what_works(run: Callable[..., tuple[int, str, str]]) -> None:
    value = json.loads(run("list", "--json")[1])
    assert {"gptq", "round_to_nearest", "integer_program", "uniform"} <= {row["name"] for row in value["methods"]}
    assert {row["name"] for row in value["engines"]} == {
        "transformers", "vllm", "llama.cpp", "gptqmodel", "vllm-gptq", "onnxruntime", "onnxruntime-int8", "openvino",
        "pytorch",
    }  # fmt: skip
    assert all(row["what"] and row["paper"] for row in value["methods"])


def test_list_of_a_room_and_of_a_name(run: Callable[..., tuple[int, str, str]]) -> None:
    room = run("list", "quantization")[1]
    assert "coordinate_descent" in room, "names are never cut short"
    assert "integer_program" not in room
    page = run("list", "gptq")[1]
    assert "absorb" in page
    assert "damping: share of" in page
    assert "coordinate_descent" not in page
    assert {row["name"] for row in json.loads(run("list", "engines", "--json")[1])["engines"]} >= {"llama.cpp"}
    code, _, err = run("list", "gptqq")
    assert code == 2
    assert "did you mean gptq" in err


def test_report_is_one_file(outcome: Outcome, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    page = tmp_path / "page.html"
    code, out, _ = run("report", outcome.out, "-o", page)
    assert code == 0
    assert out.strip() == str(page)
    html = page.read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", html), "nothing is fetched"
    assert "@import" not in html
    code, _, err = run("report", outcome.out, "-o", outcome.out / "page.html")
    assert code == 2
    assert err.startswith("InvalidOutput: ")
    verify(outcome.out)


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)])
def test_help(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*verb, "--help"])
    assert stop.value.code == 0
    assert "usage: pennyweight" in capsys.readouterr().out


def test_help_is_instant() -> None:
    """A clean interpreter: what it imports is counted, and its time compared with that of one that does nothing."""
    done = world.python(["-X", "importtime", "-m", "pennyweight", "--help"])
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pennyweight.cli.arguments" in loaded
    heavy = {"torch", "transformers", "numpy", "scipy", "safetensors", "tokenizers", "rich", "msgspec"}
    assert not heavy & {name.partition(".")[0] for name in loaded}

    def seconds(arguments: list[str]) -> float:
        times = []
        for _ in range(5):
            start = time.monotonic()
            assert world.python(arguments).returncode == 0
            times.append(time.monotonic() - start)
        return min(times)

    assert seconds(["-m", "pennyweight", "--help"]) - seconds(["-c", ""]) < 0.25


def test_import_touches_nothing() -> None:
    code = (
        "import sys, pennyweight; print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'transformers'}))"
    )
    assert world.python(["-c", code]).stdout.strip() == "[]"


@pytest.mark.slow
def test_a_process_of_its_own(llama: Path, text: Path, tmp_path: Path) -> None:
    """`python -m pennyweight`, from nothing: JSON on stdout, progress on stderr, no warnings of anyone."""
    out = tmp_path / "small"
    done = world.python(
        ["-m", "pennyweight", "compress", str(llama), "--out", str(out), "--bits", "5", "--calibration", str(text),
         "--max-windows", "20", *LOUD, "--json"]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["artifact"] == str(out)
    assert all(re.fullmatch(r"[a-z ]+: \d+\.\d s", line) for line in done.stderr.splitlines()), done.stderr
    missing = world.python(["-m", "pennyweight", "inspect", str(tmp_path / "nowhere")])
    assert missing.returncode == 2
    assert missing.stdout == ""
    assert missing.stderr.startswith("MissingFile: ")


def on_a_terminal(nursery: Nursery, arguments: list[str], **environment: str) -> str:
    """What a person sees: stdout is a terminal."""
    import pty
    import subprocess
    import sys

    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pennyweight", *arguments], stdout=child, stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL, env={**world.environment(), "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(child)
    seen = b""
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(parent)
    assert process.wait() == 0
    return seen.decode()


@pytest.mark.slow
def test_no_color(nursery: Nursery) -> None:
    colours = re.compile(r"\x1b\[(?:\d+;)*(?:3|4|9|10)[0-7](?:;\d+)*m")
    seen = on_a_terminal(nursery, ["list"], NO_COLOR="1")
    assert "gptq" in seen
    assert not colours.search(seen)
