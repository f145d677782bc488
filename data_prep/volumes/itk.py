"""MetaImage and NRRD by SimpleITK, if it is installed; compressed ones are checked first, as ITK takes damaged ones."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_prep.config import PrepConfig
from data_prep.volumes.volume import RejectedSeries, check_size

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
_HEADER = 1 << 16  # bytes within which a header ends
_CHUNK = 1 << 20


def read(path: str | Path, config: PrepConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return (I, J, K) values and the affine (4, 4) from indices to RAS mm.

    Raises RejectedSeries for what is too large or has several values per voxel, and for damage whatever is raised.
    """
    try:
        import SimpleITK
    except ImportError:
        raise RejectedSeries("MetaImage and NRRD need SimpleITK; pip install 'meddap[itk]'") from None
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetNumberOfComponents() > 1:
        raise RejectedSeries(f"{reader.GetNumberOfComponents()} values per voxel; expected one")
    check_size(reader.GetSize(), config.limits.volume_gb)
    _verify(Path(path))
    image = reader.Execute()
    count = image.GetDimension()
    affine = np.eye(4)
    if count == 3:
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        affine[:2] *= -1  # ITK counts to the left and back (LPS)
    return SimpleITK.GetArrayFromImage(image).transpose(), affine


def _verify(path: Path) -> None:
    """Decompress the content to its end, where its checksum is. Raises what gzip and zlib raise, EOFError if it is cut.

    A content in several files is not checked.
    """
    with path.open("rb") as file:
        start = file.read(_HEADER)
        nrrd = start.startswith(b"NRRD")
        fields, end = _nrrd_fields(start) if nrrd else _meta_fields(start)
        compressed = (
            fields.get("encoding", "").lower() in ("gzip", "gz")
            if nrrd
            else fields.get("compresseddata", "").lower().startswith("t")
        )
        if not compressed or int(fields.get("line skip", 0) or 0):
            return
        other = fields.get("data file", fields.get("datafile", "")) if nrrd else fields.get("elementdatafile", "")
        if other and other.upper() != "LOCAL":
            if (path.parent / other).is_file():
                with (path.parent / other).open("rb") as content:
                    _decompress(content)
            return
        file.seek(end)
        _decompress(file)


def _nrrd_fields(start: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a header by their names in lower case, and where it ends: at an empty line."""
    ends = [start.find(mark) + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if mark in start]
    end = min(ends, default=len(start))
    lines = [line for line in start[:end].decode("latin-1").splitlines() if not line.startswith("#")]
    pairs = [line.partition(":") for line in lines if ":=" not in line]
    return {key.strip().lower(): value.strip() for key, _, value in pairs}, end


def _meta_fields(start: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a header by their names in lower case, and where it ends: behind ElementDataFile."""
    fields, end = {}, 0
    while "elementdatafile" not in fields and (stop := start.find(b"\n", end) + 1):
        key, _, value = start[end:stop].decode("latin-1").partition("=")
        fields[key.strip().lower()] = value.strip()
        end = stop
    return fields, end


def _decompress(content: BinaryIO) -> None:
    first = content.read(2)
    content.seek(-len(first), 1)
    if first == b"\x1f\x8b":
        unpacked = gzip.GzipFile(fileobj=content)
        while unpacked.read(_CHUNK):
            pass
        return
    inflate = zlib.decompressobj()
    while not inflate.eof:
        packed = content.read(_CHUNK)
        if not packed:
            raise EOFError("the compressed content ends too early")
        inflate.decompress(packed)
