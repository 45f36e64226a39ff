"""One rung of the ladder: a plan, carried out, written, read back bit for bit, and scored from the written files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from pennyweight.budget import Measurement
from pennyweight.corpus import Windows
from pennyweight.errors import VerificationFailed
from pennyweight.export.engines import find
from pennyweight.export.files import rounding_files
from pennyweight.flow import artifact
from pennyweight.flow.apply import Applied, apply
from pennyweight.flow.certifying import evidence
from pennyweight.flow.collect import Collected
from pennyweight.flow.journal import Journal
from pennyweight.flow.load import load
from pennyweight.flow.measure import ReferenceStates, Scorer, windows_at_once
from pennyweight.flow.progress import Advance, Progress
from pennyweight.flow.recover import recover
from pennyweight.flow.rounding import activations_of
from pennyweight.flow.working.task import HERE, Workers, Workshop
from pennyweight.formats.passing import Activations
from pennyweight.network.network import Network
from pennyweight.numerics.hashing import of_value
from pennyweight.plan import Plan


@dataclass(frozen=True, eq=False)
class Candidate:
    """A plan with its files and its scores on the selection split.

    Args:
        plan: the recipe.
        key: of its folder and evidence in the journal.
        directory: files an engine loads.
        network: read from those files.
        hash: of those files.
        weights: hash of the files among them that hold weights.
        size: of those files, bytes.
        selection: scores on the selection split, by metric.
    """

    plan: Plan
    key: str
    directory: Path
    network: Network
    hash: str
    weights: str
    size: int
    selection: Mapping[str, Measurement]

    @property
    def damage(self) -> float:
        """Predicted KL, nats per token."""
        return self.plan.damage

    @property
    def loss(self) -> float:
        """Mean rise of the loss on the selection split, nats per token."""
        return float(self.selection["perplexity"].degradation.mean())


def build(
    plan: Plan,
    reference: Network,
    collected: Collected,
    windows: Windows,
    journal: Journal,
    states: ReferenceStates,
    metrics: Sequence[Any],
    progress: Progress,
    network: Network | None = None,
    calibration: Windows | None = None,
    workers: Workers = HERE,
) -> Candidate:
    """Apply, write, re-read and score one plan; whatever of it is in the journal already is not done again.

    Args:
        plan: the recipe.
        reference: the model handed in, which candidates are measured against.
        collected: statistics of the network that is compressed.
        windows: of the selection split.
        journal: of the run.
        states: hidden states of the reference on these windows.
        metrics: to score.
        progress: told about every stage.
        network: what is compressed, where the reference was rewritten first.
        calibration: text that recovery learns from and roundings are fitted to; needed where the plan asks for them.
        workers: who compresses and scores; recovery and writing are done here.

    Raises:
        VerificationFailed: the written files do not hold what was computed.
    """
    key, network = of_value(plan.to_toml())[:16], network or reference
    directory = journal.directory / "candidates" / key
    if not journal.has(f"candidates/{key}.json"):
        applied = apply(plan, network, collected, journal, progress=progress, workers=workers)
        if plan.recovery:
            assert calibration is not None
            applied = recover(applied, collected, calibration, progress=progress)
        with progress.stage("writing", len(network.source.tensors)) as advance:
            directory.mkdir(parents=True, exist_ok=True)
            files = find(plan.engine).files
            activations = activations_of(plan, network, calibration, journal, progress)
            if activations:
                files = rounding_files(files).rounding(activations)
            accounting = files.write(
                network, plan.formats(), applied.compressed, directory, dtype=plan.dtype,
                on_tensor=lambda _name, _bytes: advance(1),
            )  # fmt: skip
            accounting.reconcile()
            _read_back(directory, applied, network, activations)
        facts = {
            "ledger": [asdict(row) for row in applied.ledger()], "accounting": accounting.to_dict(),
            "hash": artifact.model_hash(directory), "weights": artifact.weights_hash(directory),
            "size": artifact.size_on_disk(directory),
        }  # fmt: skip
        journal.save(f"candidates/{key}.json", facts)
    facts = journal.load(f"candidates/{key}.json")
    candidate = load(directory)
    if not journal.has(f"selection/{key}.json"):
        cuts = _cuts(len(windows), windows_at_once(reference, windows), workers.count)
        tasks = [Score(key, *cut, windows, states.key, tuple(metrics)) for cut in itertools.pairwise(cuts)]
        with progress.stage("measuring candidate", len(windows)) as advance:
            workers.run(tasks, Workshop(network, journal, reference=reference), advance)
        journal.save(f"selection/{key}.json", evidence.join([journal.load(task.piece) for task in tasks]))
        journal.drop(f"scored/{key}")
    selection = evidence.from_values(journal.load(f"selection/{key}.json"))
    return Candidate(plan, key, directory, candidate, facts["hash"], facts["weights"], facts["size"], selection)


@dataclass(frozen=True, eq=False)
class Score:
    """Score some windows of a candidate.

    Args:
        key: of the candidate.
        start: first window.
        stop: one behind the last.
        windows: all of them.
        states: folder of the reference's hidden states.
        metrics: to score.
    """

    key: str
    start: int
    stop: int
    windows: Windows
    states: str
    metrics: tuple[Any, ...]
    after: ClassVar[tuple[str, ...]] = ()

    @property
    def piece(self) -> str:
        """Scores by metric."""
        return f"scored/{self.key}/{self.start:06d}-{self.stop:06d}.json"

    @property
    def amount(self) -> float:
        """Windows."""
        return self.stop - self.start

    def carry_out(self, shop: Workshop, advance: Advance) -> None:
        """From the candidate's files."""
        reference = shop.reference or shop.network
        candidate = shop.kept("candidate", self.key, lambda: load(shop.journal.directory / "candidates" / self.key))
        states = ReferenceStates(shop.journal, self.states)
        scorer = Scorer(reference, candidate, self.windows, states, self.metrics)
        scores = scorer.score(np.arange(self.start, self.stop, dtype=np.int64), advance)
        shop.journal.save(self.piece, evidence.to_values(scores))


def _cuts(count: int, batch: int, workers: int) -> list[int]:
    """Where to part windows: between batches, for what goes through a network together hangs on no worker."""
    batches = -(-count // batch)
    return sorted({batch * (batches * part // workers) for part in range(workers)} | {count})


def facts_of(candidate: Candidate, journal: Journal) -> Any:
    """Ledger and accounting of a candidate."""
    return journal.load(f"candidates/{candidate.key}.json")


def _read_back(directory: Path, applied: Applied, network: Network, activations: Activations) -> None:
    """Compare codes and scales in the files with those computed, bit for bit, and the weights that follow from them.

    Both are read back by a reader that shares no code with the writer; for GGUF the weights are another package's.
    """
    if not applied.keys:
        return
    part_of, written = find(applied.plan.engine).files.parts(directory), load(directory)
    if activations and not activations.same(getattr(written.source, "activations", Activations())):
        raise VerificationFailed(
            "the written files do not say what is to be rounded", expected="equal scales, bit for bit",
            mend="report this; the files must not be used", site=str(directory),
        )  # fmt: skip
    for site in network.sites:
        if site.name not in applied.keys:
            continue
        compressed = applied.compressed(site)
        name = written.stored_name(site.parameter)
        meant, found = compressed.parts[0], part_of(name)
        same = meant.tensors.keys() == found.tensors.keys() and all(
            torch.equal(tensor, found.tensors[name]) for name, tensor in meant.tensors.items()
        )
        same = same and torch.equal(written.source.read(name), compressed.dequantize())
        if not same or meant.format != found.format:
            raise VerificationFailed(
                "the written file does not hold what was computed",
                expected="equal codes, scales and zero points, bit for bit",
                mend="report this; the file must not be used",
                site=site.name,
            )
