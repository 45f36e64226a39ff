"""What a result rests on: machine, versions, commit, seed; and one way to write it."""

import json
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pennyweight.flow.versions import versions

RESULTS = Path(__file__).parent / "results"


def facts(seed: int) -> dict[str, Any]:
    """Everything that should stand beside a number."""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":?")
    return {
        "seed": seed,
        "commit": commit.stdout.strip() or "unknown",
        "versions": versions(),
        "machine": f"{model.split(':')[1].strip()}, {os.cpu_count()} cores, {platform.system()}",
    }


def kept(name: str, settings: dict[str, Any], drop: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Rows of an earlier run with the same settings, without those to `drop`: where a row takes minutes."""
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    if any(before.get(key) != value for key, value in settings.items()):
        return []
    facts = {key: before[key] for key in ("commit", "threads") if key in before}
    return [{**facts, **row} for row in before["rows"] if not drop(row)]


def write(name: str, value: dict[str, Any]) -> Path:
    """Write one result as JSON."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(value, indent=2) + "\n")
    return path
