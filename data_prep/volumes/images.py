"""Volumes from image files: NIfTI; MetaImage and NRRD by SimpleITK if it is installed; OpenKBP's CSV files."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_prep.config import PrepConfig
from data_prep.schema import AIR_HU
from data_prep.volumes import geometry, hounsfield, itk, openkbp, zips
from data_prep.volumes.errors import unless_trouble
from data_prep.volumes.nifti import SUFFIXES as NIFTI
from data_prep.volumes.nifti import Nifti
from data_prep.volumes.scaling import ToHounsfield
from data_prep.volumes.volume import RejectedSeries, Volume, check_size

SUFFIXES = (*NIFTI, *itk.SUFFIXES)
_NEARLY = 1e-3  # how far from a whole number a label may be: what float files and slopes leave of one
_SLAB = 8  # planes that are in memory as floats at a time


def is_image(name: str) -> bool:
    """Return whether a file's name has the ending of an image format."""
    return name.lower().endswith(SUFFIXES)


def stem(name: str) -> str:
    """Return the name of an image file without its ending."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


class Image:
    """An opened image file: its grid, and its values plane by plane.

    shape   (I, J, K)
    affine  (4, 4) indices → RAS mm
    notes   what was decided about its grid, for the manifest

    Raises RejectedSeries for a file that is damaged, too large, not three-dimensional or without a grid,
    UnreadableError for failures that are not the file's fault.
    """

    def __init__(
        self, path: str | Path, config: PrepConfig, channel: tuple[int, int] | None = None, orientation: str = ""
    ) -> None:
        """Open a file.

        channel      (place along the fourth axis, length of that axis) of the image that is wanted
        orientation  where the axes run ("LAS") of a file whose format does not say it
        """
        try:
            nifti = str(path).lower().endswith(NIFTI)
            self._nifti = Nifti(path, config.geometry, orientation) if nifti else None
            self.notes: dict[str, object] = {}
            self._values: _Values
            if self._nifti:
                self._values, self.affine, self.notes = self._nifti.values, self._nifti.affine, self._nifti.notes
            elif str(path).lower().endswith(openkbp.SUFFIX):
                self._values, self.affine, self.notes = openkbp.read(path)
            else:
                self._values, self.affine, self.notes = itk.read(path, config)
            extents = tuple(int(n) for n in self._values.shape)
        except RejectedSeries:
            raise
        except Exception as error:  # hostile bytes raise anything
            raise _truncated(error) from error
        if channel is not None and extents[3:] != (channel[1],) and (extents[3:] or channel[1] > 1):
            raise RejectedSeries(f"an image of {'x'.join(map(str, extents))}, but described as {channel[1]} channels")
        if len(extents) == 4 and channel is not None:
            self._values, extents = _Channel(self._values, channel[0]), extents[:3]
        if len(extents) == 4 and extents[3] == 1:
            extents = extents[:3]
        if len(extents) != 3:
            raise RejectedSeries(f"{len(extents)}-D image of {'x'.join(map(str, extents))}; split it into 3-D volumes")
        check_size(extents, config.limits.volume_gb)
        if self._values.dtype.kind not in "iuf":
            raise RejectedSeries(f"voxels of type {self._values.dtype}; expected one number per voxel")
        if not np.isfinite(self.affine).all() or abs(np.linalg.det(self.affine[:3, :3])) < 1e-9:
            raise RejectedSeries("its affine has no volume; set the spacing in its header")
        rows, columns, planes = extents
        self.shape = rows, columns, planes

    def slabs(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (range along K, (I, J, n) scaled values).

        Raises RejectedSeries for values that are not finite and, behind the last of them, for a wrong checksum.
        """
        for first in range(0, self.shape[2], _SLAB):
            planes = slice(first, min(first + _SLAB, self.shape[2]))
            try:
                values = np.asarray(self._values[:, :, planes]).reshape(*self.shape[:2], -1)
            except Exception as error:  # hostile bytes raise anything
                raise _truncated(error) from error
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise RejectedSeries("voxels are NaN or infinite")
            yield planes, values
        try:
            if self._nifti:
                self._nifti.finish()
        except Exception as error:  # hostile bytes raise anything
            raise _truncated(error) from error


def _truncated(error: Exception) -> RejectedSeries:
    unless_trouble(error)
    if isinstance(error, RejectedSeries):
        return error
    if isinstance(error, zipfile.BadZipFile):
        return zips.damage(error)
    checksum = isinstance(error, gzip.BadGzipFile) and "check" in str(error)  # of content, or of its length
    what = "its gzip checksum does not match its content" if checksum else type(error).__name__
    return RejectedSeries(f"truncated or damaged image ({what})")


class _Values(Protocol):
    """The values of an image, in memory or on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, place: Any, /) -> np.ndarray: ...


class _Channel:
    """One image of a file with four axes."""

    def __init__(self, values: _Values, place: int) -> None:
        self._values, self._place = values, place

    @property
    def shape(self) -> tuple[int, ...]:
        return self._values.shape[:3]

    @property
    def dtype(self) -> np.dtype:
        return self._values.dtype

    def __getitem__(self, place: Any, /) -> np.ndarray:
        where = (*place, self._place)
        return self._values[where]


def read_ct(path: str | Path, config: PrepConfig) -> Volume:
    """Read a CT volume, whose values must speak for HU. Raises RejectedSeries, UnreadableError."""
    image, convert = Image(path, config), ToHounsfield()
    voxels = np.empty(image.shape, np.int16, order="F")  # as NIfTI stores them: slabs are contiguous
    for planes, values in image.slabs():
        voxels[:, :, planes] = convert(values)
    notes = convert.notes()
    return _volume(image, voxels, config, AIR_HU, {**notes, **hounsfield.check(voxels, notes, config)})


def read_mr(
    path: str | Path, config: PrepConfig, channel: tuple[int, int] | None = None, orientation: str = ""
) -> Volume:
    """Read an MR volume in arbitrary units; see `Image`. Raises RejectedSeries, UnreadableError."""
    image = Image(path, config, channel, orientation)
    voxels: np.ndarray | None = None
    for planes, values in image.slabs():
        if voxels is None:
            kept = values.dtype in (np.int16, np.uint16) and values.dtype.isnative
            voxels = np.empty(image.shape, values.dtype if kept else np.float32, order="F")
        voxels[:, :, planes] = values
    assert voxels is not None  # check_size refuses an image without planes
    return _volume(image, voxels, config, 0, {})


def read_labels(
    path: str | Path, config: PrepConfig, orientation: str = ""
) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Read (I, J, K) uint8 labels, their affine and notes; see `Image`.

    Values within 0.001 of a whole number are rounded, and counted. Raises RejectedSeries for others, and unless they
    are 0 to 255.
    """
    image, rounded = Image(path, config, orientation=orientation), 0
    labels = np.empty(image.shape, np.uint8, order="F")
    for planes, values in image.slabs():
        low, high = values.min(), values.max()
        whole = np.rint(values) if values.dtype.kind == "f" else values
        if low < -_NEARLY or high > 255 + _NEARLY or (whole is not values and np.abs(values - whole).max() > _NEARLY):
            raise RejectedSeries(f"values {low} to {high}; expected whole numbers 0 to 255")
        if whole is not values:
            rounded += int(np.count_nonzero(whole != values))
        labels[:, :, planes] = whole
    notes: dict[str, object] = {f"label_{key}": value for key, value in image.notes.items()}
    return labels, image.affine, {**notes, "label_voxels_rounded": rounded} if rounded else notes


def _volume(image: Image, voxels: np.ndarray, config: PrepConfig, outside: float, notes: dict) -> Volume:
    turned, affine, turning = geometry.to_axial(voxels, image.affine, config.geometry, outside)
    if len(turned) < config.min_slices:
        raise RejectedSeries(f"{len(turned)} slices, fewer than min_slices={config.min_slices}")
    return Volume(voxels=turned, affine=affine, notes={**image.notes, **notes, **turning})
