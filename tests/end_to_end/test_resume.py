"""Killed, interrupted, out of room or in each other's way: nothing is lost, and the bytes are those of a quiet run."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from end_to_end import world
from end_to_end.world import Ended, Nursery

FORM = re.compile(r"^(\w+): .+: .+\n  expected: .+\n  mend:     .+\n$")


class Quiet(NamedTuple):
    """An artifact, and what it took: seconds of the processor, and changes of files.

    `moved` is the number of the change that put the artifact in its place; `opened` counts files opened for writing.
    """

    out: Path
    seconds: float
    changes: int
    opened: int
    moved: int


@pytest.fixture(scope="module")
def command(llama: Path, text: Path) -> list[str]:
    return ["compress", str(llama), "--lose", "3%", "--calibration", str(text), *world.OPTIONS]


def to(command: list[str], out: Path) -> list[str]:
    return [*command, "--out", str(out)]


@pytest.fixture(scope="module")
def quiet(command: list[str], nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    """An uninterrupted run, and the seconds of the quicker of two: on a core shared with others they take longer."""
    out = tmp_path_factory.mktemp("quiet") / "small"
    first = nursery.run(to(command, tmp_path_factory.mktemp("first") / "small"))
    ended = nursery.run(to(command, out), count=1)
    assert ended.code == 0, ended.stderr
    opened, moved, changes = ended.counts()
    return Quiet(out, min(first.seconds, ended.seconds), changes, opened, moved)


def check(ended: Ended, out: Path, quiet: Quiet) -> None:
    assert ended.code == 0, ended.stderr
    assert world.hashes(out) == world.hashes(quiet.out)
    assert not out.with_name("small.run").exists()
    assert sorted(path.name for path in out.parent.iterdir()) == ["small"]


@pytest.mark.slow
def test_killed_at_ten_random_moments(command: list[str], quiet: Quiet, nursery: Nursery, tmp_path: Path) -> None:
    """One moment in every tenth of a run, by the time the processor spent on it."""
    draw = random.Random(7)
    for tenth in range(10):
        out = tmp_path / str(tenth) / "small"
        out.parent.mkdir()
        child = nursery.start(to(command, out))
        child.spend((tenth + 0.95 * draw.random()) / 10 * quiet.seconds)
        child.signal(signal.SIGKILL)
        killed = child.wait().code == -signal.SIGKILL
        assert killed or tenth >= 8
        if not (killed and out.exists() and not out.with_name("small.run").exists()):
            check(nursery.run(to(command, out)) if killed else Ended(0, "", ""), out, quiet)


@pytest.mark.slow
def test_killed_ten_times_on_the_way(command: list[str], quiet: Quiet, nursery: Nursery, tmp_path: Path) -> None:
    """One run, killed before some change of a file and resumed, ten times over."""
    draw, out = random.Random(11), tmp_path / "small"
    for _ in range(10):
        ended = nursery.run(to(command, out), kill_at=draw.randint(4, 24))
        assert ended.code == -signal.SIGKILL, ended.stderr
    assert len(list((tmp_path / "small.run").rglob("*"))) > 10, "every start got a little further"
    check(nursery.run(to(command, out)), out, quiet)


@pytest.mark.slow
def test_killed_around_the_move(command: list[str], quiet: Quiet, nursery: Nursery, tmp_path: Path) -> None:
    """The last changes seal the artifact, move it to its place and clear up: at no moment can it be lost."""
    almost, draw = tmp_path / "almost" / "small", random.Random(13)
    almost.parent.mkdir()
    assert nursery.run(to(command, almost), kill_at=quiet.moved - 30).code == -signal.SIGKILL

    def start(name: str, **wishes: int) -> tuple[Path, Ended]:
        out = tmp_path / name / "small"
        shutil.copytree(almost.with_name("small.run"), out.with_name("small.run"))
        return out, nursery.run(to(command, out), **wishes)

    moved, changes = start("count", count=1)[1].counts()[1:3]
    assert moved > 15
    assert changes > moved + 10
    moments = {*draw.sample(range(1, moved), 6), *range(moved - 2, moved + 3), moved + 10, changes - 1}
    failed = []
    for moment in sorted(moments):
        out, killed = start(f"{moment:03d}", kill_at=moment)
        assert killed.code == -signal.SIGKILL
        assert out.exists() is (moment > moved)
        if out.with_name("small.run").exists():
            again = nursery.run(to(command, out))
            if again.code:
                failed.append((moment, again.stderr))
        if not out.exists() or world.hashes(out) != world.hashes(quiet.out):
            failed.append((moment, "other files"))
        if out.with_name("small.run").exists():
            failed.append((moment, "leftovers"))
    assert not failed


@pytest.mark.slow
def test_interrupted(command: list[str], quiet: Quiet, nursery: Nursery, tmp_path: Path) -> None:
    """Ctrl-C, wherever it comes: it may fall into the code of others, who may make another error of it."""
    for share in (0.15, 0.3, 0.4, 0.5, 0.6, 0.75):
        out = tmp_path / str(share) / "small"
        out.parent.mkdir()
        child = nursery.start(to(command, out))
        child.spend(share * quiet.seconds)
        child.signal(signal.SIGINT)
        ended = child.wait()
        assert ended.code == 130, ended.stderr
        said = f"Interrupted; what is finished is in {out}.run, the same command goes on there."
        assert ended.stderr.splitlines().count(said) == 1, ended.stderr
        # Tests show every warning, and between the opening of a file and its block there is a moment nobody owns it.
        rest = ended.stderr.replace(said, "").strip()
        assert not rest or "ResourceWarning: unclosed file" in rest, rest
        assert "most recent call last" not in rest
        assert ended.stdout == ""
        assert not out.exists()
    check(nursery.run(to(command, out)), out, quiet)


def test_second_process(command: list[str], quiet: Quiet, nursery: Nursery, tmp_path: Path) -> None:
    out = tmp_path / "small"
    first = nursery.start(to(command, out))
    while not (tmp_path / "small.run" / "header.json").exists():
        assert first.running()
        time.sleep(0.01)
    second = nursery.run(to(command, out))
    assert first.running(), "the second one has to meet the first at work"
    assert second.code == 2
    assert second.stderr.startswith("RunInUse: ")
    assert FORM.match(second.stderr)
    check(first.wait(), out, quiet)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.9, 0.95, 0.97])
def test_disk_full(share: float, command: list[str], quiet: Quiet, nursery: Nursery, tmp_path: Path) -> None:
    """From some moment on, no file can be made."""
    out = tmp_path / "small"
    ended = nursery.run(to(command, out), full_at=max(1, int(share * quiet.opened)))
    assert ended.code == 2, ended.stderr
    assert ended.stderr.startswith("DiskFull: ")
    assert FORM.match(ended.stderr), ended.stderr
    assert "Traceback" not in ended.stderr
    assert not out.exists()
    check(nursery.run(to(command, out)), out, quiet)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1000, 3000, 20_000, 60_000, 80_000])
def test_no_room_for_large_files(
    limit: int, command: list[str], quiet: Quiet, nursery: Nursery, tmp_path: Path
) -> None:
    """The operating system itself refuses to write on: whoever writes, and however little."""
    out = tmp_path / "small"
    ended = nursery.run(to(command, out), file_limit=limit)
    assert ended.code == 2, ended.stderr
    assert ended.stderr.startswith("DiskFull: ")
    assert FORM.match(ended.stderr), ended.stderr
    assert not out.exists()
    assert not list(tmp_path.rglob("*.part")), "no half-written file is left"
    check(nursery.run(to(command, out)), out, quiet)


def test_another_command_does_not_touch_an_unfinished_run(
    command: list[str], quiet: Quiet, nursery: Nursery, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    nursery.run(to(command, out), kill_at=60)
    before = world.hashes(tmp_path)
    other = nursery.run([*to(command, out), "--seed", "5"])
    assert other.code == 2
    assert other.stderr.startswith("InvalidOutput: ")
    assert FORM.match(other.stderr)
    assert world.hashes(tmp_path) == before
    check(nursery.run(to(command, out)), out, quiet)


def test_a_finished_run_of_another_command_is_not_passed_off_as_this_one(
    command: list[str], quiet: Quiet, nursery: Nursery, tmp_path: Path
) -> None:
    """Killed when all was done but clearing up: the same command is told so, another one is refused."""
    out = tmp_path / "small"
    shutil.copytree(quiet.out, out)
    (tmp_path / "small.run").mkdir()
    (tmp_path / "small.run" / "left.json").write_text("{}")
    other = nursery.run([*to(command, out), "--seed", "5"])
    assert other.code == 2
    assert other.stderr.startswith("InvalidOutput: ")
    check(nursery.run(to(command, out)), out, quiet)
