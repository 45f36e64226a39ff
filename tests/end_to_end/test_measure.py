"""The verbs `measure` and `power` on files: a text and a task at once, groups, JSON, a page, and the exit codes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pennyweight.cli import main
from pennyweight.flow.delivery import Outcome

Run = Callable[..., tuple[int, str, str]]
COUNT = 60  # questions


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def quiz(parts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Which of two continuations stood in the text; two languages, the second with few questions."""
    path = tmp_path_factory.mktemp("quiz") / "quiz.jsonl"
    lines = []
    for i in range(COUNT):
        words, other = parts[i % 20][50 * i :].split(), parts[(i + 7) % 20][80 * i :].split()
        choices = [" ".join(words[5:8]), " ".join(other[9:12])]
        right = i % 2
        lines.append(
            {
                "question": f"{i} " + " ".join(words[1:5]), "choices": choices[::-1] if right else choices,
                "answer": right, "language": "ka" if i % 4 else "to",
            }
        )  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def measured(run: Run, *arguments: str | Path) -> dict[str, Any]:
    code, out, err = run("measure", *arguments, "--length", "32", "--quiet", "--json")
    assert code == 0, err
    assert "NaN" not in out
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


def test_a_text_and_a_task(llama: Path, outcome: Outcome, text: Path, quiz: Path, run: Run) -> None:
    """Everything at once; identities between the figures hold."""
    value = measured(
        run, llama, outcome.out, "--on", text, "--on", quiz, "--groups", "language", "--max-units", "40"
    )  # fmt: skip
    assert value["windows"] == 40 < value["of"]
    assert value["rise"] == pytest.approx(value["perplexity_after"] / value["perplexity_before"] - 1)
    assert value["upper_approximate"] > value["rise"]
    (page,), (task,) = value["texts"], value["tasks"]
    by_name = {change["metric"]: change for change in page["metrics"]}
    assert {"perplexity", "kl", "disagreement", "tv", "top-k"} <= set(by_name)
    for change in by_name.values():
        assert not change["complete"]
        assert change["bound"] > change["degradation"]
        assert change["noise"] is not None
    interval = by_name["perplexity"]["interval"]
    assert interval["low"] < by_name["perplexity"]["degradation"] < interval["high"]
    assert by_name["kl"]["before"] is None
    assert page["groups"] == []
    assert "language" in page["notes"][0]
    calibration = page["calibration"]
    assert calibration["windows"] + calibration["fitted_windows"] == 40
    assert calibration["positions"] == 31 * calibration["windows"]
    # the temperature was fitted elsewhere, so it may hurt, but not by much
    assert calibration["loss_repaired"] < calibration["loss_after"] + 0.02
    assert task["questions"] == 40 < task["of"] == COUNT
    kept = task["accuracy_before"] * task["retention"] + (1 - task["accuracy_before"]) * task["repair"]
    assert task["accuracy_after"] == pytest.approx(kept)
    assert task["drop"] == pytest.approx((task["lost"] - task["gained"]) / 40)
    (languages,) = task["groups"]
    assert {group["name"]: group["units"] for group in languages["groups"]} == {"ka": 45, "to": 15}
    assert sum(group["scored"] for group in languages["groups"]) == 40
    assert languages["scope"] == "corpus"
    assert all(group["few"] == (group["scored"] < 30) for group in languages["groups"])
    assert [group["scored"] for group in task["margins"]["groups"]] == [8] * 5


def test_a_full_pass_is_exact(llama: Path, outcome: Outcome, text: Path, quiz: Path, run: Run) -> None:
    value = measured(run, llama, outcome.out, "--on", quiz, "--groups", "language")
    assert "perplexity_before" not in value, "there is no text"
    (task,) = value["tasks"]
    assert all(change["complete"] and change["bound"] == change["degradation"] for change in task["metrics"])
    (languages,) = task["groups"]
    assert languages["rule"] == "exact"
    for group in languages["groups"]:
        assert group["bound"] == group["alone"] == pytest.approx(group["degradation"], abs=1e-12)
        assert group["before"] - group["after"] == pytest.approx(group["degradation"])
    assert languages["worst_bound"] == max(group["bound"] for group in languages["groups"])


def test_against_itself(llama: Path, quiz: Path, text: Path, run: Run) -> None:
    value = measured(run, llama, llama, "--on", text, "--on", quiz, "--groups", "document", "--max-units", "12")
    (page,), (task,) = value["texts"], value["tasks"]
    assert all(change["degradation"] == 0 for change in page["metrics"])
    assert [tail["estimate"] for tail in page["tails"]] == pytest.approx([0, 0], abs=1e-12)
    assert page["calibration"]["brier"] == 0
    assert page["calibration"]["before"] == page["calibration"]["after"]
    assert (task["lost"], task["gained"], task["mcnemar"]) == (0, 0, 1)
    assert task["retention"] in (1, None)


def test_the_table_says_what_it_is(llama: Path, outcome: Outcome, text: Path, quiz: Path, run: Run) -> None:
    code, out, err = run(
        "measure", llama, outcome.out, "--on", text, "--on", quiz, "--groups", "language", "--max-units", "20",
        "--length", "32", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    assert err == ""
    for words in ("perplexity", "right -> wrong", "calibration", "Worst group", "nothing here is a certificate"):
        assert words in " ".join(out.split())


def test_a_page(llama: Path, outcome: Outcome, text: Path, tmp_path: Path, run: Run) -> None:
    page = tmp_path / "page.html"
    arguments = ["--on", text, "--max-units", "12", "--html", page]
    value = measured(run, llama, outcome.out, *arguments)
    assert value["page"] == str(page)
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    code, _, err = run("measure", llama, outcome.out, "--html", tmp_path / "nowhere" / "page.html")
    assert code == 2
    assert "InvalidOutput" in err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--groups", "continent"], "UnknownName"),
        (["--confidence", "1"], "InvalidBudget"),
        (["--on", "missing.jsonl"], "MissingFile"),
    ],
)
def test_bad_input(options: list[str], error: str, llama: Path, text: Path, quiz: Path, run: Run) -> None:
    code, out, err = run("measure", llama, llama, "--on", text, "--on", quiz, *options, "--length", "32", "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith(error)


def test_power_of_plain_rounding(llama: Path, text: Path, quiz: Path, run: Run) -> None:
    """Fewer bits lose more; a margin that int8 meets is out of reach for questions so few."""
    common = ["--on", text, "--length", "32", "--quiet"]
    code, out, err = run("power", llama, "--lose", "perplexity 60%", *common, "--json")
    assert code == 0, err
    value = json.loads(out)
    (claim,) = value["claims"]
    assert [row["candidate"] for row in claim["rows"]] == [f"plain rounding, int{b}" for b in (8, 4, 3)]
    losses = [row["loss"] for row in claim["rows"]]
    assert losses == sorted(losses)
    assert claim["margin"] == pytest.approx(math.log(1.6))
    assert claim["rows"][0]["feasible"] == "yes"
    code, out, err = run(
        "power", llama, "--lose", f"accuracy:{quiz} 0.4pt", "--scope", "source", *common
    )  # fmt: skip
    assert code == 1, err
    first = out.splitlines()[0]
    assert first.startswith("Not feasible: 60 questions cannot certify accuracy")
    assert "cannot certify less than" in " ".join(out.split())


def test_power_of_a_compressed_model(llama: Path, outcome: Outcome, text: Path, quiz: Path, run: Run) -> None:
    arguments = ["--lose", "kl 0.2", "--lose", f"accuracy:{quiz} 30pt", "--on", text, "--length", "32", "--json"]
    code, out, err = run("power", llama, outcome.out, *arguments)
    assert code == 0, err
    assert "pilot of" in err
    text_claim, task_claim = json.loads(out)["claims"]
    assert [row["candidate"] for row in text_claim["rows"]] == ["small"]
    assert text_claim["rows"][0]["units"] == 16
    assert task_claim["rows"][0]["units"] == COUNT
    assert len(task_claim["flips"]) == 4
    assert "the very questions" in task_claim["note"]
