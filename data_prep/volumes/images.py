"""Volumes from image files: NIfTI by nibabel; MetaImage and NRRD by SimpleITK if it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import nibabel
import numpy as np

from data_prep.config import PrepConfig
from data_prep.schema import AIR_HU
from data_prep.volumes import geometry
from data_prep.volumes.errors import unless_trouble
from data_prep.volumes.scaling import ToHounsfield
from data_prep.volumes.volume import RejectedSeries, Volume, check_size

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
SUFFIXES = NIFTI + ITK
_NEARLY = 1e-3  # how far from a whole number a label may be: what float files and slopes leave of one
_SLAB = 8  # planes that are in memory as floats at a time


def is_image(name: str) -> bool:
    """Return whether a file's name has the ending of an image format."""
    return name.lower().endswith(SUFFIXES)


def stem(name: str) -> str:
    """Return the name of an image file without its ending."""
    lower = name.lower()
    return name[: -len(next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if lower.endswith(suffix)))]


class Image:
    """An opened image file: its grid, and its values plane by plane.

    shape   (I, J, K)
    affine  (4, 4) indices → RAS mm

    Raises RejectedSeries for a file that is damaged, too large, not three-dimensional or without a grid,
    UnreadableError for failures that are not the file's fault.
    """

    def __init__(self, path: str | Path, config: PrepConfig) -> None:
        try:
            nifti = str(path).lower().endswith(NIFTI)
            self._values, self.affine = _open_nifti(path) if nifti else _open_itk(path, config)
            extents = tuple(int(n) for n in self._values.shape)
        except RejectedSeries:
            raise
        except Exception as error:  # hostile bytes raise anything
            raise _truncated(error) from error
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
        """Yield (range along K, (I, J, n) scaled values). Raises RejectedSeries for values that are not finite."""
        for first in range(0, self.shape[2], _SLAB):
            planes = slice(first, min(first + _SLAB, self.shape[2]))
            try:
                values = np.asarray(self._values[:, :, planes]).reshape(*self.shape[:2], -1)
            except Exception as error:  # hostile bytes raise anything
                raise _truncated(error) from error
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise RejectedSeries("voxels are NaN or infinite")
            yield planes, values


def _truncated(error: Exception) -> RejectedSeries:
    unless_trouble(error)
    return RejectedSeries(f"truncated or damaged image ({type(error).__name__})")


class _Values(Protocol):
    """The values of an image, in memory or on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, place: Any, /) -> np.ndarray: ...


def _open_nifti(path: str | Path) -> tuple[_Values, np.ndarray]:
    # an open handle: a compressed file is then read once from front to end, not from its start for every slab
    image: Any = nibabel.load(path, keep_file_open=True)  # typed as a class without voxels
    return image.dataobj, np.asarray(image.affine, dtype=np.float64)


def _open_itk(path: str | Path, config: PrepConfig) -> tuple[_Values, np.ndarray]:
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
    image = reader.Execute()
    count = image.GetDimension()
    affine = np.eye(4)
    if count == 3:
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        affine[:2] *= -1  # ITK counts to the left and back (LPS)
    return SimpleITK.GetArrayFromImage(image).transpose(), affine


def read_ct(path: str | Path, config: PrepConfig) -> Volume:
    """Read a CT volume in HU. Raises RejectedSeries, UnreadableError."""
    image, convert = Image(path, config), ToHounsfield()
    voxels = np.empty(image.shape, np.int16, order="F")  # as NIfTI stores them: slabs are contiguous
    for planes, values in image.slabs():
        voxels[:, :, planes] = convert(values)
    low, high = int(voxels.min()), int(voxels.max())
    if low >= 0:  # even without air around it a body holds fat, and noise
        raise RejectedSeries(f"values {low} to {high}, none below 0: not in HU; a label map, an MR or a picture?")
    return _volume(image, voxels, config, AIR_HU, convert.notes())


def read_mr(path: str | Path, config: PrepConfig) -> Volume:
    """Read an MR volume in arbitrary units. Raises RejectedSeries, UnreadableError."""
    image = Image(path, config)
    voxels: np.ndarray | None = None
    for planes, values in image.slabs():
        if voxels is None:
            kept = values.dtype in (np.int16, np.uint16) and values.dtype.isnative
            voxels = np.empty(image.shape, values.dtype if kept else np.float32, order="F")
        voxels[:, :, planes] = values
    assert voxels is not None  # check_size refuses an image without planes
    return _volume(image, voxels, config, 0, {})


def read_labels(path: str | Path, config: PrepConfig) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Read (I, J, K) uint8 labels, their affine and notes.

    Values within 0.001 of a whole number are rounded, and counted. Raises RejectedSeries for others, and unless they
    are 0 to 255.
    """
    image, rounded = Image(path, config), 0
    labels = np.empty(image.shape, np.uint8, order="F")
    for planes, values in image.slabs():
        low, high = values.min(), values.max()
        whole = np.rint(values) if values.dtype.kind == "f" else values
        if low < -_NEARLY or high > 255 + _NEARLY or (whole is not values and np.abs(values - whole).max() > _NEARLY):
            raise RejectedSeries(f"values {low} to {high}; expected whole numbers 0 to 255")
        if whole is not values:
            rounded += int(np.count_nonzero(whole != values))
        labels[:, :, planes] = whole
    return labels, image.affine, {"label_voxels_rounded": rounded} if rounded else {}


def _volume(image: Image, voxels: np.ndarray, config: PrepConfig, outside: float, notes: dict) -> Volume:
    turned, affine, turning = geometry.to_axial(voxels, image.affine, config.geometry, outside)
    if len(turned) < config.min_slices:
        raise RejectedSeries(f"{len(turned)} slices, fewer than min_slices={config.min_slices}")
    return Volume(voxels=turned, affine=affine, notes={**notes, **turning})
