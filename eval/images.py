"""From a slice to the square image that an encoder sees, and from a prediction back to the slice."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from data_prep.schema import AIR_HU, Slice


def square(sample: Slice) -> tuple[int, int, int]:
    """(row, column, side) in pixels of the square around the body; it may reach beyond the slice."""
    row0, row1, column0, column1 = sample.box
    side = max(row1 - row0, column1 - column0)
    return (row0 + row1 - side) // 2, (column0 + column1 - side) // 2, side


def cut(plane: np.ndarray, place: tuple[int, int, int], fill: int) -> np.ndarray:
    """(side, side) of an (H, W) array, `fill` where the square reaches beyond it."""
    row, column, side = place
    out = np.full((side, side), fill, plane.dtype)
    top, left = max(row, 0), max(column, 0)
    part = plane[top : row + side, left : column + side]
    out[top - row : top - row + part.shape[0], left - column : left - column + part.shape[1]] = part
    return out


def image(sample: Slice, size: int) -> torch.Tensor:
    """(1, size, size) float32 HU: the square around the body, antialiased bicubic."""
    hu = torch.from_numpy(cut(sample.pixels[0], square(sample), AIR_HU)).float()
    return F.interpolate(hu[None, None], (size, size), mode="bicubic", antialias=True, align_corners=False)[0]


def labels(sample: Slice, size: int) -> np.ndarray:
    """(size, size) uint8 labels of the square around the body, nearest neighbour."""
    native = native_labels(sample)
    place = ((np.arange(size) + 0.5) * len(native) / size).astype(np.int64)
    return native[np.ix_(place, place)]


def native_labels(sample: Slice) -> np.ndarray:
    """(side, side) uint8 labels of the square around the body, in the slice's own pixels."""
    plane = sample.labelmap if sample.labelmap is not None else np.zeros(sample.pixels.shape[1:], np.uint8)
    return cut(plane, square(sample), 0)


def to_native(maps: torch.Tensor, side: int) -> torch.Tensor:
    """(O, size, size) values on the resized square → (O, side, side), bilinear."""
    return F.interpolate(maps[None], (side, side), mode="bilinear", align_corners=False)[0]
