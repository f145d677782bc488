"""DICOM files opened by content: plain, or compressed whole by gzip."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from pydicom.uid import UID

from data_prep.volumes.volume import RejectedSeries

_GZIP = b"\x1f\x8b"
_MOST = 4 << 30  # bytes of one unpacked file
_PIECE = 1 << 24


def open_file(path: str | Path) -> BinaryIO:
    """Open a file at its start, unpacked if it is gzip. Raises RejectedSeries if its checksum or length is wrong."""
    file = open(path, "rb")  # noqa: SIM115  # it is handed to the caller open
    if file.peek(2)[:2] != _GZIP:
        return file
    unpacked = io.BytesIO()
    try:
        with file, gzip.open(file) as packed:
            while piece := packed.read(_PIECE):  # the checksum is verified at the end
                unpacked.write(piece)
                if unpacked.tell() > _MOST:
                    raise RejectedSeries("unpacks to more than 4 GB")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RejectedSeries("damaged gzip: its checksum or length is wrong") from error
    unpacked.seek(0)
    return unpacked


def is_packed(path: str | Path) -> bool:
    """Return whether a file is gzip."""
    with open(path, "rb") as file:
        return file.read(2) == _GZIP


def start(path: str | Path, length: int) -> bytes:
    """Return the first bytes of a file, unpacked if it is gzip."""
    with open(path, "rb") as file:
        first = file.read(length)
        if first[:2] != _GZIP:
            return first
        file.seek(0)
        try:
            return gzip.open(file).read(length)
        except (OSError, EOFError, zlib.error):
            return b""


def syntax_of(dataset: object) -> UID | None:
    """Return the transfer syntax that a header declares, if it has a file header of its own."""
    return cast("UID | None", getattr(dataset, "file_meta", {}).get("TransferSyntaxUID"))
