"""MetaImage and NRRD by SimpleITK, if it is installed; compressed content is decoded here: ITK takes damaged ones."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.config import PrepConfig
from data_prep.volumes import geometry, text_headers, zips
from data_prep.volumes.text_headers import TextHeader
from data_prep.volumes.volume import RejectedSeries, check_size

if TYPE_CHECKING:
    import SimpleITK

_ELSEWHERE = re.compile(rb"(?im)^((?:data ?file\s*:|ElementDataFile\s*=)[ \t]*)([^\r\n]*)")  # NRRD, MetaImage
_EMPTY_LINE = re.compile(rb"\r?\n\r?\n")
SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")


def read(path: str | Path, config: PrepConfig) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Return (I, J, K) values, the affine (4, 4) from indices to RAS mm, and notes on what was decided about it.

    Raises RejectedSeries for what is too large, has several values per voxel or does not say how it lies, unless the
    settings decide; and for damage whatever is raised.
    """
    with _local(path) as (local, reader):
        return _read(local, reader, config)


def _read(path: str, kind: str, config: PrepConfig) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Read a file; `kind` is the class of ITK that reads it, "" where its name says that."""
    try:
        import SimpleITK
    except ImportError:
        raise RejectedSeries("MetaImage and NRRD need SimpleITK; pip install 'meddap[itk]'") from None
    header = text_headers.read(Path(path))
    if header.encoding == "bzip2":
        raise RejectedSeries("an NRRD compressed by bzip2, which SimpleITK does not read; save it with gzip")
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(path)
    if kind:
        reader.SetImageIO(kind)
    reader.ReadImageInformation()
    if reader.GetNumberOfComponents() > 1:
        raise RejectedSeries(f"{reader.GetNumberOfComponents()} values per voxel; expected one")
    check_size(reader.GetSize(), config.limits.volume_gb)
    affine, notes = np.eye(4), dict[str, object]()
    if reader.GetDimension() == 3:
        affine[:3, :3] = np.array(reader.GetDirection()).reshape(3, 3) * np.array(reader.GetSpacing())
        affine[:3, 3] = reader.GetOrigin()
        affine[:3], notes = _in_mm(affine[:3], header, config)
    if not header.packed:
        return SimpleITK.GetArrayFromImage(reader.Execute()).transpose(), affine, notes
    return _decoded(header, reader), affine, notes


@contextmanager
def _local(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield a path that ITK can open, and the class of ITK that reads it if the path does not say that.

    That of a member of a zip archive is a copy without a name. Raises RejectedSeries if the archive is damaged, or if
    the member's voxels lie in several files, or in one that the archive does not hold beside it.
    """
    if zips.split(path) is None:
        yield str(path), ""
        return
    kind = "NrrdImageIO" if str(path).lower().endswith((".nrrd", ".nhdr")) else "MetaImageIO"
    with zips.open_binary(path) as file, zips.checked():
        start = file.read(text_headers.LONGEST)
    end = _EMPTY_LINE.search(start)
    elsewhere = _ELSEWHERE.search(start[: end.start()] if end else start)
    other = elsewhere[2].decode("utf-8", "replace").strip() if elsewhere else "LOCAL"
    if other.upper() == "LOCAL":
        with zips.nameless(path) as local:
            yield local, kind
        return
    voxels = os.path.join(os.path.dirname(path), other)
    if ".." in other.split("/") or not (zips.split(voxels) and zips.is_file(voxels)):
        raise RejectedSeries("the file with its voxels is not beside it in the zip archive")
    with zips.nameless(voxels) as content:
        header = _ELSEWHERE.sub(lambda match: match[1] + content.encode(), start, count=1)
        with zips.nameless(path, header, skip=len(start)) as local:
            yield local, kind


def _in_mm(lps: np.ndarray, header: TextHeader, config: PrepConfig) -> tuple[np.ndarray, dict[str, object]]:
    """Return the first three rows of an affine in RAS mm from those that ITK takes for LPS, and notes."""
    notes: dict[str, object] = {}
    settings = config.geometry
    signs = (-1, -1, 1)
    if not header.oriented and settings.unoriented == "refuse" and not header.default:
        raise RejectedSeries(
            "its header holds no orientation (space is not RAS, LAS or LPS); geometry.unoriented=ras, las or lps says "
            "how its axes run"
        )
    if not header.oriented and settings.unoriented != "refuse":
        signs = {"ras": (1, 1, 1), "las": (-1, 1, 1), "lps": (-1, -1, 1)}[settings.unoriented]
        notes["transform"] = f"{settings.unoriented} as geometry.unoriented says"
    elif not header.oriented:
        notes["transform"] = "not stated, lps as the format has it"
    factor = header.factor
    if settings.units != "header":
        factor = {"mm": 1.0, "metre": 1000.0, "micron": 0.001}[settings.units]
        if header.factor not in (None, factor):
            notes["units"] = f"{settings.units} as geometry.units says, {header.factor:g} mm in the header"
    elif factor not in (None, 1.0):
        notes["units"] = f"{factor:g} mm"
    rows = lps * np.array(signs)[:, None] * (factor or 1.0)
    geometry.check_voxels(rows, f"{header.factor:g} mm" if header.factor else "")
    return rows, notes


def _decoded(header: TextHeader, reader: SimpleITK.ImageFileReader) -> np.ndarray:
    """Return (I, J, K) values of a compressed file. Raises EOFError if they are too few, RejectedSeries if too many."""
    import SimpleITK

    size = reader.GetSize()
    kind = SimpleITK.GetArrayViewFromImage(SimpleITK.Image([1] * len(size), reader.GetPixelID())).dtype
    content: Any = header.content()
    needed = math.prod(size) * kind.itemsize
    if len(content) < needed:
        raise EOFError("the compressed content holds too few values")
    if len(content) > needed:
        raise RejectedSeries(f"its compressed content holds {len(content)} bytes, its header says {needed}")
    stored = np.frombuffer(content, kind.newbyteorder(">" if header.big else "<"))
    return stored.astype(kind, copy=False).reshape(size[::-1]).transpose()
