"""A volume as the readers hand it on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


class RejectedSeries(ValueError):
    """An input that becomes no samples. `reason` is short and holds no path: it goes into the manifest."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Volume:
    """One series.

    voxels   (Z, Y, X) float32, HU for CT; Z inferior→superior, Y anterior→posterior, X patient
             right→left (see `canonical`)
    spacing  (z, y, x) in mm
    affine   (4, 4) voxel (x, y, z) → patient position in mm, NIfTI's RAS convention
    modality "CT" or "MR"
    meta     whitelisted header fields
    """

    voxels: np.ndarray
    spacing: tuple[float, float, float]
    affine: np.ndarray
    modality: str = "CT"
    meta: dict[str, object] = field(default_factory=dict)


def canonical(voxels: np.ndarray, affine: np.ndarray, max_oblique: float = 20.0) -> tuple[np.ndarray, np.ndarray]:
    """Turn an (X, Y, Z) array with its RAS affine so that the axes run as Volume says; no resampling.

    The axes are permuted and flipped to right→left, anterior→posterior, inferior→superior. Raises
    RejectedSeries where the slices are not axial, or stand more than `max_oblique` degrees off.
    Returns the (Z, Y, X) array (a view) and the new affine for (x, y, z) indices.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    nearest = np.abs(directions).argmax(axis=0)
    if sorted(nearest) != [0, 1, 2]:
        raise RejectedSeries("the axes of the image do not tell left, front and head apart; check its affine")
    oblique = np.degrees(np.arccos(np.clip(np.abs(directions[nearest, range(3)]).min(), 0, 1)))
    if oblique > max_oblique:
        raise RejectedSeries(f"oblique by {oblique:.0f} degrees; resample it on an axial grid first")
    axes = np.argsort(nearest)  # voxel axis of each patient axis
    turned, transform = voxels.transpose(axes), affine[:, [*axes, 3]].copy()
    wanted = np.array([-1.0, -1.0, 1.0])  # RAS axes: x runs to the left, y to the back, z to the head
    for axis in range(3):
        if transform[axis, axis] * wanted[axis] < 0:
            transform[:3, 3] += transform[:3, axis] * (turned.shape[axis] - 1)
            transform[:3, axis] *= -1
            turned = np.flip(turned, axis)
    return turned.transpose(2, 1, 0), transform
