"""The folders, zip archives and single files given as --input, seen as one.

Each file has one name, whatever their number. With one folder a name is the path below it. With several it begins
with the folder's own name (made unique), so that equal paths below two of them stay two files. A single file stands
for the folder that holds it without the other files there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from data_prep.volumes import zips
from meddap.errors import MeddapError


class InputError(MeddapError):
    """Folders that cannot be read together; one line that says why."""


@dataclass(frozen=True)
class Inputs:
    """Input folders, or zip archives, by the start of their files' names; "" where there is only one.

    only  start → name of the one file that is read in its folder, where a file was given
    """

    folders: dict[str, Path]
    only: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Inputs:
        """Return folders and files as one input. Raises InputError if one is missing, or lies in another."""
        given = list(paths)
        apart(given, "--input", archives=True)
        folders: dict[str, Path] = {}
        only: dict[str, str] = {}

        def add(start: str, path: Path) -> None:
            single = path.is_file() and not zips.is_archive(path.name)
            folders[start] = path.parent if single else path
            if single:
                only[start] = path.name

        if len(given) == 1:
            add("", given[0])
            return cls(folders, only)
        for path in given:
            name = start = path.resolve().name or "input"
            number = 1
            while name in folders:
                number += 1
                name = f"{start}-{number}"
            add(name, path)
        return cls(folders, only)

    def path(self, name: str) -> str:
        """Return the path to open for a name."""
        if "" in self.folders:
            return os.path.join(self.folders[""], name)
        start, _, below = name.partition(os.sep)
        return os.path.join(self.folders[start], below)

    def below(self, name: str) -> PurePath:
        """Return the path of a file below the --input that holds it; zip archives count as folders of their stem."""
        own = name if "" in self.folders else name.partition(os.sep)[2] or name
        if zips.SUFFIX + os.sep not in own.lower():
            return PurePath(own)
        *folders, file = own.split(os.sep)
        stems = [part[: -len(zips.SUFFIX)] if zips.is_archive(part) else part for part in folders]
        return PurePath(*(stem or part for stem, part in zip(stems, folders)), file)


def fingerprint(named: Iterable[tuple[str, str]], more: bytes = b"") -> str:
    """Return the SHA-256 over `more` and the names, sizes and times of files: (name, path to open)."""
    digest = hashlib.sha256(more)
    for name, path in named:
        try:
            status = zips.status(path)
            digest.update(f"{name}\0{status.size}\0{status.changed}\0".encode(errors="surrogateescape"))
        except OSError:
            digest.update(f"{name}\0gone\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def apart(folders: list[Path], option: str, archives: bool = False) -> None:
    """Raise InputError unless every folder exists and none is, or lies in, another one.

    archives  whether zip archives and single files count as folders; archives of other kinds do not
    """
    resolved = [folder.resolve() for folder in folders]
    for place, (folder, own) in enumerate(zip(folders, resolved)):
        ending = zips.other_archive(folder.name)
        if folder.is_file() and (ending or not archives):
            instead = "unpack it" if ending else "name the folder that holds it"
            raise InputError(f"{option} {folder}: a {ending + ' archive' if ending else 'file'}; {instead}")
        if not folder.exists():
            raise InputError(f"{folder}: no such folder; name the folder that holds the images")
        for other, its in zip(folders[:place], resolved[:place]):
            if own == its:
                raise InputError(f"{option} {folder}: given twice; leave one out")
            if own in its.parents or its in own.parents:
                inner, outer = (other, folder) if own in its.parents else (folder, other)
                raise InputError(f"{option} {inner}: lies in {outer}, so its files would be read twice; leave one out")
