"""Values become whole Hounsfield units; what that changes is counted."""

from __future__ import annotations

import numpy as np

from data_prep.schema import AIR_HU

_TOP = np.iinfo(np.int16).max


class Hounsfield:
    """Converts planes of one volume to int16 HU within −1024 … 32767.

    below    voxels under −1024 HU (padding), stored as −1024
    above    voxels beyond int16, stored as 32767
    rounded  voxels whose HU was no whole number
    """

    def __init__(self) -> None:
        self.below = self.above = self.rounded = 0

    def __call__(self, stored: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> np.ndarray:
        """stored · slope + intercept, as int16; `stored` is of any shape and number type."""
        if stored.dtype.kind == "f" or not (float(slope).is_integer() and float(intercept).is_integer()):
            exact = stored.astype(np.float64) * slope + intercept if (slope, intercept) != (1, 0) else stored
            hu = np.rint(exact)
            self.rounded += int((hu != exact).sum())
            low, high = hu.min(), hu.max()
        else:
            low, high = sorted(int(end) * int(slope) + int(intercept) for end in (stored.min(), stored.max()))
            hu = self._whole(stored, int(slope), int(intercept), low, high)
        if low < AIR_HU:
            self.below += int((hu < AIR_HU).sum())
        if high > _TOP:
            self.above += int((hu > _TOP).sum())
        if low < AIR_HU or high > _TOP:
            hu = np.clip(hu, AIR_HU, _TOP)
        return hu.astype(np.int16, copy=False)

    @staticmethod
    def _whole(stored: np.ndarray, slope: int, intercept: int, low: int, high: int) -> np.ndarray:
        """Values that end at `low` and `high`."""
        if (slope, intercept) == (1, 0):
            return stored
        if slope == 1 and stored.dtype.itemsize == 2 and min(low, intercept) >= -32768 and high <= _TOP:
            # the usual case: 16 bits suffice all the way, wrapping there and back included
            native = stored if stored.dtype.isnative else stored.astype(stored.dtype.newbyteorder("="))
            return native.view(np.int16) + np.int16(intercept)
        return stored.astype(np.int64) * slope + intercept

    def notes(self) -> dict[str, object]:
        """The counts for the manifest."""
        return {"voxels_below_air": self.below, "voxels_above_int16": self.above, "voxels_rounded": self.rounded}
