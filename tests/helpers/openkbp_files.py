"""Writes patients as OpenKBP publishes them: sparse voxels in CSV files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

GRID = (128, 128, 128)  # rows from front to back, columns from right to left, slices from head to foot


def patient(folder: Path, hu: np.ndarray, organs: Mapping[str, np.ndarray], spacing=(3.9, 3.9, 2.5)) -> Path:
    """Write a patient: (rows, columns, slices) HU, and structures as masks of that shape, in a corner of the grid."""
    stored = np.zeros(GRID, np.float64)
    stored[tuple(slice(extent) for extent in hu.shape)] = np.maximum(hu + 1024.0, 0)
    folder.mkdir(parents=True, exist_ok=True)
    places = np.flatnonzero(stored)
    sparse(folder / "ct.csv", places, stored.ravel()[places])
    for name, mask in organs.items():
        inside = np.zeros(GRID, bool)
        inside[tuple(slice(extent) for extent in mask.shape)] = mask
        sparse(folder / f"{name}.csv", np.flatnonzero(inside))
    (folder / "voxel_dimensions.csv").write_text("".join(f"{length:.18e}\n" for length in spacing))
    return folder


def sparse(path: Path, places: np.ndarray, values: np.ndarray | None = None) -> Path:
    """Write the CSV of a volume, or without values of a structure."""
    written = [""] * len(places) if values is None else [str(float(value)) for value in values]
    path.write_text(",data\n" + "".join(f"{place},{value}\n" for place, value in zip(places, written)))
    return path
