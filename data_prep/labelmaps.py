"""Label maps: found beside a volume or in a tree of their own, put on the volume's grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from data_prep import nifti
from data_prep.volume import RejectedSeries, Volume, canonical

NAMES = ("seg.nii.gz", "seg.nii")


def find(volume: Path, root: Path, masks: Path | None) -> Path | None:
    """The label map of the file or series folder `volume`, or None.

    Without `masks`: `seg.nii.gz` (or `seg.nii`) in the same folder. With it: the same relative path below
    `masks`, or `seg.nii.gz` in the same relative folder there.
    """
    folder = volume if volume.is_dir() else volume.parent
    if masks is None:
        candidates = [folder / name for name in NAMES]
    else:
        there = masks / folder.relative_to(root)
        twins = [masks / volume.relative_to(root)] if volume.is_file() else [there.with_name(f"{there.name}.nii.gz")]
        candidates = twins + [there / name for name in NAMES]
    return next((path for path in candidates if path.is_file()), None)


def read_onto(path: Path, volume: Volume) -> np.ndarray:
    """(Z, Y, X) uint8 labels on the grid of `volume`, nearest neighbour; 0 outside the map.

    Raises RejectedSeries where the map is damaged, holds values other than whole numbers 0…255 or
    does not touch the volume.
    """
    try:
        raw, affine = nifti.load(path)
    except RejectedSeries as error:
        raise RejectedSeries(f"label map: {error.reason}") from error
    if raw.min() < 0 or raw.max() > 255 or (raw.dtype.kind == "f" and (raw != np.rint(raw)).any()):
        raise RejectedSeries(f"label map: values {raw.min()} to {raw.max()}; expected whole numbers 0 to 255")
    labels = raw.astype(np.uint8)
    if labels.shape == volume.voxels.shape[::-1] or sorted(labels.shape) == sorted(volume.voxels.shape):
        turned, transform = canonical(labels, affine)
        if turned.shape == volume.voxels.shape and np.allclose(transform, volume.affine, atol=1e-2):
            return np.ascontiguousarray(turned)
    step = np.linalg.inv(affine) @ volume.affine  # (x, y, z) of the volume → index of the map
    shape = volume.voxels.shape[::-1]
    placed = ndimage.affine_transform(labels, step[:3, :3], step[:3, 3], output_shape=shape, order=0)
    if labels.any() and not placed.any():
        raise RejectedSeries("label map: none of its labels lies inside the volume; check the two affines")
    return np.ascontiguousarray(placed.transpose(2, 1, 0))
