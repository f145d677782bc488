"""The folders below the inputs, those that links lead to included, each of them once."""

from __future__ import annotations

import errno
import heapq
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from data_prep.discovery.inputs import Inputs

_REPOSITORY = ".git"  # holds what git keeps; git-annex keeps the content of linked files there
_ANNEX = os.path.join(_REPOSITORY, "annex")


class Folder(NamedTuple):
    """Some or all files of one folder, sorted by name.

    name   the folder's (`Inputs`), "" for the only input itself
    top    whether it is an input itself
    linked  whether its files are links, of which some may lead to files that are read under another name
    """

    name: str
    path: str
    top: bool
    files: list[os.DirEntry[str]]
    linked: bool = False


@dataclass
class Links:
    """How many links were followed.

    folders, files              that were read by them
    folders_again, files_again  that lead to what is read under another name
    above                       that lead to a folder that holds the link or an input, and are not followed
    """

    folders: int = 0
    files: int = 0
    folders_again: int = 0
    files_again: int = 0
    above: int = 0

    def said(self) -> list[str]:
        """Return lines for the console."""
        folders = _said(
            "linked folder",
            self.folders,
            (self.folders_again, "to a folder already read"),
            (self.above, "to a folder that holds it: not followed"),
        )
        return [*folders, *_said("linked file", self.files, (self.files_again, "to a file already read"))]


@dataclass
class Tree:
    """The folders below the inputs, except `skip`.

    What is reached directly is read under its direct path; of several links to one folder or file, the first by name
    counts.

    problems  (name, reason) of folders and links that cannot be read
    zips      names of the inputs that are zip archives
    """

    inputs: Inputs
    skip: Path | None
    links: Links = field(default_factory=Links)
    problems: list[tuple[str, str]] = field(default_factory=list)
    zips: list[str] = field(default_factory=list)
    _skipped: object = None  # key of `skip`
    _read: set[object] = field(default_factory=set)  # keys of folders
    _files: set[object] = field(default_factory=set)  # keys of linked files
    _folder_links: list[tuple[str, os.DirEntry[str]]] = field(default_factory=list)
    _file_links: list[tuple[str, os.DirEntry[str]]] = field(default_factory=list)

    def folders(self) -> Iterator[Folder]:
        """Yield the files of all folders: directly reached ones first, then those by links, then linked files."""
        if self.skip is not None and self.skip.exists():
            self._skipped = _key(os.fspath(self.skip))
        for start, path in self.inputs.folders.items():
            if os.path.isfile(path):
                self.zips.append(start)
            elif start in self.inputs.only:
                with os.scandir(path) as found:
                    files, _ = self._sorted(start, [entry for entry in found if entry.name == self.inputs.only[start]])
                yield Folder(start, os.fspath(path), True, files)
            else:
                yield from self._below(start, os.fspath(path), top=True)
        heapq.heapify(self._folder_links)
        while self._folder_links:
            name, link = heapq.heappop(self._folder_links)
            if self._is_new(link):
                self.links.folders += 1
                yield from self._below(name, link.path, top=False)
        for name, link in sorted(self._file_links, key=lambda pair: pair[0]):
            yield Folder(os.path.dirname(name), os.path.dirname(link.path), False, [link], linked=True)

    def read_before(self, link: os.DirEntry[str]) -> bool:
        """Return whether the file that a link leads to is read under another name; count it."""
        status = link.stat()
        target = os.path.realpath(link.path)
        key = (status.st_dev, status.st_ino) if status.st_ino else target
        again = key in self._files or _key(os.path.dirname(target)) in self._read
        self._files.add(key)
        self.links.files_again += again
        self.links.files += not again
        return again

    def _below(self, name: str, path: str, top: bool) -> Iterator[Folder]:
        direct, root = top, name
        waiting = [(name, path)]
        while waiting:
            name, path = waiting.pop()
            try:
                key = _key(path)
                if key == self._skipped or (not direct and key in self._read):
                    continue
                with os.scandir(path) as found:
                    entries = sorted(found, key=attrgetter("name"))
                self._read.add(key)
                files, inner = self._sorted(name, entries)
            except OSError as error:
                self.problems.append((name or ".", f"folder cannot be read ({error.strerror})"))
                continue
            yield Folder(name, path, top and name == root, files)
            waiting += reversed(inner)

    def _sorted(self, name: str, entries: list[os.DirEntry[str]]) -> tuple[list[os.DirEntry[str]], list]:
        """Return the files of a folder, and (name, path) of the folders in it; put links aside."""
        files, inner = [], []
        for entry in entries:
            if entry.is_symlink():
                self._put_aside(os.path.join(name, entry.name), entry)
            elif not entry.is_dir(follow_symlinks=False):
                files.append(entry)
            elif entry.name != _REPOSITORY:
                inner.append((os.path.join(name, entry.name), entry.path))
        return files, inner

    def _put_aside(self, name: str, link: os.DirEntry[str]) -> None:
        try:
            mode = link.stat().st_mode
        except OSError as error:
            self.problems.append((name, _broken(link, error)))
            return
        if self._leads_into_skipped(link):
            return
        if stat.S_ISDIR(mode):
            heapq.heappush(self._folder_links, (name, link))
        elif stat.S_ISREG(mode):
            self._file_links.append((name, link))
        else:
            self.problems.append((name, "link to what is neither a file nor a folder"))

    def _is_new(self, link: os.DirEntry[str]) -> bool:
        """Return whether a link to a folder is to be followed; count it if not."""
        target = os.path.realpath(link.path)
        try:
            again = _key(target) in self._read
        except OSError:
            return True  # which then says why it cannot be read
        inside = [os.path.realpath(os.path.dirname(link.path)), *map(os.path.realpath, self.inputs.folders.values())]
        above = any(os.path.commonpath((path, target)) == target for path in inside)
        self.links.folders_again += again
        self.links.above += above and not again
        return not (again or above)

    def _leads_into_skipped(self, link: os.DirEntry[str]) -> bool:
        if self.skip is None:
            return False
        skip = os.path.realpath(self.skip)
        return os.path.commonpath((os.path.realpath(link.path), skip)) == skip


def _key(path: str) -> object:
    """Return what identifies a folder. Raises OSError."""
    status = os.stat(path)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _said(what: str, followed: int, *others: tuple[int, str]) -> list[str]:
    """Return a line: how many were followed, and how many lead elsewhere; none where there are none."""
    words = [f"{_count(followed, what)} followed"] if followed else []
    for count, where in others:
        if count:
            words.append(f"{count if words else _count(count, what)} {'leads' if count == 1 else 'lead'} {where}")
    return [", ".join(words)] if words else []


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _broken(link: os.DirEntry[str], error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "link that leads to itself"
    if error.errno != errno.ENOENT:
        return f"link that cannot be followed ({error.strerror})"
    if _ANNEX in os.readlink(link.path):
        return "link to a file that git-annex has not fetched; datalad get or git annex get fetches it"
    return "broken link: what it leads to does not exist"
