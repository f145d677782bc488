"""Worker processes that may crash, hang or run out of memory without taking the others with them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as TookTooLong
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

J = TypeVar("J")
_BASE_GB = 4.0  # address space of an interpreter with its libraries
_VOLUMES = 3.0  # volumes in int16 that a conversion holds at its peak


class Failure(RuntimeError):
    """A job that did not come back: its process crashed or took too long."""


class Workers:
    """`count` processes, each with a bound on its memory; jobs that overstay `seconds` are stopped.

    A context manager. Processes come from a fork server, which has no threads and imports once.
    """

    def __init__(self, count: int, seconds: float, volume_gb: float) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["data_prep.sharding.convert_ct", "data_prep.sharding.convert_mri"])
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

    def map(self, work: Callable[[J], Any], jobs: Iterable[J]) -> Iterator[tuple[J, Any]]:
        """(job, result) in the order of the jobs, a few ahead; a result is a Failure where the process was lost.

        Other exceptions of `work` are raised here.
        """
        waiting: deque[tuple[J, Any]] = deque()
        for job in jobs:
            waiting.append((job, self._pool.schedule(work, args=[job], timeout=self._seconds)))
            if len(waiting) > self._ahead:
                yield self._result(*waiting.popleft())
        while waiting:
            yield self._result(*waiting.popleft())

    def _result(self, job: J, future: Any) -> tuple[J, Any]:
        try:
            return job, future.result()
        except TookTooLong:
            return job, Failure(f"took longer than {self._seconds / 60:g} minutes (limits.minutes)")
        except ProcessExpired:
            return job, Failure("the process that read it was killed or crashed")


def _begin(gigabytes: float) -> None:
    # messages of readers and decoders hold values of headers: none may reach a log
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
