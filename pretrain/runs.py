"""A run on the disk: its folder, who holds it, and the code that made it."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meddap.disk import BusyError, sole_writer, write_atomic
from meddap.errors import MeddapError
from pretrain.config import Config

log = logging.getLogger("pretrain")

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("data_prep", "eval", "meddap", "pretrain", "slurm")
_KINDS = (".py", ".yaml", ".sh", ".html")
_BESIDE = ("setup.cfg", "pyproject.toml", "constraints.txt", "Makefile")


class TrainingError(MeddapError, RuntimeError):
    """The run cannot go on; the message says at which step, why and what to do."""


def folder_of(config: Config) -> Path:
    """Return the folder of the run: OUTPUT/NAME."""
    return Path(config.output) / config.name


@contextmanager
def held(folder: Path, patience: float) -> Iterator[None]:
    """Hold the run's folder. A process killed a moment ago may still hold the lock: wait `patience` seconds for it."""
    until, said = time.monotonic() + patience, False
    while True:
        try:
            with sole_writer(folder):
                yield
            return
        except BusyError:
            if time.monotonic() > until:
                raise
            if not said:
                log.warning("%s: held by another process; waiting up to %.0f s for it to end", folder, patience)
            said = True
            time.sleep(1)


def code_files(root: Path = ROOT) -> dict[str, bytes]:
    """Return the program's own files by their names below `root`.

    Those are its packages' sources, configurations and batch scripts, and the files that pin its environment.
    """
    paths = [path for package in _PACKAGES for path in (root / package).rglob("*") if path.suffix in _KINDS]
    paths += [root / name for name in _BESIDE if (root / name).is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(paths)}


def code_digest(files: dict[str, bytes]) -> str:
    """Return twelve hexadecimal digits that identify one state of the code."""
    found = hashlib.sha256()
    for name, payload in files.items():
        found.update(f"{name}\0{len(payload)}\0".encode() + payload)
    return found.hexdigest()[:12]


def keep_code(folder: Path, root: Path = ROOT) -> str:
    """Write RUN/code/DIGEST.tar.gz where the run does not have it yet; return the digest.

    There is one archive for each state of the code that a start had. The same files give the same bytes.
    """
    files = code_files(root)
    name = code_digest(files)
    path = folder / "code" / f"{name}.tar.gz"
    if not path.exists():
        write_atomic(path, _packed(files))
    return name


def _packed(files: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with gzip.GzipFile(fileobj=memory, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, payload in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(payload)
            tar.addfile(entry, io.BytesIO(payload))
    return memory.getvalue()
