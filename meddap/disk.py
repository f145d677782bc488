"""Writing that survives a kill: whole or not at all, by one process at a time. Standard library only."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meddap.errors import MeddapError


class BusyError(MeddapError):
    """Another process holds the folder; one line that says what to do."""


def temporary_of(path: Path) -> Path:
    """A hidden name beside `path`, of this process alone: one left over from a killed start cannot write into ours."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def write_atomic(path: Path, payload: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    temporary.write_bytes(payload)
    flush(temporary)
    os.replace(temporary, path)


def flush(path: Path) -> None:
    """Force a file or folder to the disk, so that a rename after it never names something unwritten."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` (made where it is missing) and clear what a killed start left half-written in it.

    Raises BusyError where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{folder}: another process writes there; wait for it or name another folder") from None
        for left in folder.glob(".*.*.[0-9]*"):
            left.unlink()
        yield
