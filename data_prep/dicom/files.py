"""DICOM files opened by content: plain, compressed whole by gzip, or members of a zip archive."""

from __future__ import annotations

import gzip
import io
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydicom.uid import UID

from data_prep.volumes import zips
from data_prep.volumes.volume import RejectedSeries

_GZIP = b"\x1f\x8b"
_MOST = 4 << 30  # bytes of one unpacked file
_PIECE = 1 << 24


def open_file(path: str | Path, to_its_end: bool = True) -> BinaryIO:
    """Open a file at its start, unpacked if it is gzip. Raises RejectedSeries if its checksum or length is wrong.

    to_its_end  whether a member of a zip archive is read whole, so that its checksum is compared
    """
    member = zips.split(path) is not None
    file: Any = zips.open_binary(path) if member else open(path, "rb")  # noqa: SIM115  # it is handed to the caller open
    with zips.checked() if member else nullcontext():
        is_gzip = file.peek(2)[:2] == _GZIP
    if not is_gzip:
        if not to_its_end or not member:
            return cast(BinaryIO, file)
        file.close()
        return zips.read(path, _MOST)
    unpacked = io.BytesIO()
    try:
        with file, gzip.open(file) as packed:
            while piece := packed.read(_PIECE):  # the checksum is verified at the end
                unpacked.write(piece)
                if unpacked.tell() > _MOST:
                    raise RejectedSeries("unpacks to more than 4 GB")
    except (gzip.BadGzipFile, *zips.DAMAGED) as error:
        raise RejectedSeries("damaged gzip: its checksum or length is wrong") from error
    unpacked.seek(0)
    return unpacked


def is_packed(path: str | Path) -> bool:
    """Return whether a file is gzip, or a member of a zip archive."""
    if zips.split(path) is not None:
        return True
    with open(path, "rb") as file:
        return file.read(2) == _GZIP


def start(path: str | Path, length: int) -> bytes:
    """Return the first bytes of a file, unpacked if it is gzip, or b"" if that is damaged.

    Raises RejectedSeries for a damaged member of a zip archive.
    """
    if zips.split(path) is not None:
        with zips.open_binary(path) as file, zips.checked():
            first = file.read(length)
    else:
        with open(path, "rb") as file:
            first = file.read(length)
    if first[:2] != _GZIP:
        return first
    with zips.open_binary(path) as file:
        try:
            return gzip.open(file).read(length)
        except (gzip.BadGzipFile, *zips.DAMAGED):
            return b""


def syntax_of(dataset: object) -> UID | None:
    """Return the transfer syntax that a header declares, if it has a file header of its own."""
    return cast("UID | None", getattr(dataset, "file_meta", {}).get("TransferSyntaxUID"))
