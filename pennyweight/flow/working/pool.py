"""Processes that share a run's work: started on this machine by Ray, or those of a Ray cluster that is there.

Processes that are started here listen on this machine alone, know a secret of their own, and vanish with this process.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

from pennyweight.errors import InvalidWorkers, MissingExtra
from pennyweight.flow.journal import Journal
from pennyweight.flow.settings import Settings
from pennyweight.flow.working.on_ray import RayWorkers
from pennyweight.flow.working.place import Place, maker
from pennyweight.flow.working.task import HERE, Workers
from pennyweight.network.network import Network

OBJECTS = 100_000_000  # bytes of Ray's own memory for what travels: tasks are values, and small
WITHIN = 5.0  # seconds in which a cluster has to answer
QUIET = {"log_to_driver": False, "configure_logging": False}
OURS = {  # read by Ray before it starts anything; the first is named for systems where it is the default
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_worker_niceness": "0",  # 15 is its default: beside other work such processes get a thirtieth of a core
}  # fmt: skip


@dataclass(eq=False)
class Pool:
    """Workers of one or several runs; Ray is started when the first task comes.

    Args:
        count: tasks at once; None for as many as a cluster has room for.
        address: of a cluster, such as `10.0.0.1:6379`; None to start processes on this machine.

    Raises:
        MissingExtra: Ray is not installed.
        InvalidWorkers: the address is none.
    """

    count: int | None = None
    address: str | None = None
    _stack: list[Any] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise MissingExtra(
                "Ray is not installed", expected="the extra for work in several processes",
                mend="pip install 'pennyweight[workers]'", site="--workers",
            )  # fmt: skip
        if self.address is None and self.count is None:
            raise InvalidWorkers("neither a number nor an address", expected="one of them", site="--workers")
        if self.address is not None and not re.fullmatch(r"[\w.-]+:\d{1,5}", self.address):
            raise InvalidWorkers(
                f"{self.address!r} is no address", expected="host and port of a Ray cluster",
                mend="ray start --head prints it, such as 10.0.0.1:6379", site="--ray",
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        while self._stack:
            self._stack.pop().__exit__(kind, error, at)

    def at(self, place: Place) -> RayWorkers:
        """Workers of one run.

        Raises:
            InvalidWorkers: the cluster does not answer, or has no room for one task.
        """
        if not self._stack:
            ray = _cluster(self.address) if self.address is not None else _processes(self.count or 1)
            ray.__enter__()
            self._stack.append(ray)
        if self.address is None:
            return RayWorkers(self.count or 1, place, cores=1)
        return RayWorkers(_room(place.threads, self.count, self.address), place, cores=place.threads)


@contextmanager
def _processes(count: int) -> Iterator[None]:
    """Ray on this machine alone, with files that vanish."""
    with tempfile.TemporaryDirectory(prefix="pw-", ignore_cleanup_errors=True) as files:
        with _environment(_private()):
            import ray

            ray.init(
                address="local", num_cpus=count, include_dashboard=False, object_store_memory=OBJECTS,
                _temp_dir=files, **QUIET,
            )  # fmt: skip
            _silence()
        try:
            yield
        finally:
            ray.shutdown()


@lru_cache
def _private() -> Mapping[str, str]:
    """What keeps Ray on this machine and to itself; it reads that once a process, when it is imported."""
    if "ray" in sys.modules:
        raise InvalidWorkers(
            "Ray was imported before, and may listen on the network by now", expected="a process that has not used Ray",
            mend="start ray start --head and give its address, or begin in a new process", site="--workers",
        )  # fmt: skip
    return {**OURS, "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """A cluster that somebody started."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=WITHIN).close()
    except (OSError, OverflowError) as error:
        raise _unanswered(address, error) from error
    with _environment({"RAY_USAGE_STATS_ENABLED": "0"}):
        import ray
        from ray.exceptions import RayError
    try:
        ray.init(address=address, **QUIET)
        _silence()
    except (OSError, RuntimeError, RayError) as error:
        raise _unanswered(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _silence() -> None:
    """Ray tells on stdout that a worker died, where results go; there is no setting for it (2.60)."""
    from ray._private import worker

    worker._worker_logs_enabled = False


def _unanswered(address: str, error: Exception) -> InvalidWorkers:
    return InvalidWorkers(
        f"no Ray cluster answers: {str(error).splitlines()[0] if str(error) else error!r}",
        expected="one that runs, of the same version of Ray",
        mend="ray start --head there, or --workers 2 for processes of this machine", site=address,
    )  # fmt: skip


def _room(threads: int, most: int | None, address: str) -> int:
    import ray

    cores = int(ray.cluster_resources().get("CPU", 0))
    if cores < threads:
        raise InvalidWorkers(
            f"a task takes {threads} cores, and the cluster has {cores} altogether",
            expected="room for one task", mend=f"--threads {max(cores, 1)}", site=address,
        )  # fmt: skip
    return min(cores // threads, most or cores)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def workers_of(
    pool: Pool | None, reference: Network, network: Network, journal: Journal, settings: Settings
) -> Workers:  # fmt: skip
    """Whoever carries out the tasks of a run; this process where nobody else is asked to.

    Args:
        pool: processes, or None.
        reference: the model handed in.
        network: what is compressed: the reference, or a rewrite of it that the journal holds.
        journal: of the run.
        settings: of the run.

    Raises:
        InvalidWorkers: the cluster does not answer, or has no room for one task.
    """
    if pool is None:
        return HERE
    return pool.at(
        Place(
            model=reference.source.path.resolve(), run=journal.directory.resolve(), rewrites=settings.rewrites,
            seed=settings.seed, threads=settings.threads, fingerprint=network.source.fingerprint, maker=maker(),
        )
    )  # fmt: skip
