"""HU or signal from stored pixels, frame by frame into one array (PS3.3, C.11.1)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import iter_pixels
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from data_prep.dicom import rle
from data_prep.dicom.files import is_packed, open_file, syntax_of
from data_prep.dicom.frames import Frame
from data_prep.schema import AIR_HU
from data_prep.volumes.errors import unless_trouble, without_panics
from data_prep.volumes.scaling import ToHounsfield
from data_prep.volumes.volume import RejectedSeries


class DamagedPixels(RejectedSeries):
    """Pixels of one file that cannot be read, though others of its series may be."""


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
        outside: np.ndarray | None = None
        if frame.padding:  # stated as stored, before it is inverted
            outside = (stored >= frame.padding[0]) & (stored <= frame.padding[1])
        if frame.bright is not None:
            stored = frame.bright - stored.astype(np.int64)
        if outside is not None and outside.any() and not outside.all():
            stored = np.where(outside, stored[~outside].min(), stored)
        if voxels is None:
            fits = plain and stored.dtype in (np.int16, np.uint16, np.uint8)
            kind = np.promote_types(stored.dtype, np.uint8) if fits else np.float32
            voxels = np.empty((len(frames), *frame.shape), np.uint16 if kind == np.uint8 else kind)
        voxels[place] = stored if plain else stored * np.float32(frame.slope) + np.float32(frame.intercept)
    assert voxels is not None  # a stack has frames
    return voxels, {}


def digest(frame: Frame) -> bytes:
    """Return a digest that frames with equal values share. Raises DamagedPixels if they cannot be read."""
    ((_, stored),) = _stored([frame])
    scale = repr((frame.slope, frame.intercept, frame.padding, frame.bright, stored.shape))
    return hashlib.sha256(scale.encode() + stored.astype(np.int32).tobytes()).digest()


def damaged(frames: list[Frame]) -> dict[str, str]:
    """Return path → reason for the files whose pixels cannot be read."""
    files: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        files[frame.path].append(frame)
    found = {}
    for path, members in files.items():
        try:
            for _ in _stored(members):
                pass
        except DamagedPixels as error:
            found[path] = error.reason
    return found


def planes(path: str) -> Iterator[np.ndarray]:
    """Yield every frame of a file as (rows, columns) integers as stored, or (rows, columns, 3) red, green and blue.

    Raises DamagedPixels for pixels that cannot be read, RejectedSeries for a syntax that has no decoder.
    """
    try:
        source, syntax = _source(path)
        try:
            yield from iter_pixels(source)
        except (NotImplementedError, RuntimeError) as error:
            raise _undecodable(syntax, error) from error
    except RejectedSeries:
        raise
    except Exception as error:  # hostile bytes raise anything
        unless_trouble(error)
        raise DamagedPixels(unreadable(error)) from error


def unreadable(error: Exception) -> str:
    """Return the reason for a file that pydicom could not read."""
    return f"damaged or unreadable DICOM ({type(error).__name__})"


def _stored(frames: list[Frame]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (place in `frames`, (rows, columns) integers as stored), file by file."""
    files: dict[str, list[int]] = defaultdict(list)
    for place, frame in enumerate(frames):
        files[frame.path].append(place)
    for path, places in files.items():
        try:
            yield from _of_file(path, [frames[place] for place in places], places)
        except RejectedSeries:
            raise
        except Exception as error:  # hostile bytes raise anything
            unless_trouble(error)
            raise DamagedPixels(unreadable(error)) from error


def _of_file(path: str, frames: list[Frame], places: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    ordered = sorted(zip(places, frames), key=lambda pair: pair[1].number)
    for place, frame in ordered:
        if frame.raw is not None:
            yield place, _native(frame, *frame.raw)
    if encoded := [(place, frame) for place, frame in ordered if frame.raw is None]:
        yield from zip([place for place, _ in encoded], _decoded(path, [frame for _, frame in encoded]))


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
    source, syntax = _source(path)
    numbers = [frame.number for frame in frames]
    planes = without_panics(iter_pixels(source, indices=numbers))
    for place, frame in enumerate(frames):
        try:
            if place == 0 and syntax == RLELossless and isinstance(source, pydicom.Dataset):
                rle.check(source, numbers)
            plane = next(planes)
        except (NotImplementedError, RuntimeError) as error:
            raise _undecodable(syntax, error) from error
        if plane.shape != frame.shape:
            raise DamagedPixels(f"pixels are {plane.shape}, the header says {frame.shape}")
        yield plane


def _source(path: str) -> tuple[str | pydicom.Dataset, UID]:
    """Return what pixels are decoded from: the file, frame by frame, or the whole data set, where only that works."""
    if not is_packed(path):
        try:
            syntax = read_file_meta_info(path).TransferSyntaxUID
        except (InvalidDicomError, AttributeError):  # no preamble, or no syntax
            syntax = None
        if syntax is not None and syntax.is_compressed and syntax not in (DeflatedExplicitVRLittleEndian, RLELossless):
            return path, syntax
    with open_file(path) as file:
        dataset = pydicom.dcmread(file, force=True)
        dataset.get("PixelData")  # before the file is closed
    if dataset.get("SamplesPerPixel") is None:
        dataset.SamplesPerPixel = 1  # what `selection` takes it for
    declare_syntax(dataset)
    return dataset, dataset.file_meta.TransferSyntaxUID


def declare_syntax(dataset: pydicom.Dataset) -> None:
    """Give a data set that was read without a file header the syntax in which it was found."""
    implicit, little = dataset.original_encoding
    if syntax_of(dataset) is None:
        dataset.ensure_file_meta()
        native = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = native if little else ExplicitVRBigEndian


def _undecodable(syntax: UID, error: Exception) -> RejectedSeries:
    kind = syntax.name if syntax.name != str(syntax) else "an unknown transfer syntax"
    if isinstance(error, NotImplementedError):
        return RejectedSeries(f"no decoder exists for {kind}")
    if "missing dependencies" in str(error):
        return RejectedSeries(f"no decoder is installed for {kind}; pip install 'meddap[dicom]'")
    return DamagedPixels(f"its pixels do not decode as {kind}")
