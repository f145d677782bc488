"""The folders given as --input, seen as one.

Each file has one name, whatever their number. With one folder a name is the path below it. With several it begins
with the folder's own name (made unique), so that equal paths below two of them stay two files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from meddap.errors import MeddapError


class InputError(MeddapError):
    """Folders that cannot be read together; one line that says why."""


@dataclass(frozen=True)
class Inputs:
    """Input folders by the start of their files' names; "" where there is only one."""

    folders: dict[str, Path]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Inputs:
        """Return the folders as one input. Raises InputError if one is missing, or lies in another."""
        given = list(paths)
        apart(given, "--input")
        if len(given) == 1:
            return cls({"": given[0]})
        folders: dict[str, Path] = {}
        for path in given:
            name = start = path.resolve().name or "input"
            number = 1
            while name in folders:
                number += 1
                name = f"{start}-{number}"
            folders[name] = path
        return cls(folders)

    def names(self, path: str | Path, start: str) -> str:
        """Return the name of a file or folder below the input that `start` stands for."""
        below = os.path.relpath(path, self.folders[start])
        return os.path.join(start, below)

    def path(self, name: str) -> str:
        """Return the path to open for a name."""
        if "" in self.folders:
            return os.path.join(self.folders[""], name)
        start, _, below = name.partition(os.sep)
        return os.path.join(self.folders[start], below)

    def below(self, name: str) -> PurePath:
        """Return the path of a file below the --input that holds it."""
        return PurePath(name if "" in self.folders else name.partition(os.sep)[2] or name)


def fingerprint(named: Iterable[tuple[str, str]], more: bytes = b"") -> str:
    """Return the SHA-256 over `more` and the names, sizes and times of files: (name, path to open)."""
    digest = hashlib.sha256(more)
    for name, path in named:
        try:
            status = os.stat(path)
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
        except OSError:
            digest.update(f"{name}\0gone\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def apart(folders: list[Path], option: str) -> None:
    """Raise InputError unless every folder exists and none is, or lies in, another one."""
    resolved = [folder.resolve() for folder in folders]
    for place, (folder, own) in enumerate(zip(folders, resolved)):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; name the folder that holds the images")
        for other, its in zip(folders[:place], resolved[:place]):
            if own == its:
                raise InputError(f"{option} {folder}: given twice; leave one out")
            if own in its.parents or its in own.parents:
                inner, outer = (other, folder) if own in its.parents else (folder, other)
                raise InputError(f"{option} {inner}: lies in {outer}, so its files would be read twice; leave one out")
