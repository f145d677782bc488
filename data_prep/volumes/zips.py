"""Zip archives read as folders: members are listed, checked and opened, never unpacked by their names.

A member's path is the archive's with its own behind it, as if the archive were a folder: p1/study.zip/DICOM/IM0001.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import re
import stat
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO, NamedTuple, cast

from data_prep.volumes.errors import UnreadableError, unless_trouble
from data_prep.volumes.volume import RejectedSeries

SUFFIX = ".zip"
_OTHERS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_MOST = 1_000_000  # members of an archive
_PIECE = 1 << 20
_INSIDE = re.compile(r"\.zip(?=/)", re.IGNORECASE)
_PART = re.compile(r"\.(?:(?:zip|7z|tar|rar)\.\d{3}|z\d\d)$")  # of an archive in several files
_DRIVE = re.compile(r"[A-Za-z]:")
_MAC = "__MACOSX"  # where macOS puts what its own files are accompanied by


@dataclass
class Listing:
    """The members that may be read, as paths below the archive, and why others may not.

    sizes    of the members, in bytes
    refused  reason → members that are not read for it
    ignored  members that accompany others on macOS
    """

    members: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    ignored: int = 0

    @property
    def problem(self) -> str:
        """What is refused, as one reason; "" if nothing is."""
        return "zip archive: " + ", ".join(f"{n} {why}" for why, n in self.refused.items()) if self.refused else ""


class Status(NamedTuple):
    """Size in bytes and time of the last change in ns; of a member: its archive's."""

    size: int
    changed: int


class _Archive:
    """An opened archive: its members by normalised paths."""

    def __init__(self, path: str) -> None:
        self.file = zipfile.ZipFile(path)
        self.members: dict[str, zipfile.ZipInfo] = {}
        self.listing = Listing()
        twice: set[str] = set()
        for info in self.file.infolist():
            if info.is_dir():
                continue
            name, reason = _name(info.filename), _refusal(info)
            if name in self.members or name in twice:
                twice.add(name)
                reason = "of several with one name"
            if reason:
                self.listing.refused[reason] += 1
            elif name.partition("/")[0] == _MAC:
                self.listing.ignored += 1
            else:
                self.members[name] = info
        for name in twice & set(self.members):
            del self.members[name]
            self.listing.refused["of several with one name"] += 1
        self.listing.members = sorted(self.members)
        self.listing.sizes = [self.members[name].file_size for name in self.listing.members]


def is_archive(name: str) -> bool:
    """Return whether a file's name has the ending of a zip archive."""
    return name.lower().endswith(SUFFIX)


def other_archive(name: str) -> str:
    """Return the ending of an archive that is not read; "" for other files."""
    if part := _PART.search(name.lower()):
        return part[0]
    return max((suffix for suffix in _OTHERS if name.lower().endswith(suffix)), key=len, default="")


def split(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return the archive that a path leads through and the path of the member in it; None for other paths."""
    text = os.fspath(path)
    if _INSIDE.search(text) is None:  # nearly always
        return None
    for match in _INSIDE.finditer(text):
        if os.path.isfile(text[: match.end()]):
            return text[: match.end()], text[match.end() + 1 :]
    return None


def status(path: str | os.PathLike[str]) -> Status:
    """Return size and time of a file, or of the archive of a member. Raises OSError."""
    place = split(path)
    found = os.stat(place[0] if place else path)
    return Status(found.st_size, found.st_mtime_ns)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether there is such a file, or such a member of a zip archive."""
    place = split(path)
    if place is None:
        return os.path.isfile(path)
    try:
        return place[1] in _opened(place[0]).members
    except (RejectedSeries, UnreadableError, OSError):
        return False


def size(path: str | os.PathLike[str]) -> int:
    """Return the bytes of a file or member. Raises OSError; RejectedSeries for a member that is not there."""
    place = split(path)
    return os.stat(path).st_size if place is None else _info(*place)[1].file_size


def listing(path: str, limit_gb: float) -> Listing:
    """Return the members of an archive. Raises RejectedSeries for one that is damaged or unpacks to more."""
    found = _opened(path).listing
    total = sum(found.sizes) / 1e9
    if total > limit_gb:
        raise RejectedSeries(f"a zip archive that unpacks to {total:.3g} GB, more than limits.zip_gb={limit_gb}")
    if len(found.members) > _MOST:
        raise RejectedSeries(f"a zip archive of {len(found.members)} files, more than {_MOST}; unpack it")
    if not (found.members or found.refused or found.ignored):
        raise RejectedSeries("a zip archive without files")
    return found


def open_binary(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file, or a member of a zip archive, which can be peeked into and is checked when it is read to its end.

    Raises RejectedSeries for a member that is not there or a damaged archive, OSError; reading raises those of DAMAGED.
    """
    place = split(path)
    if place is None:
        return open(path, "rb")  # handed to the caller open
    archive, info = _info(*place)
    with checked():
        return cast(BinaryIO, archive.open(info))


def verify(path: str | os.PathLike[str]) -> None:
    """Read a member to its end, where its checksum is compared. Raises RejectedSeries; for other paths do nothing."""
    if split(path) is not None:
        for _ in _pieces(path):
            pass


def exists(path: str | os.PathLike[str]) -> bool:
    """Return whether there is such a file, or the archive of such a member; the archive is not opened."""
    place = split(path)
    return os.path.isfile(place[0] if place else path)


def open_whole(path: str | os.PathLike[str], most: int) -> BinaryIO:
    """Open a file; of a member of a zip archive its content, which then is checked. Raises as `read` does, OSError."""
    return open(path, "rb") if split(path) is None else cast(BinaryIO, read(path, most))


def read(path: str | os.PathLike[str], most: int) -> io.BytesIO:
    """Return a member's content. Raises RejectedSeries if it is damaged or has more than `most` bytes."""
    content = io.BytesIO()
    for piece in _pieces(path):
        content.write(piece)
        if content.tell() > most:
            raise RejectedSeries(f"unpacks to more than {most / 2**30:g} GB")
    content.seek(0)
    return content


@contextmanager
def nameless(path: str | os.PathLike[str], head: bytes | None = None, skip: int = 0) -> Iterator[str]:
    """Yield a path of a copy of a member that has no name on the disk, so that nothing is left of it.

    head  bytes in the place of the first `skip`
    Raises RejectedSeries if the member is damaged.
    """
    with tempfile.TemporaryFile() as file:
        file.write(head or b"")
        for piece in _pieces(path):
            file.write(piece[skip:])
            skip = max(skip - len(piece), 0)
        file.flush()
        file.seek(0)
        yield f"/dev/fd/{file.fileno()}"


@contextmanager
def local(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a path that any program can open: of a member that of a copy without a name. Raises RejectedSeries."""
    if split(path) is None:
        yield os.fspath(path)
        return
    with nameless(path) as copy:
        yield copy


@contextmanager
def checked() -> Iterator[None]:
    """Raise RejectedSeries where reading a member inside raises what damage raises; OSErrors with a number as they are.

    The decompressor of bzip2 raises an OSError without one.
    """
    try:
        yield
    except DAMAGED as error:
        raise damage(error) from error
    except OSError as error:
        if error.errno is not None or isinstance(error, gzip.BadGzipFile):
            raise
        raise damage(error) from error


def damage(error: Exception) -> RejectedSeries:
    """Return the rejection of a member whose reading raised one of DAMAGED."""
    checksum = isinstance(error, zipfile.BadZipFile) and "CRC" in str(error)
    what = "its checksum does not match its content" if checksum else type(error).__name__
    return RejectedSeries(f"damaged in its zip archive ({what})")


def _pieces(path: str | os.PathLike[str]) -> Iterator[bytes]:
    with open_binary(path) as file:
        while True:
            with checked():
                piece = file.read(_PIECE)
            if not piece:
                return
            yield piece


def _info(path: str, member: str) -> tuple[zipfile.ZipFile, zipfile.ZipInfo]:
    archive = _opened(path)
    if member not in archive.members:
        raise RejectedSeries("not a member of its zip archive, or one that is not read")
    return archive.file, archive.members[member]


def _opened(path: str) -> _Archive:
    found = status(path)
    return _cached(path, found.size, found.changed)


@lru_cache(maxsize=4)
def _cached(path: str, size: int, changed: int) -> _Archive:
    try:
        return _Archive(path)
    except Exception as error:  # hostile bytes raise anything
        unless_trouble(error)
        raise RejectedSeries(f"a damaged zip archive ({type(error).__name__})") from error


def _name(stored: str) -> str:
    """Return a member's path with single slashes; some archivers of Windows write backslashes."""
    return "/".join(part for part in stored.replace("\\", "/").split("/") if part not in ("", "."))


def _refusal(info: zipfile.ZipInfo) -> str:
    """Return why a member is not read; "" if it is."""
    name, mode = info.filename.replace("\\", "/"), info.external_attr >> 16
    if name.startswith("/") or _DRIVE.match(name) or ".." in name.split("/"):
        return "with a path that leads out of it"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "that are links or devices"
    if info.flag_bits & 1:
        return "encrypted (unpack it)"
    if info.compress_type not in _METHODS:
        return f"compressed by a method that is not read (number {info.compress_type}; unpack it)"
    if is_archive(name) or other_archive(name):
        return "that are archives themselves (unpack it)"
    return ""
