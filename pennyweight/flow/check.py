"""Load files in the engine they are for, in a process of its own, and compare its logits with those of our loader."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pennyweight.errors import InvalidModel, MissingExtra, UnknownName
from pennyweight.export.engines import ENGINES, Engine, find
from pennyweight.export.probes import FOLDER
from pennyweight.flow import artifact
from pennyweight.flow.load import load
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.steps import sample
from pennyweight.network.network import Network
from pennyweight.network.running.rounding import roundings_of
from pennyweight.network.running.stream import Stream

WITHIN = 0.02  # nats a token: more than engines lose by rounding activations, less than a file misread
# Where layers round what they read, two computations that differ in a last bit round many numbers to neighbours: on
# SmolLM2 vLLM and we lose the same, .0388 and .0375, and are .045 apart (benchmarks/results/vllm.json).
ROUNDED = 0.1
PATIENCE = 3600  # seconds an engine may take
LINES = 12  # of what an engine said before it failed


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What an engine did with files.

    Args:
        engine: its name.
        version: of what ran; empty where nothing did.
        loaded: whether it gave logits.
        said: the end of what it said where it did not.
        kl: of our loader's distributions from the engine's, nats per token.
        agreement: share of positions with the same likeliest token.
        largest: difference of a logit.
        perplexity: of the text in the engine.
        ours: the same by our loader.
        positions: compared.
        loading: seconds.
        prefill: tokens a second, a window at a time.
        decode: tokens a second, one at a time.
        rounds: whether the files say that activations or caches are rounded.
    """

    engine: str
    version: str
    loaded: bool
    said: str = ""
    kl: float = float("inf")
    agreement: float = 0.0
    largest: float = float("inf")
    perplexity: float = float("inf")
    ours: float = float("inf")
    positions: int = 0
    loading: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    rounds: bool = False

    @property
    def usual(self) -> float:
        """How far from ours an engine is that misread nothing, nats a token at most."""
        return ROUNDED if self.rounds else WITHIN

    def holds(self, within: float | None = None) -> bool:
        """Whether it loaded and computes what we computed."""
        return self.loaded and self.kl <= (self.usual if within is None else within)


def check(
    path: str | Path,
    *,
    engine: str | None = None,
    python: str | Path | None = None,
    text: str | Path | None = None,
    windows: int = 4,
    length: int = 128,
    allow_network: bool = False,
    progress: Progress = QUIET,
) -> Checked:
    """Run files in their engine.

    Args:
        path: what compress wrote, another directory, or a .gguf file.
        engine: by name; None for the one the files were written for.
        python: an interpreter that has the engine; None for this one where it has, or one that is made and removed.
        text: to read; None for the one every Python carries.
        windows: of it.
        length: tokens in each.
        allow_network: whether the engine may be installed into an environment made for this.
        progress: told about every stage.

    Raises:
        MissingExtra: no interpreter has the engine, and none may be made.
        InvalidModel: our own loader cannot read the files.
        MissingFile: there are none of the kind that the engine reads.
        UnknownName: no such engine, or one that nobody can run here.
    """
    place = Path(path)
    row = _engine(place, engine)
    files = row.files.handed(place)
    network = load(place)
    tokens = sample(text, network, count=windows, length=length).ids
    with tempfile.TemporaryDirectory() as temporary, interpreter(row, python, allow_network, progress) as runs:
        given, out = Path(temporary) / "tokens.npy", Path(temporary) / "logits.npz"
        np.save(given, tokens.numpy())
        with progress.stage(f"running {row.name}", 1):
            said = _run([str(runs), str(FOLDER / row.probe), str(files), str(given), str(out)])
        if not out.is_file():
            return Checked(engine=row.name, version="", loaded=False, said=said)
        with np.load(out) as found:
            theirs, version = torch.from_numpy(found["logits"]), str(found["version"])
            seconds = {name: float(found[name]) for name in ("loading", "prefill", "decode", "decoded")}
    with progress.stage("running our loader", 1):
        mine = _ours(network, tokens)
    if theirs.shape != mine.shape:
        raise InvalidModel(
            f"{row.name} gives logits of shape {tuple(theirs.shape)}, and our loader {tuple(mine.shape)}",
            expected="one for every token of the vocabulary", mend="report this", site=str(place),
        )  # fmt: skip
    p, q = mine.double().log_softmax(-1), theirs.double().log_softmax(-1)
    return Checked(
        engine=row.name, version=version, loaded=True, kl=float((p.exp() * (p - q)).sum(-1).mean()),
        agreement=float((mine.argmax(-1) == theirs.argmax(-1)).double().mean()),
        largest=float((mine - theirs).abs().max()), perplexity=_perplexity(q, tokens), ours=_perplexity(p, tokens),
        positions=tokens.numel(), loading=seconds["loading"],
        prefill=tokens.numel() / seconds["prefill"], decode=seconds["decoded"] / seconds["decode"],
        rounds=bool(roundings_of(network.source)),
    )  # fmt: skip


@contextmanager
def interpreter(
    engine: Engine, python: str | Path | None, allow_network: bool, progress: Progress
) -> Iterator[str | Path]:
    """An interpreter that has an engine; one that is made is removed afterwards.

    Raises:
        MissingExtra: there is none, and none may be made.
    """
    if python is not None:
        yield python
        return
    if all(importlib.util.find_spec(module) is not None for module in engine.modules):
        yield sys.executable
        return
    packages = [f"{name}=={version}" for name, version in engine.checked_with.items()]
    if not allow_network:
        raise MissingExtra(
            f"{engine.name} is not installed here",
            expected=f"an interpreter that has {', '.join(packages)}",
            mend=f"--python venv/bin/python, or --allow-network to install {packages[0]} into an environment that is "
            "removed afterwards",
            site="check",
        )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="pennyweight-engine-") as temporary:
        with progress.stage(f"installing {engine.name}", 1):
            venv.create(temporary, with_pip=True)
            made = Path(temporary) / "bin" / "python"
            said = _run([str(made), "-m", "pip", "install", "--quiet", "numpy", *engine.needs, *packages])
        if subprocess.run(
            [str(made), "-c", f"import {engine.modules[0]}"], capture_output=True, check=False
        ).returncode:
            raise MissingExtra(
                f"{engine.name} could not be installed: {said}", expected="a package index that has it",
                mend="--python with an interpreter that has it", site="check",
            )  # fmt: skip
        yield made


def _engine(place: Path, name: str | None) -> Engine:
    if name is None:
        summary = place / artifact.FOLDER / "summary.json"
        name = artifact.read_record(place, "summary.json")["engine"] if summary.is_file() else _reader_of(place)
    row = find(name)
    if not row.probe:
        able = [engine.name for engine in ENGINES if engine.probe]
        raise UnknownName(
            f"{row.name} cannot be run by us yet", expected=f"one of {', '.join(able)}",
            mend="load it by hand", site="check",
        )  # fmt: skip
    return row


def _reader_of(place: Path) -> str:
    """The first engine that reads the files that lie here and can be run; or transformers, to say what it thinks."""
    return next((row.name for row in ENGINES if row.probe and row.opens(place)), "transformers")


def _run(command: list[str]) -> str:
    """The end of what a program said."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return f"it took more than {PATIENCE} seconds"
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    said = "\n".join((ended.stdout + ended.stderr).strip().splitlines()[-LINES:])
    return said or (f"it ended with code {ended.returncode}" if ended.returncode else "")


def _perplexity(log_probabilities: Tensor, tokens: Tensor) -> float:
    """Of every token but the first of its window."""
    given = log_probabilities[:, :-1].gather(-1, tokens[:, 1:, None].long())
    return float((-given.mean()).exp())


@torch.no_grad()
def _ours(network: Network, tokens: Tensor) -> Tensor:
    runner = Stream(network)
    states = runner.forward(tokens)
    with runner.end() as finish:
        return torch.stack([finish(window).float() for window in states])
