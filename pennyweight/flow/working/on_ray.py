"""Tasks on Ray. A process that dies costs the tasks it had, and they are begun again; what is finished stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from pennyweight.errors import WorkerLost
from pennyweight.flow.progress import Advance, quiet
from pennyweight.flow.working.place import Place, opened
from pennyweight.flow.working.task import Task, Workshop

ATTEMPTS = 3  # at one task whose worker dies
AHEAD = 2  # tasks handed out for every worker, so that none waits for this process


@dataclass(frozen=True)
class RayWorkers:
    """Carries out tasks of one run.

    Args:
        count: tasks at once.
        place: of the run.
        cores: that Ray counts for a task.
    """

    count: int
    place: Place
    cores: int

    def run(self, tasks: Iterable[Task], shop: Workshop, advance: Advance) -> None:
        """Carry out tasks, each as soon as those it needs are done.

        Raises:
            WorkerLost: a task took three workers with it, or the cluster is gone.
            PennyweightError: what a task raised.
        """
        import ray
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

        assert shop.journal.directory.resolve() == self.place.run, "tasks of another run"
        queue = _Queue(tasks, shop, advance)
        carry_out = ray.remote(num_cpus=self.cores, max_retries=0)(_carry_out)
        flying: dict[Any, Task] = {}
        attempts: Counter[str] = Counter()
        try:
            while queue.waiting or flying:
                for task in queue.ready(AHEAD * self.count - len(flying)):
                    flying[carry_out.remote(task, self.place)] = task
                done, _ = ray.wait([*flying], timeout=1.0)
                for one in done:
                    task = flying.pop(one)
                    try:
                        ray.get(one)
                    except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
                        attempts[task.piece] += 1
                        if attempts[task.piece] == ATTEMPTS:
                            raise _lost(task.piece, ATTEMPTS, error) from error
                        queue.again(task)
                    else:
                        queue.done(task)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            raise _lost("Ray", 1, error) from error
        finally:
            with suppress(RayError):
                for one in flying:
                    ray.cancel(one, force=True)


class _Queue:
    """Tasks that are not handed out yet, in their order."""

    def __init__(self, tasks: Iterable[Task], shop: Workshop, advance: Advance) -> None:
        self.waiting: list[Task] = []
        self._missing: set[str] = set()
        self._advance = advance
        for task in tasks:
            if task.piece in self._missing or shop.journal.has(task.piece):
                advance(task.amount)
            else:
                self._missing.add(task.piece)
                self.waiting.append(task)

    def ready(self, most: int) -> Sequence[Task]:
        """Hand out tasks that need nothing that is missing, `most` of them at most."""
        found = list(islice((t for t in self.waiting if self._missing.isdisjoint(t.after)), max(0, most)))
        self.waiting = [task for task in self.waiting if not any(task is one for one in found)]
        return found

    def again(self, task: Task) -> None:
        """Take back a task that was not done."""
        self.waiting.insert(0, task)

    def done(self, task: Task) -> None:
        """Others may need it."""
        self._missing.discard(task.piece)
        self._advance(task.amount)


def _carry_out(task: Task, place: Place) -> None:
    """In a worker: nothing travels back but what went wrong."""
    shop = opened(place)
    torch.set_num_threads(place.threads)
    if not shop.journal.has(task.piece):
        task.carry_out(shop, quiet)


def _lost(what: str, times: int, error: Exception) -> WorkerLost:
    return WorkerLost(
        f"its worker died {times} times" if times > 1 else "it does not answer any more",
        expected=f"workers that live: {str(error).splitlines()[0]}",
        mend="look for lack of memory, and use fewer workers; the same command goes on where this one stopped, with "
        "workers or without", site=what,
    )  # fmt: skip
