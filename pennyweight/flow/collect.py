"""One pass over the calibration text, one block in memory: what every edge carries, and what the output minds.

Forward, block by block: the gram matrix of every input, with the activations between blocks on disk. Backward, block by
block from the end, for the first few windows: the gradient of the log-likelihood of tokens drawn from the network's own
predictions, squared and averaged; that is the diagonal of the Fisher information of each activation, and turns a
squared error into nats (HAWQ and its kin; the Kronecker form of docs/methods).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pennyweight.corpus import Windows
from pennyweight.flow.journal import Journal, Spill
from pennyweight.flow.progress import QUIET, Advance, Progress
from pennyweight.flow.working.task import HERE, Workers, Workshop
from pennyweight.network.network import Network, Site
from pennyweight.network.running.stream import Stream
from pennyweight.numerics.linear import add_second_moment
from pennyweight.numerics.memory import release
from pennyweight.numerics.random import stream
from pennyweight.statistics import Statistics

BATCH_TOKENS = 1024  # activations of a block at once: large enough for the matrix products, small enough for memory
ROUNDS = 2  # parts of the windows for every worker: one that waits for another finds something else to do
IDS = "statistics/ids.safetensors"  # windows of the backward pass: what else must be measured is measured on them
PARTIAL = "partial"  # sums over some of the windows, from one task to the next
RUNNER = "runner"  # of the forward pass, in a workshop
HEAD_ROWS = 32  # positions whose logits are in memory at once


@dataclass(frozen=True)
class Collected:
    """Statistics of every edge, kept on disk and loaded a block at a time.

    Args:
        journal: where they lie.
        network: they were collected on.
        fingerprint: of the windows they rest on.
    """

    journal: Journal
    network: Network
    fingerprint: str

    def ids(self) -> Tensor:
        """The first windows they rest on, token ids `[n, length]`."""
        return self.journal.load_tensors(IDS)["ids"]

    def block(self, index: int) -> dict[str, Statistics]:
        """Statistics of all edges that sites of one block read or write."""
        found: dict[str, Statistics] = {}
        for kind in ("gram", "fisher"):
            key = f"statistics/{kind}-{index:04d}.safetensors"
            if not self.journal.has(key):
                continue
            tensors, counts = self.journal.load_tensors(key), self.journal.facts(key)
            edges: dict[str, dict[str, Any]] = {}
            for name, tensor in tensors.items():
                edge, _, what = name.rpartition("|")
                edges.setdefault(edge, {})[what] = tensor
            for edge, parts in edges.items():
                counted = {"fisher_count": counts[edge], "count": 0} if kind == "fisher" else {"count": counts[edge]}
                new = Statistics(edge=edge, **parts, **counted)
                found[edge] = found[edge] + new if edge in found else new
        return found


def statistics_of(shop: Workshop) -> Collected:
    """What was collected on the network that tasks work on."""
    return Collected(shop.statistics or shop.journal, shop.network, "")


def collect(
    network: Network,
    windows: Windows,
    journal: Journal,
    *,
    needs: frozenset[str] = frozenset({"gram", "fisher"}),
    fisher_windows: int = 8,
    seed: int = 0,
    progress: Progress = QUIET,
    workers: Workers = HERE,
) -> Collected:
    """Collect statistics on every edge of every block.

    Several workers follow each other through the blocks, each with some of the windows. One block's sums are added up
    in the order of the windows by whoever comes, so they are those of a single process, bit for bit.

    Args:
        network: the reference network.
        windows: calibration text as token ids `[n, length]`.
        journal: pieces that are there already are not computed again.
        needs: `gram`, and `fisher` when damages are to be predicted in nats.
        fisher_windows: windows of the backward pass.
        seed: of the tokens drawn in the backward pass.
        progress: told about every block.
        workers: who carries the forward pass out; the backward pass is over few windows, and done here.
    """
    runner = Stream(network)
    if not journal.has(IDS):
        journal.save_tensors(IDS, {"ids": windows.ids[: max(1, fisher_windows)].contiguous()})
    kept = min(fisher_windows, len(windows.ids)) if "fisher" in needs else 0
    _forward(runner, windows, journal, kept, progress, workers)
    if "fisher" in needs:
        _backward(runner, windows, journal, min(fisher_windows, len(windows.ids)), seed, progress)
    return Collected(journal, network, windows.fingerprint)


def batches(count: int, length: int) -> Iterator[tuple[int, int]]:
    """Start and stop of batches of windows that hold about BATCH_TOKENS tokens."""
    step = max(1, BATCH_TOKENS // length)
    return ((start, min(start + step, count)) for start in range(0, count, step))


def _forward(
    runner: Stream, windows: Windows, journal: Journal, kept: int, progress: Progress, workers: Workers
) -> None:  # fmt: skip
    network, ids = runner.network, windows.ids
    count, length = ids.shape
    blocks = len(network.blocks)
    missing = (i for i in range(blocks) if not journal.has(_grams(i)))
    first = next(missing, blocks)
    if first == blocks:
        journal.drop("hidden")
        ready = journal.has("statistics/fisher-0000.safetensors") or journal.has(f"inputs/{blocks:04d}.safetensors")
        if kept == 0 or ready:
            return
        first = 0  # grams were collected alone before; the backward pass needs what flows between the blocks
    with progress.stage("collecting statistics", blocks) as advance, torch.no_grad():
        advance(first)
        with runner.beginning() as begin:  # also records what the blocks are called with
            for start, stop in batches(count, length):
                hidden = begin(ids[start:stop])
                if first == 0:
                    _spill(journal, 0, count, length, hidden.shape[-1]).write(start, hidden)
        journal.drop(PARTIAL)  # a block that was not finished begins anew
        every = list(batches(count, length))
        parts = 1 if workers.count == 1 else min(len(every), ROUNDS * workers.count)
        cuts = [len(every) * part // parts for part in range(parts + 1)]
        shop = Workshop(runner.network, journal)
        shop.kept(RUNNER, ids.shape, lambda: runner)
        tasks = (
            RunBlock(index, part, tuple(every[cuts[part] : cuts[part + 1]]), parts, ids, hidden.shape[-1], kept)
            for index in range(first, blocks)
            for part in range(parts)
        )
        workers.run(tasks, shop, advance)
        journal.drop(PARTIAL)
        journal.drop("hidden")


@dataclass(frozen=True, eq=False)
class RunBlock:
    """Run some windows through a block, and add what is seen on its edges to what the windows before them left.

    Args:
        block: its number.
        part: number of these windows among all parts.
        windows: first and one behind the last window of every batch.
        parts: there are.
        ids: of all windows `[n, length]`; what blocks are called with may hang on them.
        size: of the activations between blocks.
        kept: windows whose activations the backward pass needs.
    """

    block: int
    part: int
    windows: tuple[tuple[int, int], ...]
    parts: int
    ids: Tensor
    size: int
    kept: int

    @property
    def piece(self) -> str:
        """The block's statistics, or the sums so far."""
        return _piece(self.block, self.part, self.parts)

    @property
    def after(self) -> tuple[str, ...]:
        """The windows before these in this block, and these in the block before."""
        before = [_piece(self.block, self.part - 1, self.parts)] if self.part else []
        return (*before, _piece(self.block - 1, self.part, self.parts))

    @property
    def amount(self) -> float:
        """A share of a block."""
        return 1 / self.parts

    def carry_out(self, shop: Workshop, advance: Advance) -> None:
        """Read from one file of activations, write to the next."""
        runner, journal = shop.kept(RUNNER, self.ids.shape, lambda: self._runner(shop.network)), shop.journal
        count, length = self.ids.shape
        before, after = (_spill(journal, i, count, length, self.size) for i in (self.block, self.block + 1))
        with torch.no_grad(), runner.block(self.block) as run, _watching(runner, self.block) as sums:
            if self.part:
                _add_saved(journal, _piece(self.block, self.part - 1, self.parts), sums)
            for start, stop in self.windows:
                after.write(start, run(before.read(start, stop)))
        release()
        if self.part < self.parts - 1:
            _save_sums(journal, self.piece, sums)
        else:
            _finish_block(runner.network, journal, self.block, before, after, self.kept, sums)
        if self.part:
            journal.drop(_piece(self.block, self.part - 1, self.parts))
        advance(self.amount)

    def _runner(self, network: Network) -> Stream:
        """One that knows what blocks are called with, for every shape of batch."""
        runner = Stream(network)
        last = {stop - start: (start, stop) for start, stop in batches(*self.ids.shape)}
        with torch.no_grad(), runner.beginning() as begin:
            for start, stop in last.values():
                begin(self.ids[start:stop])
        return runner


def _piece(block: int, part: int, parts: int) -> str:
    return f"{PARTIAL}/{block:04d}-{part:03d}.safetensors" if part < parts - 1 else _grams(block)


def _grams(block: int) -> str:
    return f"statistics/gram-{block:04d}.safetensors"


def _save_sums(journal: Journal, piece: str, sums: Mapping[str, _Sums]) -> None:
    tensors = {f"{edge}|{name}": getattr(one, name) for edge, one in sums.items() for name in _Sums.TENSORS}
    journal.save_tensors(piece, tensors, {edge: one.count for edge, one in sums.items()})


def _add_saved(journal: Journal, piece: str, sums: Mapping[str, _Sums]) -> None:
    """Go on where another task stopped."""
    counts = journal.facts(piece)
    for name, tensor in journal.load_tensors(piece).items():
        edge, _, what = name.rpartition("|")
        setattr(sums[edge], what, tensor)
        sums[edge].count = counts[edge]


def _finish_block(
    network: Network, journal: Journal, index: int, before: Spill, after: Spill, kept: int, sums: Mapping[str, _Sums]
) -> None:  # fmt: skip
    """Save what was seen on the edges of a block, and the first activations for later."""
    if kept:
        journal.save_tensors(f"inputs/{index:04d}.safetensors", {"hidden": before.read(0, kept)})
        if index == len(network.blocks) - 1:
            journal.save_tensors(f"inputs/{index + 1:04d}.safetensors", {"hidden": after.read(0, kept)})
    tensors: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for edge, total in sums.items():
        # In place: the statistics of one block are held once.
        tensors |= {f"{edge}|gram": total.gram.div_(total.count), f"{edge}|mean": total.sum / total.count}
        tensors[f"{edge}|abs_max"] = total.abs_max
        counts[edge] = total.count
    # With this piece, everything the next block needs is there.
    journal.save_tensors(_grams(index), tensors, counts)
    journal.drop(f"hidden/{index:04d}.bin")


def _spill(journal: Journal, index: int, count: int, length: int, size: int) -> Spill:
    return Spill(journal.path(f"hidden/{index:04d}.bin"), count, length, size)


class _Sums:
    """Running sums over one edge."""

    TENSORS = ("gram", "sum", "abs_max")

    def __init__(self, size: int) -> None:
        self.gram, self.sum, self.abs_max = torch.zeros(size, size), torch.zeros(size), torch.zeros(size)
        self.count = 0

    def add(self, x: Tensor) -> None:
        x = x.reshape(-1, x.shape[-1])
        add_second_moment(self.gram, x)
        self.sum += x.sum(0)
        self.abs_max = torch.maximum(self.abs_max, x.abs().amax(0))
        self.count += len(x)


@contextmanager
def _watching(runner: Stream, block: int) -> Iterator[Mapping[str, _Sums]]:
    """Sums over the input of every linear site of a block; sites that read one edge are watched once."""
    sums: dict[str, _Sums] = {}
    handles = []
    for site in _linear_sites(runner.network, block):
        if site.reads in sums:
            continue
        sums[site.reads] = _Sums(site.shape[1])

        def look(_: nn.Module, args: tuple[Any, ...], sums_of_edge: _Sums = sums[site.reads]) -> None:
            sums_of_edge.add(args[0])

        handles.append(runner.module(site.name).register_forward_pre_hook(look))
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _linear_sites(network: Network, block: int) -> list[Site]:
    return [site for site in network.sites if site.block == block and site.role == "linear"]


def _backward(runner: Stream, windows: Windows, journal: Journal, kept: int, seed: int, progress: Progress) -> None:
    blocks = len(runner.network.blocks)
    if journal.has("statistics/fisher-0000.safetensors"):
        journal.drop("gradients")
        journal.drop("inputs")
        return
    with progress.stage("measuring sensitivity", blocks) as advance:
        last = next((i for i in range(blocks) if journal.has(f"statistics/fisher-{i:04d}.safetensors")), blocks)
        advance(blocks - last)
        with torch.no_grad(), runner.beginning() as begin:
            for start, stop in batches(kept, windows.ids.shape[1]):
                begin(windows.ids[start:stop])
        if last == blocks and not journal.has(f"gradients/{blocks:04d}.safetensors"):
            hidden = journal.load_tensors(f"inputs/{blocks:04d}.safetensors")["hidden"]
            gradient = _gradient_of_own_samples(runner, hidden, seed)
            journal.save_tensors(f"gradients/{blocks:04d}.safetensors", {"gradient": gradient})
        for index in range(last - 1, -1, -1):
            hidden = journal.load_tensors(f"inputs/{index:04d}.safetensors")["hidden"]
            gradient = journal.load_tensors(f"gradients/{index + 1:04d}.safetensors")["gradient"]
            sums, gradient = _through_block(runner, index, hidden, gradient)
            release()
            tokens = hidden.shape[0] * hidden.shape[1]
            journal.save_tensors(f"gradients/{index:04d}.safetensors", {"gradient": gradient})
            journal.save_tensors(
                f"statistics/fisher-{index:04d}.safetensors",
                {f"{edge}|fisher": total / tokens for edge, total in sums.items()},
                dict.fromkeys(sums, tokens),
            )
            journal.drop(f"gradients/{index + 1:04d}.safetensors")
            journal.drop(f"inputs/{index + 1:04d}.safetensors")
            advance()
    journal.drop("gradients")
    journal.drop("inputs")


def _gradient_of_own_samples(runner: Stream, hidden: Tensor, seed: int) -> Tensor:
    """Gradient of log p(y) with respect to the last hidden states, y drawn from p at every position."""
    gradient = torch.empty_like(hidden)
    flat, out = hidden.flatten(0, 1), gradient.view(-1, hidden.shape[-1])
    generator = stream(seed, "fisher")
    with runner.end() as finish, torch.enable_grad():
        for start in range(0, len(flat), HEAD_ROWS):
            rows = flat[start : start + HEAD_ROWS].detach().requires_grad_()
            log_p = finish(rows).log_softmax(-1)
            drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
            out[start : start + HEAD_ROWS] = torch.autograd.grad(log_p.gather(1, drawn).sum(), rows)[0]
    return gradient


def _through_block(runner: Stream, index: int, hidden: Tensor, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Sums of squared gradients at every site's output, and the gradient at the block's input."""
    sites = _linear_sites(runner.network, index)
    sums = {site.writes: torch.zeros(site.shape[0]) for site in sites}
    result = torch.empty_like(hidden)
    outputs: dict[str, Tensor] = {}
    handles = [
        runner.module(site.name).register_forward_hook(
            lambda _, __, output, edge=site.writes: outputs.__setitem__(edge, output)
        )
        for site in sites
    ]
    try:
        with runner.block(index) as run, torch.enable_grad():
            for start, stop in batches(len(hidden), hidden.shape[1]):
                x = hidden[start:stop].detach().requires_grad_()
                y = run(x)
                edges = list(outputs)
                grads = torch.autograd.grad(y, [x, *(outputs[e] for e in edges)], gradient[start:stop])
                result[start:stop] = grads[0]
                for edge, grad in zip(edges, grads[1:], strict=True):
                    sums[edge] += grad.flatten(0, -2).square().sum(0)
                outputs.clear()
    finally:
        for handle in handles:
            handle.remove()
    return sums, result
