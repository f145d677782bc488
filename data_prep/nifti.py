"""NIfTI volumes (`.nii`, `.nii.gz`)."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from data_prep.volume import RejectedSeries, Volume, canonical

SUFFIXES = (".nii", ".nii.gz")
_DAMAGED = (ImageFileError, HeaderDataError, EOFError, zlib.error, OSError, ValueError, TypeError, OverflowError)


def stem(path: Path) -> str:
    """Name of a NIfTI file without its ending."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) array in stored order with scaling applied, and its RAS affine.

    Raises RejectedSeries for a file that is damaged, not three-dimensional or not finite, PermissionError as it is.
    """
    try:
        image = nibabel.load(path)
        shape = image.shape
        if len(shape) == 4 and shape[3] == 1:
            shape = shape[:3]
        if len(shape) != 3:
            raise RejectedSeries(f"{len(shape)}-D image of {'x'.join(map(str, shape))}; split it into 3-D volumes")
        voxels = np.asanyarray(image.dataobj).reshape(shape)
    except (RejectedSeries, PermissionError):
        raise
    except _DAMAGED as error:
        raise RejectedSeries(f"truncated or damaged NIfTI ({type(error).__name__})") from error
    if voxels.dtype.kind not in "iuf":
        raise RejectedSeries(f"voxels of type {voxels.dtype}; expected one number per voxel")
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise RejectedSeries(f"{int((~np.isfinite(voxels)).sum())} voxels are NaN or infinite")
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise RejectedSeries("its affine has no volume; set the spacing in its header")
    return voxels, affine


def read(path: Path) -> Volume:
    """A CT volume in HU, axes as Volume says. Raises RejectedSeries, PermissionError."""
    voxels, affine = canonical(*load(path))
    spacing = tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0)[::-1])
    return Volume(voxels=voxels.astype(np.float32), spacing=spacing, affine=affine)
