"""Imports the program once and forks a child for every run that is asked for, one JSON line a request.

A request: `arguments` of the command line, files for `stdout` and `stderr`, and accidents that are to happen:

    kill_at       the child kills itself (SIGKILL) right before its n-th change of a file in the run or output directory
    full_at       from the n-th file it opens for writing there on, the disk is full (ENOSPC)
    file_limit    no file can become larger than this many bytes (EFBIG), whoever writes it
    count         when it ends, it writes three numbers to stderr: files opened for writing, which change moved the
                  artifact to its place, and all changes
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"})


def main() -> None:
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import pennyweight.cli.verbs  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status, usage = os.wait4(request["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status), "seconds": usage.ru_utime + usage.ru_stime}
        else:
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                child(request)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


def child(request: dict[str, Any]) -> None:
    """Never returns."""
    code = 70
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(request[name], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(file, number)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        changes = arrange_accidents(request)
        if "file_limit" in request:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], request["file_limit"]))
        from pennyweight.cli import main as run

        try:
            code = run(request["arguments"])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        if "count" in request:
            print(f"\nchanges: {changes['opened']} {changes['moved']} {changes['all']}", file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 71
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def arrange_accidents(request: dict[str, Any]) -> dict[str, int]:
    """Watch every change of a file, as the interpreter reports it before it happens."""
    counts = {"opened": 0, "moved": 0, "all": 0}
    kill_at, full_at, mark = request.get("kill_at"), request.get("full_at"), "small"

    def watch(event: str, values: tuple[Any, ...]) -> None:
        opened = event == "open" and writes(values)
        if not opened and event not in CHANGES:
            return
        if not isinstance(values[0], str | bytes | os.PathLike):
            return
        path = os.fsdecode(values[0])
        if event in ("os.remove", "os.rmdir") and values[1] >= 0:  # clearing up names files relative to their folder
            path = f"{Path(f'/proc/self/fd/{values[1]}').readlink()}/{path}"
        if mark not in path:
            return
        counts["all"] += 1
        if event == "os.rename" and os.fsdecode(values[1]).endswith(f"/{mark}"):
            counts["moved"] = counts["all"]
        if counts["all"] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if opened:
            counts["opened"] += 1
            if full_at is not None and counts["opened"] >= full_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(values[0]))

    sys.addaudithook(watch)
    return counts


def writes(values: tuple[Any, ...]) -> bool:
    _, mode, flags = values
    return (isinstance(mode, str) and any(c in mode for c in "wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR))


if __name__ == "__main__":
    main()
