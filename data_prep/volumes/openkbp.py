"""OpenKBP's CSV files: sparse voxels of one 128³ grid, whose spacing lies beside them.

pt_1/ct.csv                `,data`, then index,value: 0 where no line names a voxel
pt_1/Brainstem.csv         `,data`, then index, with nothing behind the comma: the voxels of a structure
pt_1/voxel_dimensions.csv  three lines: mm between rows, columns and slices

Indices count slices fastest, then columns, then rows. Rows run from front to back, columns from the patient's right to
left, slices from head to foot: the files do not say so, but their structures (parotids, cord, brainstem) do. A CT holds
HU + 1024, from 0 to 4095.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.volumes import zips
from data_prep.volumes.volume import RejectedSeries

SUFFIX = ".csv"
SPACING = "voxel_dimensions.csv"
_SHAPE = (128, 128, 128)
_TOP = 4095
_OFFSET = 1024
_BYTES = 100_000_000  # of a file: 128³ lines are half of it
_HEADER = b",data"
_NOT_ONE = "a CSV, but not one of OpenKBP's"


def read(path: str | Path) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Return (rows, columns, slices) HU of a CT or 0 and 1 of a structure, the affine to RAS mm, and notes.

    A CT is int16, or float32 if its values are not whole. Raises RejectedSeries for anything that is not such a file.
    """
    affine = _affine(Path(path).with_name(SPACING))
    index, values = _lines(Path(path))
    voxels = np.zeros(np.prod(_SHAPE), np.uint8 if values is None else np.float32)
    if values is None:
        voxels[index] = 1
        return voxels.reshape(_SHAPE), affine, {}
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= _TOP):
        raise RejectedSeries(f"values {values.min():g} to {values.max():g}; a CT of OpenKBP has 0 to {_TOP}")
    voxels[index] = values
    hu = voxels.reshape(_SHAPE) - _OFFSET
    whole = not (hu % 1).any()
    return hu.astype(np.int16) if whole else hu, affine, {"hu": f"stored value − {_OFFSET}, as OpenKBP stores it"}


def _lines(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the indices, and the values if lines have any."""
    if (size := zips.size(path)) > _BYTES:
        raise RejectedSeries(f"{_NOT_ONE}: {size / 1e6:.0f} MB")
    with zips.open_binary(path) as file:
        header, *lines = file.read().split(b"\n")
    lines = [line.strip() for line in lines if line.strip()]
    if header.strip() != _HEADER or not lines:
        raise RejectedSeries(f"{_NOT_ONE}: its first line is not `,data`" if lines else "an empty CSV")
    empty = sum(line.endswith(b",") for line in lines)
    if 0 < empty < len(lines):
        raise RejectedSeries(f"{empty} of {len(lines)} lines have no value: neither a CT nor a structure of OpenKBP")
    if any(line.count(b",") != 1 for line in lines):
        raise RejectedSeries(f"{_NOT_ONE}: lines other than index,value")
    try:
        columns = np.array(b",".join(lines).split(b",") if not empty else [line[:-1] for line in lines], np.float64)
        columns = columns.reshape(len(lines), 1 if empty else 2)
    except ValueError:
        raise RejectedSeries(f"{_NOT_ONE}: lines other than index,value") from None
    index = columns[:, 0]
    if not (np.isfinite(index).all() and (index % 1 == 0).all() and 0 <= index.min() <= index.max() < np.prod(_SHAPE)):
        raise RejectedSeries(f"{_NOT_ONE}: indices other than whole numbers from 0 to {np.prod(_SHAPE) - 1}")
    if len(np.unique(index)) < len(index):
        raise RejectedSeries("a voxel is named twice")
    return index.astype(np.int64), None if empty else columns[:, 1]


def _affine(path: Path) -> np.ndarray:
    if not zips.is_file(path):
        raise RejectedSeries(f"{SPACING} is not beside it; without it a CSV has no spacing")
    with zips.open_binary(path) as file:
        start = file.read(1000)
    try:
        spacing = np.array(start.split(), np.float64)
    except ValueError:
        spacing = np.empty(0)
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise RejectedSeries(f"{SPACING} does not hold three spacings in mm")
    rows, columns, slices = spacing
    return np.array([[0, -columns, 0, 0], [-rows, 0, 0, 0], [0, 0, -slices, 0], [0, 0, 0, 1]], np.float64)
