"""Who can run files here: our run-time, a dense model, the engines they are for, and an engine's own rounding."""

from __future__ import annotations

import importlib.util
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pennyweight.errors import EngineFailed, PennyweightError, UnknownName
from pennyweight.export.engines import ENGINES, Engine, find
from pennyweight.export.probes import FOLDER
from pennyweight.flow.bench import ours
from pennyweight.flow.progress import Progress
from pennyweight.network.network import Network, Site

DENSE = ("bfloat16", "float32")
HAS = "import importlib.util, sys; sys.exit(not all(importlib.util.find_spec(name) for name in sys.argv[1:]))"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something that is timed.

    Args:
        name: in the table.
        probe: a program with `timed`.
        python: that runs it.
        files: what it is handed.
        bytes: of them; for weights that were decoded, what they would take.
        options: of the probe.
    """

    name: str
    probe: Path
    python: Path
    files: Path
    bytes: int
    options: dict[str, Any] = field(default_factory=dict)


def chosen(engines: Sequence[str]) -> tuple[str, ...]:
    """Names of what is to be timed.

    Raises:
        UnknownName: none of them is called so.
    """
    known = ("pennyweight", "dense", *(engine.name for engine in ENGINES if engine.probe))
    for name in engines:
        if name not in ("all", *known):
            raise UnknownName(
                f"nothing to time is called {name!r}", expected=f"all, or some of {', '.join(known)}",
                mend="--engine all", site="--engine",
            )  # fmt: skip
    return known if "all" in engines else tuple(name for name in known if name in engines)


def contenders(
    network: Network, reference: Network | None, names: Sequence[str], pythons: Sequence[Path], work: Path,
    progress: Progress,
) -> tuple[list[Contender], dict[str, str]]:  # fmt: skip
    """Everything that can be timed, and why the rest cannot.

    Args:
        network: of the files.
        reference: before compression; None for the same weights, decoded.
        names: as `chosen` gives them.
        pythons: interpreters that may have engines, before this one.
        work: a folder for files that are made.
        progress: told about those.
    """
    found: list[Contender] = []
    without: dict[str, str] = {}
    mine, here = Path(ours.__file__), Path(sys.executable)
    path, size = network.source.path, network.source.stored_bytes
    if "pennyweight" in names:
        given = {"dtype": "bfloat16", "dense": False}
        found.append(Contender(name="pennyweight", probe=mine, python=here, files=path, bytes=size, options=given))
    for dtype in DENSE if "dense" in names else ():
        before = reference or network
        elements = sum(math.prod(info.shape) for info in before.source.tensors.values())
        found.append(
            Contender(
                name=f"dense {dtype}", probe=mine, python=here, files=before.source.path,
                bytes=elements * (2 if dtype == "bfloat16" else 4), options={"dtype": dtype, "dense": True},
            )
        )  # fmt: skip
    for row in (find(name) for name in names if name not in ("pennyweight", "dense")):
        python = having(row, pythons)
        if python is None:
            packages = ", ".join(f"{name}=={version}" for name, version in row.checked_with.items())
            without[row.name] = f"no interpreter has {packages}; name one that does with --python"
            continue
        probe = FOLDER / row.probe
        if row.opens(path):
            handed = row.files.handed(path)
            found.append(Contender(name=row.name, probe=probe, python=python, files=handed, bytes=size))
        else:
            without[row.name] = f"it does not read {path.name}: --for {row.name} writes files for it"
            continue
        if row.own:
            try:
                with progress.stage(f"rounding by {row.name} itself", 1):
                    kind, folder = own(reference or network, row, python, size, work)
            except PennyweightError as error:
                without[f"{row.name}'s own"] = error.happened
            else:
                name = f"{row.name}'s own {kind}"
                made, bytes_ = row.files.handed(folder), bytes_of(folder)
                found.append(Contender(name=name, probe=probe, python=python, files=made, bytes=bytes_))
    return found, without


def having(row: Engine, pythons: Sequence[Path]) -> Path | None:
    """The first interpreter that has an engine: of those named, or this one."""
    for python in pythons:
        command = [str(python), "-c", HAS, *row.modules]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return python
    here = all(importlib.util.find_spec(module) is not None for module in row.modules)
    return Path(sys.executable) if here else None


def own(network: Network, row: Engine, python: Path, size: int, work: Path) -> tuple[str, Path]:
    """The engine's own rounding that comes nearest to a size in bytes, by its own quantizer.

    Of files with codes it rounds those once more: for times, not for what it computes. A type that does not fit the
    model's sizes is passed over for one of more bits.

    Returns:
        The kind, and a folder with what a probe is handed, under the same name as ours.

    Raises:
        PennyweightError: the network cannot be written for the engine, or its quantizer makes nothing of it.
    """
    plain = work / f"{row.name} plain"
    row.files.write(network, {}, _nothing, plain, dtype=row.own_dtype)
    before = row.files.handed(plain)
    low, high, best, said = 0, len(row.own), (math.inf, "", work), ""
    while low < high:  # sizes grow with the kinds, nearly: a few tries are enough
        kind = row.own[(low + high) // 2]
        after = work / f"{row.name} {kind}"
        after.mkdir()
        command = [str(python), str(FOLDER / row.probe), "quantize", str(before), str(after / before.name), kind]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            low, said = (low + high) // 2 + 1, f"{kind}: {_end(ended.stderr)}"
            continue
        bytes_ = bytes_of(after)
        away = abs(bytes_ - size)
        if away < best[0]:
            shutil.rmtree(best[2]) if best[1] else None
            best = (away, kind, after)
        else:
            shutil.rmtree(after)
        low, high = ((low + high) // 2 + 1, high) if bytes_ < size else (low, (low + high) // 2)
    shutil.rmtree(plain)
    if not best[1]:
        raise EngineFailed(f"its quantizer failed: {said}", site=row.name)
    return best[1], best[2]


def bytes_of(folder: Path) -> int:
    """Of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _end(said: str) -> str:
    """The last of what a program said, without the places in its code that it came through."""
    lines = [line for line in said.strip().splitlines() if not line.startswith(("  ", "Traceback"))]
    return "\n".join(lines)[-300:]


def _nothing(site: Site) -> NoReturn:
    raise AssertionError(f"{site.name} was to stay as it is")
