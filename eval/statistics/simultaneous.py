"""Several differences judged together: intervals and p-values that hold for all of them at once (max-T).

All rest on the same resamples of the same patients. Each resample's largest deviation, in standard errors, says how far
chance alone carries the most extreme of them (Westfall and Young 1993, single step). A resample of few patients varies
less than a sample of as many does, and its spread is uncertain: the standard error is widened by √(n / (n − 1)), and
deviations are read on Student's scale of n − 1 degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t


@dataclass(frozen=True)
class Together:
    """K differences: values, low and high (K,) simultaneous intervals, p (K,) adjusted, two-sided."""

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def judge(values: np.ndarray, drawn: np.ndarray, patients: np.ndarray | int, level: float = 0.95) -> Together:
    """Return K differences with intervals that hold together with probability `level`.

    values    (K,); drawn (R, K) the same under R resamples, NaN where a resample has none
    patients  (K,) or one number for all, on how many each rests
    A difference without a spread is exact where it is 0 (the same encoder twice) and unknown elsewhere: NaN, p = 1.
    """
    values, counts = np.asarray(values, np.float64), np.broadcast_to(np.asarray(patients, np.float64), np.shape(values))
    low, high, p = (np.full(len(values), np.nan) for _ in range(3))
    enough = (np.isfinite(drawn).sum(axis=0) > 1) & np.isfinite(values) & (counts > 1)
    raw, centre = np.zeros(len(values)), np.zeros(len(values))
    raw[enough], centre[enough] = np.nanstd(drawn[:, enough], axis=0), np.nanmean(drawn[:, enough], axis=0)
    moving = enough & (raw > 1e-12)
    same = enough & ~moving & (np.abs(values) <= 1e-12)
    low[same], high[same] = values[same], values[same]
    p[~moving] = 1.0
    if moving.any():
        freedom = counts[moving] - 1
        error = raw[moving] * np.sqrt(counts[moving] / freedom)
        deviation = np.abs(drawn[:, moving] - centre[moving]) / raw[moving]
        largest = np.where(np.isnan(deviation), 0.0, deviation).max(axis=1)
        reach = t.isf(norm.sf(np.quantile(largest, level)), freedom) * error
        low[moving], high[moving] = values[moving] - reach, values[moving] + reach
        seen = norm.isf(t.sf(np.abs(values[moving]) / error, freedom))
        p[moving] = ((largest[:, None] >= seen).sum(axis=0) + 1) / (len(largest) + 1)
    return Together(values, low, high, p)
