"""NIfTI and Analyze: opened by content, their grid in mm from units and transforms that agree, checksums to the end."""

from __future__ import annotations

import gzip
import io
import math
import struct
import weakref
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError

from data_prep.config import GeometryConfig
from data_prep.volumes import geometry, zips
from data_prep.volumes.volume import RejectedSeries

PAIRED = {".img": ".hdr", ".img.gz": ".hdr.gz"}  # file of the values → file of the header
SUFFIXES = (".nii", ".nii.gz", *PAIRED)
_GZIP = b"\x1f\x8b"
_UNITS = {1: ("metre", 1000.0), 2: ("mm", 1.0), 3: ("micron", 0.001)}  # codes of xyzt_units → mm
_MM = {"mm": 1.0, "metre": 1000.0, "micron": 0.001}
_HEADERS = {348: nibabel.Nifti1Pair, 540: nibabel.Nifti2Pair}  # bytes of an .hdr, and what it is
_MAGIC = slice(344, 347)  # what tells NIfTI-1 from Analyze in it
_APART = 0.5  # voxels that sform and qform may place an image apart
_LONGER = 0.01  # share by which the edges of a voxel in sform and pixdim may differ


class Nifti:
    """An opened NIfTI or Analyze file. The header of an .img lies beside it, in an .hdr.

    values  what nibabel reads when it is indexed: scaled by slope and intercept
    affine  (4, 4) indices → RAS mm
    notes   what was decided about units and transforms, for the manifest

    Raises RejectedSeries for a header that contradicts itself, unless the settings decide; whatever nibabel raises for
    damage.
    """

    def __init__(self, path: str | Path, settings: GeometryConfig, orientation: str = "") -> None:
        """Open a file. `orientation`: where the axes of an Analyze file run ("LAS"), if something else says it."""
        self.notes: dict[str, object] = {}
        self._path = path
        if header_of := header_file(path):
            self._open_pair(header_of, Path(path), settings, orientation)
            return
        stream = _opened(path, self.notes)
        try:
            kind, header = _header(stream)
            _check_scale(header)
            _check_storage(header, int(header["sizeof_hdr"]) + 4)
            image: Any = kind.from_file_map({"image": FileHolder(fileobj=stream)})
            self.values = image.dataobj
            extents = [int(n) for n in self.values.shape[:3]]
            self.affine, notes = _grid(header, (*extents, *[1] * (3 - len(extents))), settings)
        except BaseException:
            stream.close()
            raise
        weakref.finalize(self.values, stream.close)
        self.notes |= notes
        self._expect(stream, path, header)

    def _expect(self, stream: io.BufferedIOBase, path: str | Path, header: Any) -> None:
        """Compare the length of a file with what its header says: now, or for a compressed one at its end."""
        shape = header.get_data_shape()
        voxels = math.prod(shape) * header.get_data_dtype().itemsize
        self._end = int(header["vox_offset"]) + voxels
        self._slab = max(voxels // max(shape), 1)  # what one more along some axis would take
        self._stream = stream if isinstance(stream, gzip.GzipFile) else None
        if self._stream is None:
            self._compare(zips.size(path))

    def _compare(self, length: int) -> None:
        if length - self._end >= self._slab:
            raise RejectedSeries(
                f"holds {length} bytes, {self._end} by its header: are its dimensions, its type or its offset wrong?"
            )
        if length > self._end:
            self.notes["bytes_behind_voxels"] = length - self._end

    def _open_pair(self, header_of: Path, path: Path, settings: GeometryConfig, orientation: str) -> None:
        if not zips.is_file(header_of):
            raise RejectedSeries("its header, the .hdr beside the .img, is missing")
        with _opened(header_of, self.notes) as file:
            start = file.read()  # to its end, where a checksum may be
        size = next((n for n in _HEADERS if start[:4] in (struct.pack("<i", n), struct.pack(">i", n))), 0)
        if not size or len(start) < size:
            raise RejectedSeries("truncated or damaged image (not the header of an Analyze or NIfTI file)")
        kind: Any = _HEADERS[size]
        analyze = size == 348 and start[_MAGIC] not in (b"ni1", b"n+1")
        if analyze:
            kind = nibabel.Spm2AnalyzeImage
        header = kind.header_class.from_fileobj(io.BytesIO(start[:size]), check=False)
        shape = header.get_data_shape()
        if len(shape) < 3:
            raise RejectedSeries("truncated or damaged image (not the header of an Analyze or NIfTI file)")
        if not analyze:
            _check_scale(header)
        _check_storage(header, 0)
        stream = _opened(path, self.notes)
        stored = math.prod(shape) * header.get_data_dtype().itemsize + int(header["vox_offset"])
        if not isinstance(stream, gzip.GzipFile) and (length := zips.size(path)) < stored:
            stream.close()
            raise RejectedSeries(f"truncated or damaged image (its .img has {length} of {stored} bytes)")
        files = {"header": FileHolder(fileobj=io.BytesIO(start[:size])), "image": FileHolder(fileobj=stream)}
        if analyze:
            files["mat"] = FileHolder(fileobj=io.BytesIO())  # SPM's transform, which no other program reads
        self.values = kind.from_file_map(files).dataobj
        weakref.finalize(self.values, stream.close)
        self._expect(stream, path, header)
        if analyze:
            self.affine, notes = _of_analyze(header, settings, orientation)
        else:
            self.affine, notes = _grid(header, tuple(int(n) for n in shape[:3]), settings)
        self.notes |= notes

    def finish(self) -> None:
        """Read a packed file to its end, where its checksum is compared. Raises RejectedSeries or what gzip does.

        Raises RejectedSeries too if it holds more than its header says.
        """
        if self._stream is None:  # a member: zipfile compares no checksum once it was told to seek
            zips.verify(self._path)
            return
        while self._stream.read(1 << 20):
            pass
        self._compare(self._stream.tell())


def header_file(path: str | Path) -> Path | None:
    """Return where the header of a file lies, unless it lies in the file itself."""
    path = Path(path)
    body = next((suffix for suffix in PAIRED if path.name.lower().endswith(suffix)), None)
    if body is None:
        return None
    stem, upper = path.name[: -len(body)], not path.name[-len(body) :].islower()
    names = [stem + (suffix.upper() if upper else suffix) for suffix in dict.fromkeys((PAIRED[body], ".hdr"))]
    return next(
        (there for name in names if (there := path.with_name(name)) and zips.is_file(there)), path.with_name(names[0])
    )


def _opened(path: str | Path, notes: dict[str, object]) -> io.BufferedIOBase:
    """Open a file, unpacked if it is gzip; `notes` says so where its name says otherwise.

    One handle: a compressed file is read once from front to end, not from its start for every slab.
    """
    with zips.open_binary(path) as file:
        compressed = file.read(2) == _GZIP
    if compressed != str(path).lower().endswith(".gz"):
        notes["compression"] = "gzip without .gz in its name" if compressed else "none, despite its name"
    if zips.split(path):
        member: Any = zips.open_binary(path)
        return gzip.GzipFile(fileobj=member) if compressed else member
    return gzip.GzipFile(path) if compressed else io.BufferedReader(io.FileIO(path))


def _of_analyze(header: Any, settings: GeometryConfig, orientation: str) -> tuple[np.ndarray, dict[str, object]]:
    """Return the affine of an Analyze file, whose format has no orientation that programs agree on."""
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    if settings.unoriented != "refuse" or not orientation:
        return _unoriented(pixdim, settings, "an Analyze header holds no orientation")
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, end in enumerate(orientation):
        row = next(row for row, pair in enumerate(("LR", "PA", "IS")) if end in pair)
        affine[row, column] = pixdim[column] * (1 if end in "RAS" else -1)
    return affine, {"transform": f"{orientation.lower()} as its layout says"}


def _header(stream: io.BufferedIOBase) -> tuple[Any, Any]:
    """Return the class of a file, NIfTI-1 or -2, and its header; `stream` is at its start again."""
    start = stream.read(4)
    second = start in (struct.pack("<i", 540), struct.pack(">i", 540))
    stream.seek(0)
    kind: Any = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    header = kind.header_class.from_fileobj(stream, check=False)  # as it is; nibabel's check fills gaps
    if not header.is_single or bytes(header["magic"].tobytes())[:3] not in (b"n+1", b"n+2"):
        raise RejectedSeries("truncated or damaged image (not the header of a NIfTI file)")
    stream.seek(0)
    return kind, header


def _check_scale(header: Any) -> None:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isinf(slope) or (math.isfinite(slope) and slope != 0 and not math.isfinite(intercept)):
        raise RejectedSeries(
            f"scl_slope {slope:g} with scl_inter {intercept:g}: its values cannot be scaled; set both in its header "
            "(1 and 0 if it has no scale)"
        )


def _check_storage(header: Any, least: int) -> None:
    """Raise RejectedSeries if the type and place of the voxels contradict the rest of the header."""
    kind, bits, offset = header.get_data_dtype(), int(header["bitpix"]), float(header["vox_offset"])
    if bits and bits != kind.itemsize * 8:
        raise RejectedSeries(f"its header says {bits} bits per voxel (bitpix), and voxels of type {kind.name}")
    if not offset.is_integer() or offset < least:
        raise RejectedSeries(f"its voxels begin at byte {offset:g} (vox_offset), within its header of {least}")


def _grid(header: Any, shape: tuple[int, ...], settings: GeometryConfig) -> tuple[np.ndarray, dict[str, object]]:
    affine, notes = _transform(header, shape, settings)
    name, scale = _UNITS.get(int(header["xyzt_units"]) & 7, ("", 1.0))
    if settings.units != "header":
        if name and name != settings.units:
            notes["units"] = f"{settings.units} as geometry.units says, {name} in the header"
        scale = _MM[settings.units]
    elif name != "mm":
        notes["units"] = name or "not stated, taken as mm"
    affine = affine.copy()
    affine[:3] *= scale
    geometry.check_voxels(affine, name)
    return affine, notes


def _transform(header: Any, shape: tuple[int, ...], settings: GeometryConfig) -> tuple[np.ndarray, dict[str, object]]:
    """Return the affine in the header's unit. Raises RejectedSeries where its transforms disagree or are missing."""
    coded_q, coded_s = int(header["qform_code"]) > 0, int(header["sform_code"]) > 0
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    if not coded_q and not coded_s:
        return _unoriented(pixdim, settings, "its header holds no orientation (sform_code and qform_code are 0)")
    sform = np.asarray(header.get_sform(), np.float64)
    if not coded_s:
        return _qform(header), {}
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    if not np.isfinite(sform).all() or not lengths.all():
        return sform, {}  # is refused as an affine without a volume
    # a quaternion cannot hold the shear of a tilted gantry: then only the first slice is compared
    sheared = geometry.shear_degrees(sform) > 0.5
    if coded_q and settings.disagreeing == "sform" and not _holds_qform(header):
        return sform, {"transform": "sform; its qform is no transform"}
    if coded_q:
        qform = _qform(header)
        first = (*shape[:2], 1) if sheared else shape
        apart = geometry.distance(sform, qform, first)
        if not apart <= _APART * lengths.min():
            what = f"sform and qform place voxels up to {apart:.3g} units apart"
            return (sform, qform)[_choice(what, settings)], {"transform": f"{settings.disagreeing}; {what}"}
    compared = slice(0, 2 if sheared else 3)
    ratio = pixdim[compared] / lengths[compared]
    if not (np.abs(ratio[pixdim[compared] > 0] - 1) <= _LONGER).all():  # 0 states nothing
        what = f"voxels of {geometry.edges(lengths)} in its sform, {geometry.edges(pixdim)} in its pixdim"
        resized = sform.copy()
        resized[:3, :3] *= np.where(pixdim > 0, pixdim / lengths, 1)
        return (sform, resized)[_choice(what, settings)], {"transform": f"{settings.disagreeing}; {what}"}
    return sform, {}


def _qform(header: Any) -> np.ndarray:
    """Return the transform of the quaternion. Raises RejectedSeries if its numbers are none.

    A pixdim[0] of 0, which the standard rules out, counts as 1, as the standard says.
    """
    header = header.copy()
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1
    try:
        return np.asarray(header.get_qform(), np.float64)
    except (HeaderDataError, ValueError) as error:
        numbers = ", ".join(f"{float(one):g}" for one in header["pixdim"][:4])
        remedy = "; geometry.disagreeing=sform passes it over" if int(header["sform_code"]) > 0 else ""
        raise RejectedSeries(
            f"its qform is no transform: pixdim {numbers} (1 or -1, then lengths above 0) or its quaternion{remedy}"
        ) from error


def _holds_qform(header: Any) -> bool:
    try:
        return bool(np.isfinite(_qform(header)).all())
    except RejectedSeries:
        return False


def _choice(what: str, settings: GeometryConfig) -> int:
    if settings.disagreeing == "refuse":
        raise RejectedSeries(f"{what}; geometry.disagreeing=sform or qform decides")
    return ("sform", "qform").index(settings.disagreeing)


def _unoriented(pixdim: np.ndarray, settings: GeometryConfig, why: str) -> tuple[np.ndarray, dict[str, object]]:
    if settings.unoriented == "refuse":
        raise RejectedSeries(f"{why}; geometry.unoriented=ras, las or lps says how its axes run")
    signs = {"ras": (1, 1, 1), "las": (-1, 1, 1), "lps": (-1, -1, 1)}[settings.unoriented]
    return np.diag([*(pixdim * signs), 1.0]), {"transform": f"{settings.unoriented} as geometry.unoriented says"}
