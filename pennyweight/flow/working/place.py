"""Where a run's tasks find what they work on, as values: so that a process that knows nothing can open it.

Every worker must see the model and the run's directory under the same paths, and compute the same bits.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from pennyweight.errors import InvalidWorkers
from pennyweight.flow.artifact import code_hash
from pennyweight.flow.journal import Journal
from pennyweight.flow.load import load
from pennyweight.flow.rewrite import rewrite
from pennyweight.flow.versions import versions
from pennyweight.flow.working.task import Workshop
from pennyweight.latency import this_machine
from pennyweight.numerics.hashing import of_value


@dataclass(frozen=True)
class Place:
    """One run.

    Args:
        model: directory or file of the model handed in.
        run: the run's directory, which has a header and all rewrites by now.
        rewrites: that the model goes through first, by name.
        seed: of the run.
        threads: of the arithmetic of one task.
        fingerprint: of the network that is compressed.
        maker: what bits hang on beside all this; see `maker`.
    """

    model: Path
    run: Path
    rewrites: tuple[str, ...]
    seed: int
    threads: int
    fingerprint: str
    maker: tuple[tuple[str, str], ...]


def maker() -> tuple[tuple[str, str], ...]:
    """Code, versions and processor of this process."""
    return (("code", code_hash()), ("versions", of_value(versions())), ("processor", this_machine()))


@lru_cache(maxsize=1)
def opened(place: Place) -> Workshop:
    """Open a run in a process that is there for its tasks alone.

    Raises:
        InvalidWorkers: this process would give other bits, or does not see the run's directory.
        PennyweightError: the model cannot be opened here; see `load`.
    """
    here = socket.gethostname()
    found = dict(maker())
    different = [f"{name} ({found.get(name)}, not {value})" for name, value in place.maker if found.get(name) != value]
    if different:
        raise InvalidWorkers(
            f"a worker differs in its {' and '.join(different)}, and would give other bits",
            expected="the same packages and processors of one kind on every machine",
            mend="install the same versions there, or leave that machine out", site=here,
        )  # fmt: skip
    if not (place.run / "header.json").exists():
        raise InvalidWorkers(
            f"a worker does not see {place.run}", expected="a disk that all machines share, under one path",
            mend="put MODEL and --out on such a disk", site=here,
        )  # fmt: skip
    torch.set_num_threads(place.threads)
    journal = Journal(place.run, part=f"{here}-{os.getpid()}.part")
    reference = load(place.model)
    network, _ = rewrite(reference, place.rewrites, calibration=(), seed=place.seed, journal=journal)
    if network.source.fingerprint != place.fingerprint:
        raise InvalidWorkers(
            f"a worker finds another model in {place.model}", expected="the same files on all machines",
            mend="put MODEL on a disk that they share", site=here,
        )  # fmt: skip
    return Workshop(network, journal, reference=reference)
