"""Files written whole or not at all, by one process at a time, and what the disk refuses as an error of ours.

Standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from meddap.errors import MeddapError


class BusyError(MeddapError):
    """Another process holds the folder; one line that says what to do."""


class DiskError(MeddapError):
    """A file or folder that the system would not read or write; one line that names it."""


@contextmanager
def disk_errors(path: Path, remedy: str = "") -> Iterator[None]:
    """Raise DiskError for an OSError inside: the file that it names, else `path`; the reason; `remedy`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise DiskError(f"{error.filename or path}: {reason}{f'; {remedy}' if remedy else ''}") from error


def temporary_of(path: Path) -> Path:
    """Return a hidden name beside `path`, of this process alone: a leftover of a killed start cannot write into it."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def check_output(path: Path) -> None:
    """Raise DiskError or OSError, before anything is computed, where `write_atomic` could not write this file."""
    _refuse_what_is_no_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        temporary.write_bytes(b"")
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_atomic(path: Path, payload: bytes, flushed: bool = True) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it; what fails leaves nothing behind.

    flushed  False: after a loss of power the file may hold anything, which its reader must notice

    Raises DiskError where a folder or a device has that name: a rename would put the file in the device's place.
    """
    _refuse_what_is_no_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        temporary.write_bytes(payload)
        if flushed:
            flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _refuse_what_is_no_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise DiskError(f"{path}: {'a folder' if path.is_dir() else 'not a file'}; give the name of a file")


def flush(path: Path) -> None:
    """Force a file or folder to the disk, so that a rename after it never names something unwritten."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces (Python 3.10 has no hashlib.file_digest)."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` (created if missing) and remove what a killed start left half-written in it.

    Raises BusyError if another process holds it.
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
