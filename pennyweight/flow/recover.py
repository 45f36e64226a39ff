"""Train what a plan stored: hand the methods of recovery their pieces of the network, and keep what they give back.

What a method returns is one piece of the journal a site, named by everything it follows from. A block that is trained
is finished by itself; training of the whole network starts again when it is interrupted, and all before it is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pennyweight import catalogue
from pennyweight.corpus import Windows
from pennyweight.errors import InvalidFormat, InvalidMethod, InvalidText
from pennyweight.flow.apply import Applied, Row, carry_out, squares
from pennyweight.flow.collect import Collected
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.formats import Compressed, Format, Part, Refittable
from pennyweight.network.network import Network, Site
from pennyweight.network.running.stream import Stream
from pennyweight.numerics.hashing import of_value
from pennyweight.numerics.memory import release
from pennyweight.numerics.random import derived_seed
from pennyweight.piece import Piece, Weights
from pennyweight.statistics import Statistics

Behind = tuple[list[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]  # blocks, and what is behind the last

BATCH_TOKENS = 1024
BATCHES = 8  # at least, where there are as many windows
HELD_OUT = 0.0625  # share of the batches
BYTES_A_WEIGHT = 24  # weight, hidden weight, its gradient and two averages, and the rounded weight, in float32


def check_recovery(specs: Sequence[str], network: Network, formats: Mapping[str, Format]) -> None:
    """See that every method of recovery can do what is asked of it, before any work.

    Args:
        specs: the methods, by name.
        network: what is compressed.
        formats: of every site, where they are known.

    Raises:
        UnknownName: no method of recovery has this name.
        InvalidFormat: a step stores in a format whose parameters cannot be learnt.
        InvalidMethod: the network does not fit into memory as often as the method needs it.
    """
    for spec in specs:
        method = catalogue.find(spec, "recovery")
        for site, format in formats.items():
            if method.learns and not isinstance(format, Refittable):
                raise InvalidFormat(
                    f"{method.name} cannot learn the parameters of {format.label()}",
                    expected="integer grids, affine, ternary or residual binary codes, or vectors",
                    mend="choose such a format, or no recovery", site=site,
                )  # fmt: skip
        times = 6 if method.unit == "network" else 1 if "onward" in method.needs else 0
        needed = times * BYTES_A_WEIGHT // 6 * sum(site.elements for site in network.sites if site.block is not None)
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > there:
            raise InvalidMethod(
                f"{method.name} needs {needed / 1e9:.0f} GB here, and this machine has {there / 1e9:.0f} GB",
                expected=f"a network that fits into memory {'six times over' if times == 6 else 'in float32'}",
                mend="--recover block_wise", site=spec,
            )  # fmt: skip


def recover(applied: Applied, collected: Collected, calibration: Windows, *, progress: Progress = QUIET) -> Applied:
    """Everything the plan's methods of recovery make of what was applied, one after the other.

    Args:
        applied: codes of every site.
        collected: statistics, for the ledger's errors.
        calibration: text; its last windows are held out from training, and decide whether it is kept.
        progress: told about every step.

    Raises:
        InvalidFormat: a step stores in a format whose parameters cannot be learnt.
        InvalidMethod: the network does not fit into memory as often as a method needs it.
        InvalidText: a single window.
    """
    check_recovery(applied.plan.recovery, applied.network, applied.plan.formats())
    for count in range(1, len(applied.plan.recovery) + 1):
        specs = applied.plan.recovery[:count]
        run = Recovery(applied, collected, calibration, specs, progress)
        applied = run.network() if catalogue.find(specs[-1], "recovery").unit == "network" else run.blocks()
        release()
    return applied


def split(ids: Tensor) -> tuple[Sequence[Tensor], int]:
    """Windows of calibration text in batches of one shape, and how many of the last ones are held out from training."""
    count, length = ids.shape
    batches = torch.split(ids, max(1, min(BATCH_TOKENS // length, count // BATCHES)))
    if len(batches) > 1 and len(batches[-1]) < len(batches[0]):
        batches = batches[:-1]
    return batches, max(1, round(HELD_OUT * len(batches)))


def shown(calibration: Windows) -> Windows:
    """The windows that recovery does not hold out: those that statistics may rest on where it follows.

    Codes fit the text that their statistics were collected on, and look better there than they are: on windows that
    they had seen, no training from other windows would gain.
    """
    batches, held_out = split(calibration.ids)
    count = sum(len(batch) for batch in batches[:-held_out])
    if not count:
        return calibration
    ends = None if calibration.ends is None else calibration.ends[:count]
    return replace(
        calibration, ids=calibration.ids[:count], documents=calibration.documents[:count], ends=ends,
        fingerprint=f"{calibration.fingerprint}, {count} of {len(calibration)}",
    )  # fmt: skip


@dataclass(eq=False)
class Recovery:
    """One method of recovery on one network.

    Args:
        applied: what it starts from.
        collected: statistics.
        calibration: text.
        specs: this method, after all that went before it.
        progress: told about every step.
    """

    applied: Applied
    collected: Collected
    calibration: Windows
    specs: Sequence[str]
    progress: Progress

    def __post_init__(self) -> None:
        network = self.applied.network
        self.method = catalogue.find(self.specs[-1], "recovery")
        self.stream = Stream(network, dtype=torch.float32)
        ids, self.held_out = split(self.calibration.ids)
        most = None if self.method.learns else self.method.batches
        self.ids = [*ids[: -self.held_out][:most], *ids[-self.held_out :]]
        if len(ids) < 2:
            raise InvalidText(
                f"{len(self.calibration)} window of text to learn from", expected="at least two: one is held out",
                mend="more text, or --calibration-windows 64", site="calibration",
            )  # fmt: skip
        self.sites = [s for s in network.sites if s.name in self.applied.keys and s.block is not None]
        self.key = of_value([self.applied.plan.to_toml(), self.calibration.fingerprint, list(self.specs)])[:16]

    def network(self) -> Applied:
        """Train the whole network."""
        if not all(self.applied.journal.has(self._key(site)) for site in self.sites):
            with self.progress.stage("recovering end to end", self.method.steps) as advance, ExitStack() as stack:
                target = torch.split(self.stream.forward(torch.cat(list(self.ids))), len(self.ids[0]))
                begin = stack.enter_context(self.stream.beginning())
                logits = stack.enter_context(self.stream.end())
                for index in range(len(self.applied.network.blocks)):
                    stack.enter_context(self.stream.block(index))

                def run(weights: Weights, batch: int, added: Weights | None = None) -> Tensor:
                    with torch.no_grad():
                        hidden = begin(self.ids[batch])
                    with lower():
                        for index in range(len(self.applied.network.blocks)):
                            hidden = self.stream.replaced(index, hidden, weights, added)
                    return hidden

                def finish(hidden: Tensor) -> Tensor:
                    with lower():
                        return logits(hidden)

                piece = Piece(len(self.ids), self.held_out, run, lambda batch: target[batch], finish, run_with=run)
                self._train(piece, self.sites, "network", advance)
        return self._applied(self.sites)

    def blocks(self) -> Applied:
        """Train block after block, each on what the blocks before it now give."""
        blocks = self.applied.network.blocks
        done = 0
        while done < len(blocks) and all(self.applied.journal.has(self._key(site)) for site in self._sites(done)):
            done += 1
        if done < len(blocks):
            with (
                self.progress.stage("recovering block by block", len(blocks)) as advance,
                torch.no_grad(),
                ExitStack() as stack,
            ):
                with self.stream.beginning() as begin:
                    before = [begin(ids) for ids in self.ids]
                after = [hidden.clone() for hidden in before]
                behind = self._behind(stack) if "onward" in self.method.needs else None
                for index in range(len(blocks)):
                    with self.stream.block(index) as run:
                        before, after = self._through(index, run, before, after, behind, train=index >= done)
                    release()
                    advance()
        return self._applied(self.sites)

    def _through(
        self, index: int, run: Callable[[Tensor], Tensor], entering: Sequence[Tensor], given: Sequence[Tensor],
        behind: Behind | None, *, train: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
        """Train a block, unless that is done; what it returns in the reference, and with what is stored of it then."""
        reads, returned = list[Weights](), list[Tensor]()
        for hidden in entering:
            seen, leaving = self._meant(index, run, hidden)
            reads.append(seen)
            returned.append(leaving)
        if train:
            piece = replace(
                self._block(index, given, returned, behind),
                reads=self._reads(index, given, reads), store=self._store(index),
            )  # fmt: skip
            self._train(piece, self._sites(index), self.applied.network.blocks[index].name, nothing)
        stored = {site.parameter: self._stored(site) for site in self._sites(index)}
        return returned, [self.stream.replaced(index, hidden, stored) for hidden in given]

    def _behind(self, stack: ExitStack) -> Behind:
        """Every block with its weights in memory, and what follows the last one."""
        runs = [stack.enter_context(self.stream.block(index)) for index in range(len(self.applied.network.blocks))]
        return runs, stack.enter_context(self.stream.end())

    def _block(
        self, index: int, given: Sequence[Tensor], meant: Sequence[Tensor], behind: Behind | None
    ) -> Piece:  # fmt: skip
        def run(weights: Weights, batch: int, added: Weights | None = None) -> Tensor:
            with lower():
                return self.stream.replaced(index, given[batch], weights, added)

        def onward(hidden: Tensor) -> Tensor:
            for follow in [] if behind is None else behind[0][index + 1 :]:
                hidden = follow(hidden)
            return hidden

        piece = Piece(len(self.ids), self.held_out, run, lambda batch: meant[batch], run_with=run)
        return piece if behind is None else replace(piece, onward=onward, logits=behind[1])

    def _meant(self, index: int, run: Callable[[Tensor], Tensor], hidden: Tensor) -> tuple[Weights, Tensor]:
        """What weights of a block read in the reference, where a method asks for it, and what the block returns."""
        if "reads" not in self.method.needs:
            return {}, run(hidden)
        with self.stream.reading([site.parameter for site in self._sites(index)], leave=False) as seen:
            returned = run(hidden)
        narrow = {(x.data_ptr(), x.shape): x.bfloat16() for x in seen.values()}  # several weights read one tensor
        return {name: narrow[x.data_ptr(), x.shape] for name, x in seen.items()}, returned

    def _reads(
        self, index: int, given: Sequence[Tensor], meant: Sequence[Weights]
    ) -> Callable[[Weights | None, int, Collection[str]], Weights]:  # fmt: skip
        def reads(weights: Weights | None, batch: int, names: Collection[str]) -> Weights:
            if weights is None:
                return {name: meant[batch][name] for name in names if name in meant[batch]}
            with self.stream.reading(names, leave=True) as seen, lower(True):
                self.stream.replaced(index, given[batch], weights)
            return seen

        return reads

    def _store(self, index: int) -> Callable[[str, Tensor, Tensor], Part | None]:
        sites, plan = {site.parameter: site for site in self._sites(index)}, self.applied.plan

        def store(name: str, weight: Tensor, gram: Tensor) -> Part | None:
            site = sites[name]
            seen = Statistics(edge=site.reads, count=1, gram=gram)
            result, _, reason = carry_out(plan.steps[site.name], weight, seen, plan.seed, site.name)
            return None if reason else result.parts[0]  # another step than the plan's is no better start

        return store

    def _train(self, piece: Piece, sites: Sequence[Site], name: str, advance: Callable[[], None]) -> None:
        network, journal = self.applied.network, self.applied.journal
        parts = {site.parameter: self.applied.compressed(site).parts[0] for site in sites}
        weights = {site.parameter: network.source.read(network.stored_name(site.parameter)) for site in sites}
        seed = derived_seed(self.applied.plan.seed, name, *self.specs)
        found, record = self.method.recover(piece, parts, weights, seed=seed, advance=advance)
        rows = {row.site: row for row in self.applied.ledger()}
        for site in sites:
            part = found[site.parameter]
            row = self._row(rows[site.name], site, part, weights[site.parameter], record)
            journal.save_tensors(self._key(site), dict(part.tensors), {site.name: asdict(row)})
        journal.save(f"recovered/{self.key}-{of_value(name)[:8]}.json", record)

    def _row(self, row: Row, site: Site, part: Part, weight: Tensor, record: Mapping[str, Any]) -> Row:
        if not record["kept"]:
            return replace(row, reason=f"{self.method.name} gained nothing on text it had not seen")
        if site.parameter in record.get("left", ()):
            return replace(row, reason=f"{self.method.name} could not see what it reads, or not round for that")
        assert site.block is not None
        gram = self.collected.block(site.block)[site.reads].require_gram()
        result = Compressed((part,), site.shape)
        changed, whole = squares(result, weight.float(), gram, 0, site.shape[0])
        return replace(row, actual=f"{row.actual}, {self.method.name}", error=changed / max(whole, 1e-30))

    def _sites(self, index: int) -> list[Site]:
        return [site for site in self.sites if site.block == index]

    def _key(self, site: Site) -> str:
        return f"recovered/{self.key}/{of_value(site.name)[:16]}.safetensors"

    def _stored(self, site: Site) -> Tensor:
        return self._applied([site]).compressed(site).dequantize()

    def _applied(self, sites: Sequence[Site]) -> Applied:
        keys = {site.name: (self._key(site), 0, site.shape[0], site.shape[0]) for site in sites}
        return replace(self.applied, keys={**self.applied.keys, **keys})


def nothing() -> None:
    """For a method that nobody watches step by step."""


def lower(always: bool = False) -> Any:
    """Products in bfloat16 where gradients are wanted; what is only measured, and the reference, are in float32.

    What layers of the compressed network read is made with them too (`always`): its noise lies far below the damping of
    the gram matrices that are made of it.
    """
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=always or torch.is_grad_enabled())
