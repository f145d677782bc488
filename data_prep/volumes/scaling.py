"""Stored values: whole Hounsfield units for CT; for MR, which has no unit, a robust scale per volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.schema import AIR_HU
from data_prep.schema import MR_HIGH as HIGH
from data_prep.schema import MR_LOW as LOW

_MOST = 4_000_000  # voxels that the percentiles are taken from
_CONSTANT = 0.1  # a value of at least this share of the voxels is background (skull-stripped, masked)
_NEAR, _RARE = 0.05, 0.25  # beside a mask, values within 5 % of the range above it are at most 25 % as frequent

_FAR_BELOW = -1300  # HU that neither noise nor streaks reach in many voxels
_TOP = np.iinfo(np.int16).max


class ToHounsfield:
    """Converts planes of one volume to int16 HU within −1024 … 32767.

    below    voxels under −1024 HU (padding), stored as −1024
    above    voxels beyond int16, stored as 32767
    far      voxels under −1300 HU that differ from the lowest of their planes: no padding, which has one value
    rounded  voxels whose HU was not a whole number
    """

    def __init__(self) -> None:
        self.below = self.above = self.far = self.rounded = 0

    def __call__(self, stored: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> np.ndarray:
        """Return stored · slope + intercept as int16; `stored` may have any shape and number type."""
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
        if low < _FAR_BELOW:
            self.far += int(((hu < _FAR_BELOW) & (hu > low)).sum())
        if high > _TOP:
            self.above += int((hu > _TOP).sum())
        if low < AIR_HU or high > _TOP:
            hu = np.clip(hu, AIR_HU, _TOP)
        return hu.astype(np.int16, copy=False)

    @staticmethod
    def _whole(stored: np.ndarray, slope: int, intercept: int, low: int, high: int) -> np.ndarray:
        """Return stored · slope + intercept, whose extremes are `low` and `high`, in integers."""
        if (slope, intercept) == (1, 0):
            return stored
        if slope == 1 and stored.dtype.itemsize == 2 and min(low, intercept) >= -32768 and high <= _TOP:
            # the usual case: 16 bits suffice, since wrapping cancels out
            native = stored if stored.dtype.isnative else stored.astype(stored.dtype.newbyteorder("="))
            return native.view(np.int16) + np.int16(intercept)
        return stored.astype(np.int64) * slope + intercept

    def notes(self) -> dict[str, object]:
        """Return the counts for the manifest."""
        counts = {"voxels_below_air": self.below, "voxels_above_int16": self.above, "voxels_rounded": self.rounded}
        return {**counts, **({"voxels_far_below_air": self.far} if self.far else {})}


@dataclass
class Scale:
    """signal = stored · slope + intercept; `level` is the stored value above which a voxel is foreground.

    clipped  voxels clipped to the ends of uint16 so far
    """

    slope: float
    intercept: float
    level: int
    clipped: int = 0

    def encode(self, signal: np.ndarray) -> np.ndarray:
        """Return an array of signal as uint16; values that do not fit are clipped and counted."""
        stored = np.rint((signal - np.float64(self.intercept)) / self.slope)
        if stored.min() < 0 or stored.max() > 65535:
            self.clipped += int(((stored < 0) | (stored > 65535)).sum())
            stored = np.clip(stored, 0, 65535)
        return stored.astype(np.uint16)


def robust(voxels: np.ndarray) -> Scale | None:
    """Return the scale that maps the foreground's 0.5th and 99.5th percentile to LOW and HIGH.

    None if the foreground has one value only.
    """
    sample = _sample(voxels)
    threshold = foreground_threshold(sample)
    inside = sample[sample > threshold]
    if not len(inside):
        return None
    low, high = (float(value) for value in np.percentile(inside, (0.5, 99.5)))
    if high <= low:
        return None
    slope = (high - low) / (HIGH - LOW)
    intercept = low - LOW * slope
    scale = Scale(slope, intercept, level=0)
    scale.level = int(scale.encode(np.array([threshold]))[0])  # rounded as the voxels are: equal stays equal
    return Scale(slope, intercept, scale.level)


def foreground_threshold(sample: np.ndarray) -> float:
    """Return the value above which a voxel shows tissue.

    The background's own value if the image was masked to a constant, else Otsu's threshold (1979).
    """
    values, counts = np.unique(sample, return_counts=True)
    common, top = int(counts.argmax()), np.percentile(sample, 99.5)
    if counts[common] >= _CONSTANT * len(sample) and values[common] <= sample.mean():
        near = (values > values[common]) & (values <= values[common] + _NEAR * (top - values[common]))
        if counts[near].sum() < _RARE * counts[common]:  # noise would fill the values beside it
            return float(values[common])
    return _otsu(sample, top)


def _sample(voxels: np.ndarray) -> np.ndarray:
    """Return at most 4 million values, evenly spaced."""
    step = int(np.ceil((voxels.size / _MOST) ** (1 / 3)))
    return voxels[::step, ::step, ::step].ravel()


def _otsu(sample: np.ndarray, top: float) -> float:
    counts, edges = np.histogram(np.minimum(sample, top), bins=256)  # a few bright vessels must not take all bins
    centres = (edges[:-1] + edges[1:]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(edges[1:][np.nanargmax(np.where(above > 0, apart, 0))])
