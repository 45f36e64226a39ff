"""The ledger of openings: numbers that nobody gets twice, lines that last, and damage that is named."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pennyweight.errors import DiskFull, InvalidBudget, InvalidMethod, InvalidOutput, VerificationFailed
from pennyweight.flow.certifying import openings
from pennyweight.flow.certifying.openings import close_opening, open_corpus, state_directory

TEXT = "12ab"


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A state directory that is the default one too, so that no test writes into the home directory."""
    monkeypatch.setenv("PENNYWEIGHT_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def opened(key, *, total=0.04, candidate="w", claims=("perplexity 1%",), text=TEXT, **how):
    return open_corpus(text, key, total=total, candidate=candidate, claims=claims, **how)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_second_run_on_the_same_text_knows_that_it_is_the_second(state):
    first, second, third = opened("a"), opened("b", candidate="v"), opened("c")
    assert [(o.number, o.alpha) for o in (first, second, third)] == [(1, 0.04), (2, 0.01), (3, 0.04 / 9)]
    assert [o.spent for o in (first, second, third)] == pytest.approx([0.04, 0.05, 0.05 + 0.04 / 9], rel=1e-15)
    assert [r.key for r in third.earlier] == ["a", "b"]
    assert first.earlier == ()
    assert third.path == state / "openings" / f"{TEXT}.jsonl"
    assert [line["candidate"] for line in lines(third.path)] == ["w", "v", "w"]
    assert opened("a", text="34cd").number == 1  # another text


def test_a_reserve_keeps_all_openings_within_the_total(state):
    made = [opened(key, reserve=True) for key in "abc"]
    share = 0.24 / math.pi**2
    assert [o.alpha for o in made] == pytest.approx([share, share / 4, share / 9], rel=1e-15)
    assert made[-1].spent == pytest.approx(share * 49 / 36, rel=1e-15)


def test_what_was_spent_is_what_was_given(state):
    opened("a", total=0.1)
    assert opened("b", total=0.04, reserve=True).spent == pytest.approx(0.1 + 0.06 / math.pi**2, rel=1e-15)


def test_the_same_run_again_is_the_same_opening(state):
    first = opened("a")
    opened("b")
    before = first.path.read_bytes()
    again = opened("a")
    assert again == first
    assert first.path.read_bytes() == before
    close_opening(first, "certified")
    assert opened("a") == first


@pytest.mark.parametrize("change", [{"candidate": "v"}, {"claims": ("kl 0.02",)}, {"total": 0.05}, {"reserve": True}])
def test_a_key_stands_for_one_opening_only(state, change):
    opened("a")
    with pytest.raises(InvalidMethod, match="another candidate"):
        opened("a", **change)


def test_a_verdict_completes_its_opening(state):
    first, second = opened("a"), opened("b")
    close_opening(second, "futile")
    close_opening(first, "certified")
    close_opening(first, "certified")  # the same again changes nothing
    assert [(r.key, r.verdict, r.claims) for r in opened("c").earlier] == [
        ("a", "certified", ("perplexity 1%",)), ("b", "futile", ("perplexity 1%",)),
    ]  # fmt: skip
    assert [line["verdict"] for line in lines(first.path)] == [None, None, "futile", "certified", None]
    assert all(line["date"].endswith("+00:00") for line in lines(first.path))
    with pytest.raises(VerificationFailed, match="'certified', and now as 'futile'"):
        close_opening(first, "futile")


def test_an_opening_that_is_gone_cannot_be_closed(state):
    first = opened("a")
    first.path.write_bytes(b"")
    with pytest.raises(VerificationFailed, match="no longer"):
        close_opening(first, "certified")


def test_the_clock_enters_nothing_but_dates(state, tmp_path, monkeypatch):
    first = opened("a")
    monkeypatch.setattr(openings, "_now", lambda: "1970-01-01T00:00:00+00:00")
    other = opened("a", state=tmp_path / "other")
    assert (first.number, first.alpha, first.spent) == (other.number, other.alpha, other.spent)
    assert lines(first.path)[0]["date"] != lines(other.path)[0]["date"]


def test_threads_get_different_numbers(state):
    keys = [f"k{i}" for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(opened, keys + keys))
    assert sorted(o.number for o in made[:64]) == list(range(1, 65))
    assert [o.number for o in made[64:]] == [o.number for o in made[:64]]
    assert len(lines(made[0].path)) == 64


def test_processes_get_different_numbers(state):
    program = (
        "import sys\nfrom pennyweight.flow.certifying.openings import open_corpus\n"
        "sys.stdin.readline()\n"
        f"for i in range(40): print(open_corpus({TEXT!r}, f'{{sys.argv[1]}}{{i}}', total=.04, candidate='w',"
        " claims=['c']).number)\n"
    )
    root = str(Path(openings.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PENNYWEIGHT_STATE": str(state)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, name], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for name in "ab"
    ]  # fmt: skip
    for process in running:  # both have started before either is told to begin
        process.stdin.write("\n")
        process.stdin.flush()
    numbers = [[int(n) for n in process.communicate(timeout=100)[0].split()] for process in running]
    assert sorted(numbers[0] + numbers[1]) == list(range(1, 81))


@pytest.mark.parametrize(
    ("damage", "number"),
    [
        (lambda t: t[:40] + b"\n" + t[41:], 1),
        (lambda t: t.replace(b'"alpha":0.04', b'"alpha":0.004', 1), 3),
        (lambda t: b"\n" + t, 1),
        (lambda t: t + t.splitlines(keepends=True)[0], 4),  # the same key opened twice
        (lambda t: t + t.splitlines(keepends=True)[2], 4),  # closed twice
        (lambda t: b"".join(t.splitlines(keepends=True)[2:]), 1),  # closed but never opened
        (lambda t: t.replace(b'"alpha":0.04', b'"alpha":0.0', 1), 1),
        (lambda t: t.replace(b'"alpha":0.01', b'"alpha":0.010', 1), 2),
        (lambda t: t.replace(b'"key":"b"', b'"key":"b","more":1', 1), 2),
        (lambda t: t.replace(b'"candidate":"w"', b'"candidate":"x"', 1), 3),  # its verdict says otherwise
        (lambda t: t.replace(b'"perplexity', b'"\xff', 1), 1),
        (lambda t: t[:-1], 3),
        (lambda t: t[:-30], 3),
    ],
)
def test_a_damaged_line_is_named(state, damage, number):
    first = opened("a")
    opened("b")
    close_opening(first, "certified")
    whole = first.path.read_bytes()
    broken = damage(whole)
    assert broken != whole
    first.path.write_bytes(broken)
    for act in (lambda: opened("c"), lambda: opened("a"), lambda: close_opening(first, "certified")):
        with pytest.raises(VerificationFailed, match=f"line {number} ") as error:
            act()
        assert error.value.site == str(first.path)
    assert first.path.read_bytes() == broken  # nothing is mended behind the user's back


def test_a_line_cut_short_can_be_removed_and_all_goes_on(state):
    first = opened("a")
    whole = first.path.read_bytes()
    opened("b")
    first.path.write_bytes(first.path.read_bytes()[:-9])
    with pytest.raises(VerificationFailed) as error:
        opened("c")
    assert "remove line 2" in error.value.mend
    first.path.write_bytes(whole)
    assert opened("c").number == 2


def test_a_line_that_did_not_fit_is_not_there(state, monkeypatch):
    first = opened("a")
    whole = first.path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(openings.os, "fsync", full)
        with pytest.raises(DiskFull):
            opened("b")
    assert first.path.read_bytes() == whole
    assert opened("b").number == 2


def test_a_state_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for state in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidOutput) as error:
            opened("a", state=state)
        assert error.value.mend == "set PENNYWEIGHT_STATE to a directory that can be written to"
    (tmp_path / "openings" / f"{TEXT}.jsonl").mkdir(parents=True)
    with pytest.raises(InvalidOutput):
        opened("a", state=tmp_path)


@pytest.mark.parametrize("fingerprint", ["", "../up", "a/b", ".hidden", "a b", "x" * 300])
def test_a_fingerprint_names_a_file_in_the_ledgers_directory(state, fingerprint):
    with pytest.raises(InvalidMethod):
        opened("a", text=fingerprint)
    assert not state.exists()


@pytest.mark.parametrize("total", [0.0, 1.0, -0.1, float("nan")])
def test_a_level_that_means_nothing_opens_nothing(state, total):
    with pytest.raises(InvalidBudget):
        opened("a", total=total)
    assert not state.exists()


def test_where_ledgers_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PENNYWEIGHT_STATE", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert state_directory() == tmp_path / ".local" / "state" / "pennyweight"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_directory() == tmp_path / ".local" / "state" / "pennyweight"
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert state_directory() == Path("/xdg/pennyweight")
    monkeypatch.setenv("PENNYWEIGHT_STATE", "~/own")
    assert state_directory() == tmp_path / "own"
    monkeypatch.setenv("PENNYWEIGHT_STATE", "")
    assert state_directory() == Path("/xdg/pennyweight")


def test_no_home_is_said(monkeypatch):
    for name in ("PENNYWEIGHT_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InvalidOutput, match="home"):
        state_directory()
