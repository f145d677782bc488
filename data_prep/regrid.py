"""Slices at a spacing and size of the user's choice: antialiased for images, nearest neighbour for labels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from data_prep.config import GridConfig


class Fit:
    """Resamples (H, W) planes of one grid to `grid.in_plane_mm`, then cuts or pads to `grid.size`.

    spacing  (row, column) in mm afterwards: the extent stays, so it is the wanted one to within half a pixel over
             the whole slice
    """

    def __init__(self, shape: tuple[int, int], spacing: tuple[float, float], grid: GridConfig) -> None:
        self._shape = shape
        if grid.in_plane_mm:
            self._shape = tuple(max(round(n * mm / grid.in_plane_mm), 1) for n, mm in zip(shape, spacing))
        self._changes = self._shape != shape
        self.spacing = tuple(mm * n / now for mm, n, now in zip(spacing, shape, self._shape))
        self._size = grid.size

    def image(self, plane: np.ndarray, outside: int) -> np.ndarray:
        """A plane of int16 or uint16: cubic, with the kernel widened where it shrinks; `outside` beyond the edge."""
        if self._changes:
            limits = np.iinfo(plane.dtype)
            smooth = np.asarray(self._resized(plane.astype(np.float32), Image.Resampling.BICUBIC))
            low, high = max(plane.min(), limits.min), min(plane.max(), limits.max)  # cubic overshoots at edges
            plane = np.clip(np.rint(smooth), low, high).astype(plane.dtype)
        return self._sized(plane, outside)

    def labels(self, plane: np.ndarray) -> np.ndarray:
        """A plane of uint8 labels; 0 beyond the edge."""
        if self._changes:
            plane = np.asarray(self._resized(plane, Image.Resampling.NEAREST))
        return self._sized(plane, 0)

    def _resized(self, plane: np.ndarray, method: Image.Resampling) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(plane)).resize(self._shape[::-1], method)

    def _sized(self, plane: np.ndarray, outside: int) -> np.ndarray:
        if not self._size:
            return plane
        out = np.full((self._size, self._size), outside, plane.dtype)
        source, target = zip(*(_centred(n, self._size) for n in plane.shape))
        out[target] = plane[source]
        return out


def _centred(length: int, size: int) -> tuple[slice, slice]:
    """The ranges of a line of `length` and of one of `size` that lie over each other, centres together."""
    kept = min(length, size)
    return slice((length - kept) // 2, (length - kept) // 2 + kept), slice(
        (size - kept) // 2, (size - kept) // 2 + kept
    )
