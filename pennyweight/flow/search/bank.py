"""Every option of a table, carried out once and kept in the journal: what a search puts together and takes apart.

The pieces are those that `apply` looks for, so a plan that a search found is there when it is to be written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from pennyweight.flow.apply import CompressGroup, compress_groups, rows_of
from pennyweight.flow.collect import Collected
from pennyweight.flow.journal import Journal
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.working.task import HERE, Workers, Workshop
from pennyweight.formats import Compressed, Dense, Part
from pennyweight.network.network import Network, Site
from pennyweight.plan import Option
from pennyweight.problem import Table


@dataclass(frozen=True, eq=False)
class Bank:
    """Weights of every option, read from the journal when they are asked for.

    Args:
        network: what is compressed.
        table: options of every group.
        journal: where they lie.
        seed: of the methods.
    """

    network: Network
    table: Table
    journal: Journal
    seed: int

    def fill(self, collected: Collected, *, progress: Progress = QUIET, workers: Workers = HERE) -> None:
        """Carry out what is not in the journal yet, a block at a time.

        Args:
            collected: gram matrices of the edges the sites read.
            progress: told about every option.
            workers: who carries it out.
        """
        tasks = [
            CompressGroup.of(members, option.step, self.seed)
            for block in (*range(len(self.network.blocks)), None)
            for group in self.groups_of(block)
            for option in self.table[group]
            for members in self._together(option)
        ]
        with progress.stage("carrying out every option", len(tasks)) as advance:
            compress_groups(tasks, Workshop(self.network, self.journal, statistics=collected.journal), workers, advance)

    def groups_of(self, block: int | None) -> list[int]:
        """Groups whose sites live in a block, or outside of all."""
        by_name = self.network.by_name
        return [g for g, options in enumerate(self.table) if by_name[options[0].sites[0]].block == block]

    def weights(self, option: Option) -> Mapping[str, Tensor]:
        """What an option puts in place of weights, by parameter, float32; nothing where it keeps them dense."""
        return dict(self._weights(option))

    def _weights(self, option: Option) -> Iterator[tuple[str, Tensor]]:
        format = option.step.stages[0].format
        for members in self._together(option):
            key = CompressGroup.of(members, option.step, self.seed).piece
            places, rows = rows_of(members, self.network)
            whole = Compressed(
                (Part(format, self.journal.load_tensors(key)),), (rows, members[0].shape[1])
            ).dequantize()
            for site, (start, stop) in zip(members, places, strict=True):
                yield site.parameter, whole[start:stop]

    def _together(self, option: Option) -> list[list[Site]]:
        """Sites of an option that are swept together: all of them, or each by itself where rows share parameters."""
        format = option.step.stages[0].format
        if isinstance(format, Dense):
            return []
        sites = [self.network.by_name[name] for name in option.sites]
        return [sites] if format.rows_stand_alone else [[site] for site in sites]
