"""Write MRI volumes as NIfTI files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

RAS_2MM = np.diag([2.0, 2, 2, 1])


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = RAS_2MM) -> Path:
    """Write (X, Y, Z) voxels as a NIfTI file; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def head(shape: tuple[int, int, int] = (24, 24, 10), level: float = 100.0, seed: int = 0) -> np.ndarray:
    """Return an ellipsoid of tissue in noise, (X, Y, Z) int16."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape).astype(float)
    middle = (np.array(shape) - 1) / 2
    inside = sum(((axis - m) / (m * 0.8)) ** 2 for axis, m in zip(grid, middle)) < 1
    signal = np.where(inside, level + rng.normal(0, level / 10, shape) + grid[0], 0) + rng.random(shape) * level / 20
    return np.rint(signal).astype(np.int16)
