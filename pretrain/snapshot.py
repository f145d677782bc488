"""The code that made a run, kept beside it: RUN/code/<digest>.tar.gz, one for each state of the code that a start had.

Only the program's own files are taken: its packages' sources, configurations and batch scripts, and what pins its
environment. The same files give the same bytes and the same name.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

from meddap.disk import write_atomic

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("data_prep", "eval", "meddap", "pretrain", "slurm")
_KINDS = (".py", ".yaml", ".sh", ".html")
_BESIDE = ("setup.cfg", "pyproject.toml", "constraints.txt", "Makefile")


def sources(root: Path = ROOT) -> dict[str, bytes]:
    """The program's files, by their names below `root`."""
    paths = [path for package in _PACKAGES for path in (root / package).rglob("*") if path.suffix in _KINDS]
    paths += [root / name for name in _BESIDE if (root / name).is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(paths)}


def digest(files: dict[str, bytes]) -> str:
    """Twelve hexadecimal digits that tell one state of the code from another."""
    found = hashlib.sha256()
    for name, payload in files.items():
        found.update(f"{name}\0{len(payload)}\0".encode() + payload)
    return found.hexdigest()[:12]


def keep(run_folder: Path, root: Path = ROOT) -> str:
    """Write the snapshot where the run does not have it yet; returns its digest."""
    files = sources(root)
    name = digest(files)
    path = run_folder / "code" / f"{name}.tar.gz"
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
