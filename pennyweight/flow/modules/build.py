"""Candidates of a module: a plan carried out, written, read back, and scored from the written files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pennyweight.budget import Measurement
from pennyweight.export.contracts import Grids
from pennyweight.export.engines import Engine
from pennyweight.export.memory import Memory
from pennyweight.flow import artifact
from pennyweight.flow.apply import Row, carry_out, squares
from pennyweight.flow.certifying.claims import Asked
from pennyweight.flow.certifying.compare import Items, OutputScorer
from pennyweight.flow.ladder import HOPELESS, PROBE, allowed_after, allowed_before, rungs, strain
from pennyweight.flow.make_plan import Planner
from pennyweight.flow.modules import store
from pennyweight.flow.modules.held_out import Batch, Outputs, Read
from pennyweight.flow.modules.look import Seen, sites_by_tensor
from pennyweight.flow.progress import Progress
from pennyweight.formats import Compressed, Part
from pennyweight.network.network import Network, Site
from pennyweight.numerics.hashing import of_value
from pennyweight.plan import Plan, Step

# What compresses a module reads it back: any site, any grid.
IN_MEMORY = Engine(
    name="module", file_format="pennyweight", checked_with={}, evidence="loaded",
    reads=Grids(bits=frozenset(range(2, 9)), asymmetric_bits=frozenset(range(2, 9)), group_sizes=None),
    dtypes=frozenset({"float16", "bfloat16"}),
    roles=frozenset({"linear", "transposed", "conv", "experts", "matrix", "head", "embedding"}),
    memory=Memory(weights="stored", unpacking=4.0),
    snippet="module = pennyweight.load_compressed(module, '{path}')",
)  # fmt: skip
PROBES = 6  # candidates tried before the ladder: what a share of the outputs' size does to a metric is unknown at first
ENOUGH = 0.3  # share of a margin from which on a probe tells how metric and damage grow


@dataclass(frozen=True, eq=False)
class Candidate:
    """A plan with its files and its scores on the items that plan.

    Args:
        plan: the recipe.
        key: equal for equal plans.
        directory: of its files.
        hash: of those files.
        weights: hash of the safetensors file among them.
        size: bytes of all its tensors.
        ledger: a row for every site.
        scores: on the planning items, by population and metric.
    """

    plan: Plan
    key: str
    directory: Path
    hash: str
    weights: str
    size: int
    ledger: tuple[Row, ...]
    scores: Mapping[str, Mapping[str, Measurement]]

    @property
    def damage(self) -> float:
        """Predicted, in shares of the outputs' square."""
        return self.plan.damage


@dataclass(eq=False)
class Builder:
    """Makes candidates of one module.

    Args:
        reference: in evaluation mode.
        network: its sites.
        seen: statistics of every tensor.
        planner: makes plans.
        claims: what is asked.
        planning: items to plan each claim with.
        before: outputs of the reference on all held-out items.
        held_out: the batches.
        outputs: the user's function.
        directory: for files of candidates.
        progress: told about every stage.
    """

    reference: nn.Module
    network: Network
    seen: Mapping[str, Seen]
    planner: Planner
    claims: Sequence[Asked]
    planning: Sequence[Items]
    before: Read
    held_out: Sequence[Batch]
    outputs: Outputs
    directory: Path
    progress: Progress
    _made: dict[str, Candidate] = field(default_factory=dict)
    _done: dict[tuple[str, str], tuple[Compressed, Row]] = field(default_factory=dict)

    def ladder(self) -> list[Candidate]:
        """Three candidates or fewer, from safe to small, in the order in which they will be tried."""
        probe = self.within_damage(PROBE * allowed_before(self.claims))
        for _ in range(PROBES):
            if ENOUGH <= strain(self.claims, probe.scores) <= HOPELESS:
                break
            allowed = allowed_after(self.claims, PROBE, probe.damage, probe.scores)
            following = self.within_damage(allowed)
            if following.key == probe.key:
                break
            probe = following
        return rungs(probe, self.within_damage, lambda candidate: candidate.scores, self.claims)

    def within_damage(self, damage: float) -> Candidate:
        """The smallest candidate of at most so much predicted damage."""
        return self.build(self.planner.within_damage(damage))

    def build(self, plan: Plan) -> Candidate:
        """Carry a plan out, write it, read it back, and score it on the planning items."""
        key = of_value(plan.to_toml())[:16]
        if key not in self._made:
            directory = self.directory / key
            compressed, rows = self._carry_out(plan)
            packed = store.pack(self.reference, compressed, plan.dtype)
            store.write(packed, directory)
            candidate = Candidate(
                plan, key, directory, artifact.model_hash(directory), artifact.weights_hash(directory), packed.bytes,
                rows, {},
            )  # fmt: skip
            after, scores = self.read(candidate), dict[str, Mapping[str, Measurement]]()
            with self.progress.stage("measuring candidate", sum(map(len, self.planning))) as advance:
                for items in self.planning:
                    scorer = OutputScorer(self.before, after, items)
                    scores[items.on] = scorer.score(np.arange(len(items)), advance)
            self._made[key] = replace(candidate, scores=scores)
        return self._made[key]

    def read(self, candidate: Candidate) -> Read:
        """Outputs of a candidate, from its files, on the held-out batches."""
        module = store.unpack(self.reference, store.read(candidate.directory))
        return Read(module, self.outputs, self.held_out, self.before.counts)

    def _carry_out(self, plan: Plan) -> tuple[dict[str, tuple[Site, Compressed]], tuple[Row, ...]]:
        sites = sites_by_tensor(self.network)
        compressed: dict[str, tuple[Site, Compressed]] = {}
        rows: list[Row] = []
        with self.progress.stage("compressing", len(sites)) as advance:
            for name, (main, *others) in sites.items():
                if main.name in plan.steps:
                    step = plan.steps[main.name]
                    if (name, step.label()) not in self._done:
                        parameter = self.reference.get_parameter(name).detach()
                        weight, seen = main.matrix(parameter).float(), self.seen[name]
                        self._done[name, step.label()] = compress(main, weight, seen, step, plan.seed)
                    result, row = self._done[name, step.label()]
                    compressed[name] = (main, result)
                    rows += [row, *(replace(row, site=other.name) for other in others)]
                else:
                    rows += [
                        Row(site=site.name, intended="dense", actual=f"dense {plan.dtype}",
                            reason=plan.kept.get(site.name, "the plan names no step for it"), bits=16.0)
                        for site in (main, *others)
                    ]  # fmt: skip
                advance()
        return compressed, tuple(rows)


def compress(site: Site, weight: Tensor, seen: Seen, step: Step, seed: int) -> tuple[Compressed, Row]:
    """Carry a step out on a matrix, each part by what it read; and its row of the ledger.

    A format whose rows share parameters, such as a codebook, stores them once for all parts.

    Args:
        site: whose matrix it is.
        weight: `[out, in]`.
        seen: what it multiplies.
        step: of one stage.
        seed: of the run.
    """
    format = step.stages[0].format
    parts = seen.statistics(site.name, together=not format.rows_stand_alone)
    rows, results, said = len(weight) // len(parts), list[Compressed](), dict[tuple[str, str], int]()
    changed = whole = 0.0
    for part, (statistics, _) in enumerate(parts):
        own = weight[part * rows : (part + 1) * rows].contiguous()
        result, actual, why = carry_out(step, own, statistics, seed, f"{site.name} {part}" if part else site.name)
        gram = torch.eye(own.shape[1]) if statistics is None else statistics.require_gram()
        squared = squares(result, own, gram, 0, rows)
        count = 1 if statistics is None else max(1, statistics.count)
        changed, whole = changed + count * squared[0], whole + count * squared[1]
        said[actual, why] = said.get((actual, why), 0) + 1
        results.append(result)
    first = results[0].parts[0]
    joined = {what: torch.cat([result.parts[0].tensors[what] for result in results]) for what in first.tensors}
    records: list[Mapping[str, Any]] = [result.record for result in results]
    reasons = [
        why if len(said) == 1 else f"{count} of {len(parts)} parts: {why}" for (_, why), count in said.items() if why
    ]
    row = Row(
        site=site.name, intended=step.label(), actual=", ".join(dict.fromkeys(actual for actual, _ in said)),
        reason="; ".join([*reasons, *_few(seen, [few for _, few in parts])]),
        bits=8 * store.packed_bytes(site.shape, format) / site.elements,
        error=changed / max(whole, 1e-30), damping=max(float(r.get("damping", 0.0)) for r in records),
        factorisations=max(int(r.get("factorisations", 0)) for r in records),
    )  # fmt: skip
    return Compressed((Part(format, joined),), site.shape), row


def _few(seen: Seen, few: Sequence[bool]) -> list[str]:
    """What the ledger says of experts that saw too few tokens to be rounded by them."""
    if not any(few) or seen.grams is None:
        return []
    which = [number for number, short in enumerate(few) if short]
    counts = ", ".join(f"{number}: {seen.counts[number]}" for number in which[:8])
    return [
        f"{len(which)} of {len(few)} experts saw fewer tokens than they have inputs, {seen.grams.shape[-1]} "
        f"({counts}{', …' if len(which) > 8 else ''}): rounded by what all of them saw together"
    ]  # fmt: skip
