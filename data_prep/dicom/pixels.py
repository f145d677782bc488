"""HU or signal from stored pixels, frame by frame into one array (PS3.3, C.11.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import iter_pixels
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from data_prep.dicom.frames import Frame
from data_prep.schema import AIR_HU
from data_prep.volumes.scaling import ToHounsfield
from data_prep.volumes.volume import RejectedSeries


def ct(frames: list[Frame]) -> tuple[np.ndarray, dict[str, object]]:
    """Return (Z, Y, X) int16 HU, padding as air, and notes on what rounding and clipping changed."""
    convert = ToHounsfield()
    voxels = np.empty((len(frames), *frames[0].shape), np.int16)
    for place, stored in _stored(frames):
        frame = frames[place]
        voxels[place] = convert(stored, frame.slope, frame.intercept)
        if frame.padding:
            voxels[place][(stored >= frame.padding[0]) & (stored <= frame.padding[1])] = AIR_HU
    return voxels, convert.notes()


def mr(frames: list[Frame]) -> tuple[np.ndarray, dict[str, object]]:
    """Return (Z, Y, X) signal: as stored unless it is rescaled, else float32. Padding takes the darkest value."""
    plain = all(frame.slope == 1 and frame.intercept == 0 for frame in frames)
    voxels: np.ndarray | None = None
    for place, stored in _stored(frames):
        frame = frames[place]
        if frame.bright is not None:
            stored = frame.bright - stored.astype(np.int32)
        if frame.padding:
            outside = (stored >= frame.padding[0]) & (stored <= frame.padding[1])
            if outside.any() and not outside.all():
                stored = np.where(outside, stored[~outside].min(), stored)
        if voxels is None:
            fits = plain and stored.dtype in (np.int16, np.uint16, np.uint8)
            kind = np.promote_types(stored.dtype, np.uint8) if fits else np.float32
            voxels = np.empty((len(frames), *frame.shape), np.uint16 if kind == np.uint8 else kind)
        voxels[place] = stored if plain else stored * np.float32(frame.slope) + np.float32(frame.intercept)
    assert voxels is not None  # a stack has frames
    return voxels, {}


def _stored(frames: list[Frame]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (place in `frames`, (rows, columns) integers as stored), file by file."""
    files: dict[str, list[int]] = defaultdict(list)
    for place, frame in enumerate(frames):
        files[frame.path].append(place)
    for path, places in files.items():
        places.sort(key=lambda place: frames[place].number)
        encoded = [place for place in places if frames[place].raw is None]
        for place in places:
            if (raw := frames[place].raw) is not None:
                yield place, _native(frames[place], *raw)
        if encoded:
            yield from zip(encoded, _decoded(path, [frames[place] for place in encoded]))


def _native(frame: Frame, offset: int, kind: str) -> np.ndarray:
    rows, columns = frame.shape
    plane = np.fromfile(frame.path, kind, rows * columns, offset=offset).reshape(rows, columns)
    spare = 16 - frame.bits
    if spare and (
        plane.max() >= 1 << frame.bits - (kind == "<i2") or (kind == "<i2" and plane.min() < -1 << frame.bits - 1)
    ):
        return plane << spare >> spare  # legacy overlays use the bits above BitsStored (PS3.5, 8.1.1)
    return plane


def _decoded(path: str, frames: list[Frame]) -> Iterator[np.ndarray]:
    meta = read_file_meta_info(path)
    # a deflated file can only be read whole; others frame by frame
    source = pydicom.dcmread(path) if meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian else path
    planes = iter_pixels(source, indices=[frame.number for frame in frames])
    for frame in frames:
        try:
            plane = next(planes)
        except (NotImplementedError, RuntimeError) as error:
            raise _undecodable(meta.TransferSyntaxUID, error) from error
        if plane.shape != frame.shape:
            raise RejectedSeries(f"pixels are {plane.shape}, the header says {frame.shape}")
        yield plane


def _undecodable(syntax: UID, error: Exception) -> RejectedSeries:
    kind = syntax.name if syntax.name != str(syntax) else "an unknown transfer syntax"
    if isinstance(error, NotImplementedError):
        return RejectedSeries(f"no decoder exists for {kind}")
    if "missing dependencies" in str(error):
        return RejectedSeries(f"no decoder is installed for {kind}; pip install 'meddap[dicom]'")
    return RejectedSeries(f"its pixels do not decode as {kind}")
