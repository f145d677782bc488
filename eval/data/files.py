"""Arrays and rows that probes write and read again; whatever is wrong with a file is one line with the remedy.

JSON is read by meddap.records.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from meddap.disk import write_atomic
from meddap.errors import MeddapError

# what json, numpy and zipfile raise for a file that is cut or overwritten
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)


class FileError(MeddapError):
    """A file that is missing, cut or cannot be opened; one line that says what to do."""


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn what reading `path` raises into a FileError; `remedy` says what to do, e.g. "delete it and start again"."""
    try:
        yield
    except MeddapError:
        raise
    except OSError as error:
        raise FileError(f"{error.filename or path}: {error.strerror or error}; {remedy}") from error
    except _DAMAGE as error:
        raise FileError(f"{path}: damaged or cut ({type(error).__name__}); {remedy}") from error


@contextmanager
def output_errors(output: Path) -> Iterator[None]:
    """Turn an error of the system (disk full, not allowed) into a FileError, at the latest where a command ends."""
    try:
        yield
    except OSError as error:
        raise FileError(f"{error.filename or output}: {error.strerror or error}") from error


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines, whole or not at all."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """Return all arrays of an .npz."""
    with reading(path, remedy), np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], compressed: bool = True) -> None:
    """Write an .npz, whole or not at all."""
    memory = io.BytesIO()
    save: Callable[..., None] = np.savez_compressed if compressed else np.savez
    save(memory, **arrays)
    write_atomic(path, memory.getvalue())


def mapped(path: Path, remedy: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return the array of an .npy, memory-mapped; one of another `shape` counts as damaged."""
    with reading(path, remedy):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if shape is not None and array.shape != shape:
            raise ValueError(f"shape {array.shape}")
    return array
