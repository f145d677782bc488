"""Worker processes that may crash, hang or run out of memory without taking the others with them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

J = TypeVar("J")
R = TypeVar("R")
_BASE_GB = 4.0  # address space of an interpreter with its libraries
_VOLUMES = 3.0  # volumes in int16 that a conversion holds at its peak


@dataclass(frozen=True)
class LostJob:
    """The result of a job whose process crashed or took too long."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class Workers:
    """`count` processes with a bound on their memory; jobs that take longer than `seconds` are stopped.

    A context manager. Processes come from a fork server, which has no threads and imports the modules `preload` once.
    """

    def __init__(self, count: int, seconds: float, volume_gb: float, preload: Sequence[str] = ()) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        _start_fork_server()
        self._ahead, self._seconds = 2 * count, seconds
        self._pool = ProcessPool(count, initializer=_begin, initargs=[_BASE_GB + _VOLUMES * volume_gb], context=context)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self._pool.close()
        else:
            self._pool.stop()
        self._pool.join()

    def map(self, work: Callable[[J], R], jobs: Iterable[J]) -> Iterator[tuple[J, R | LostJob]]:
        """Yield (job, result) in the order of the jobs, a few ahead; a LostJob where the process was lost.

        Other exceptions of `work` are raised here.
        """
        waiting: deque[tuple[J, Future[R]]] = deque()
        for job in jobs:
            waiting.append((job, self._pool.schedule(work, args=[job], timeout=self._seconds)))
            if len(waiting) > self._ahead:
                yield self._next(waiting)
        while waiting:
            yield self._next(waiting)

    def _next(self, waiting: deque[tuple[J, Future[Any]]]) -> tuple[J, Any]:
        job, future = waiting.popleft()
        try:
            return job, future.result()
        except TookTooLong:
            return job, LostJob(f"took longer than {self._seconds / 60:g} minutes (limits.minutes)")
        except ProcessExpired:
            return job, LostJob("the process that read it was killed or crashed")


def _start_fork_server() -> None:
    """Start the fork server with the import path of this process.

    Left to itself it looks into the working directory first (up to Python 3.10 it always does), and what lies there may
    be another version of ours.
    """
    here = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    before = {name: os.environ.get(name) for name in here}
    os.environ.update(here)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _begin(gigabytes: float) -> None:
    # Ctrl-C reaches every process of a terminal: the parent alone decides what ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # messages of readers and decoders hold values of headers: none may reach a log
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
