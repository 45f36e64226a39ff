"""Who shares the work, as the command line says it."""

from __future__ import annotations

from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext

from pennyweight.flow.working.pool import Pool


def pool_of(arguments: Namespace) -> AbstractContextManager[Pool | None]:
    """Processes where any are asked for; they are gone when the block ends.

    Raises:
        MissingExtra: Ray is not installed.
        InvalidWorkers: the address is none.
    """
    if arguments.workers is None and arguments.ray is None:
        return nullcontext()
    return Pool(arguments.workers, arguments.ray)
