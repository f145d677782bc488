"""Drawn structures as NIfTI files on the grid of their source."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from eval.intake.grids import Placed
from meddap.disk import write_atomic


def write_labels(path: Path, placed: Placed, planes: Mapping[int, np.ndarray], values: Sequence[int]) -> np.ndarray:
    """Write a label map; return it, (X, Y, Z) uint8 label values on the source's grid.

    planes  order of a slice → (rows, columns) uint8, the place plus 1 of a structure, 0 for none
    values  label value of each structure
    """
    table = np.zeros(256, np.uint8)
    table[1 : len(values) + 1] = values
    labels = table[placed.drawn(planes)]
    write_nifti(path, labels, placed.source.affine)
    return labels


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Write (X, Y, Z) uint8 voxels as .nii.gz, lengths in mm; the same voxels give the same bytes."""
    image = nib.Nifti1Image(np.ascontiguousarray(voxels), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 2)  # 2: aligned with the source
    image.set_qform(affine, 2)
    write_atomic(path, gzip.compress(image.to_bytes(), 6, mtime=0))


def volume_ml(voxels: np.ndarray, affine: np.ndarray) -> float:
    """Return the volume of the voxels that are not zero, in ml, to a microlitre."""
    return round(float(np.count_nonzero(voxels) * abs(np.linalg.det(affine[:3, :3])) / 1000), 3)
