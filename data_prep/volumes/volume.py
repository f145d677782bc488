"""A volume, as all readers return it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from meddap.errors import MeddapError


class RejectedSeries(MeddapError):
    """An input that yields no samples. `reason` is short and holds no path: it goes into the manifest."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Volume:
    """One evenly spaced stack of axial slices.

    voxels   (Z, Y, X), Z inferior→superior, Y anterior→posterior, X patient right→left. CT: int16 HU,
             −1024 … 32767. MR: int16, uint16 or float32 in arbitrary units
    affine   (4, 4) voxel (x, y, z) → patient position in mm, NIfTI's RAS convention
    frame    frame of reference: volumes of different ones have no common space; "" if unknown
    meta     whitelisted header fields
    notes    changes made by reading, for the manifest: counts of voxels or slices, degrees
    """

    voxels: np.ndarray
    affine: np.ndarray
    frame: str = ""
    meta: dict[str, object] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """(z, y, x) in mm."""
        x, y, z = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return z, y, x


def check_size(shape: Sequence[int], limit_gb: float) -> None:
    """Raise RejectedSeries, before memory is allocated, for a grid that exceeds `limit_gb` in int16 or is empty."""
    size, gigabytes = "x".join(map(str, shape)), math.prod(shape) * 2 / 1e9
    if min(shape) < 1:
        raise RejectedSeries(f"an image of {size} voxels")
    if gigabytes > limit_gb:
        raise RejectedSeries(f"{size} voxels are {gigabytes:.1f} GB in int16, more than limits.volume_gb={limit_gb}")
