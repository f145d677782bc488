"""Figures of merit, and their vectorised form over weighted resamples of patients."""

from __future__ import annotations

import numpy as np


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve, ties counting half.

    scores (N,), positive (N,) bool, weights (R, N) counts of each sample in R resamples (default: one
    of ones). Returns (R,), NaN where a resample lacks one of the classes.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    sums = [np.add.reduceat(weights[:, order] * kind[order], starts, axis=1) for kind in (positive, ~positive)]
    above, below = sums  # weight of positives and negatives at each distinct score
    beaten = np.cumsum(below, axis=1) - below / 2
    pairs = above.sum(axis=1) * below.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (above * beaten).sum(axis=1) / pairs, np.nan)


def macro(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis, NaN left out; NaN where nothing is left."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=-1) / np.where(known.any(axis=-1), known.sum(axis=-1), np.nan)


def dice(overlap: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """2 |A ∩ B| / (|A| + |B|) from counts of pixels; NaN where both are empty."""
    with np.errstate(invalid="ignore"):
        return np.where(predicted + true > 0, 2 * overlap / (predicted + true), np.nan)
