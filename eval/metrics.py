"""Figures of merit in their vectorised form over weighted resamples of patients.

Every function takes arrays of M predictions and weights (R, M), how often each counts in R resamples, and returns (R,)
figures, NaN where a resample has none (a class is missing). With weights of ones it is the figure of the whole.
"""

from __future__ import annotations

import numpy as np

ECE_BINS = 15


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve, ties counting half.

    scores (M,), positive (M,) bool, weights (R, M) counts of each sample in R resamples (default: one
    of ones). Returns (R,), NaN where a resample lacks one of the classes.
    """
    above, below = _at_scores(scores, positive, weights)
    return auroc_of_counts(above, below)


def auroc_of_counts(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The same from the weight of positives and negatives at each distinct score, ascending, (R, K) each."""
    beaten = np.cumsum(below, axis=1) - below / 2
    pairs = above.sum(axis=1) * below.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (above * beaten).sum(axis=1) / pairs, np.nan)


def auprc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Average precision: the sum over thresholds of precision times the step in recall."""
    above, below = (part[:, ::-1] for part in _at_scores(scores, positive, weights))  # highest score first
    hits, alarms = np.cumsum(above, axis=1), np.cumsum(below, axis=1)
    total = above.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(hits + alarms > 0, hits / (hits + alarms), 0)
        return np.where(total > 0, (precision * above).sum(axis=1) / total, np.nan)


def _at_scores(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(R, K) weight of positives and of negatives at each of the K distinct scores, ascending."""
    weights = np.ones((1, len(scores))) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    ordered = weights[:, order]
    return tuple(
        np.add.reduceat(np.where(kind[order], ordered, 0), starts, axis=1) for kind in (positive, ~positive)
    )


def confusion(predicted: np.ndarray, true: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """(R, classes, classes) weight of each (true, predicted) pair."""
    cells = np.zeros((len(true), classes * classes))
    cells[np.arange(len(true)), true * classes + predicted] = 1
    return (weights @ cells).reshape(-1, classes, classes)


def accuracy(table: np.ndarray) -> np.ndarray:
    """Share of right predictions, from (R, C, C) confusion tables (true, predicted)."""
    return _ratio(np.trace(table, axis1=1, axis2=2), table.sum(axis=(1, 2)))


def balanced_accuracy(table: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that are there."""
    return macro(_ratio(np.diagonal(table, axis1=1, axis2=2), table.sum(axis=2)))


def f1(table: np.ndarray) -> np.ndarray:
    """(R, C) F1 of each class; 0 where a class is there and never found, NaN where it is neither there nor found."""
    return _ratio(2 * np.diagonal(table, axis1=1, axis2=2), table.sum(axis=1) + table.sum(axis=2))


def mcc(table: np.ndarray) -> np.ndarray:
    """Matthews' correlation of any number of classes (Gorodkin 2004); 0 where one side is constant."""
    right, total = np.trace(table, axis1=1, axis2=2), table.sum(axis=(1, 2))
    true, predicted = table.sum(axis=2), table.sum(axis=1)
    top = right * total - (true * predicted).sum(axis=1)
    square = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, np.where(square > 0, top / np.sqrt(square), 0.0), np.nan)


def ece(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
    """Expected calibration error: |confidence − share that is right| averaged over `bins` equal bins of confidence."""
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    member = (place[:, None] == np.arange(bins)).astype(np.float64)
    gap = np.abs(weights @ (member * (confidence - right)[:, None]))
    return _ratio(gap.sum(axis=1), weights.sum(axis=1))


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of (M,) values; NaN values take no part."""
    known = ~np.isnan(values)
    return _ratio(weights[:, known] @ values[known], weights[:, known].sum(axis=1))


def r_squared(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1 − residual over total sum of squares; NaN where the truth is constant."""
    total = weights.sum(axis=1)
    centre = _ratio(weights @ true, total)
    spread = weights @ true**2 - total * centre**2
    with np.errstate(invalid="ignore", divide="ignore"):
        explained = 1 - weights @ (predicted - true) ** 2 / spread
        return np.where(spread > 1e-12 * (weights @ true**2), explained, np.nan)


def pearson(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlation; NaN where one side is constant."""
    total = weights.sum(axis=1)
    one, other = (_ratio(weights @ each, total) for each in (predicted, true))
    both = _ratio(weights @ (predicted * true), total) - one * other
    spreads = [_ratio(weights @ each**2, total) - m**2 for each, m in ((predicted, one), (true, other))]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.minimum(*spreads) > 1e-12, both / np.sqrt(np.maximum(spreads[0] * spreads[1], 0)), np.nan)


def c_index(risk: np.ndarray, time: np.ndarray, event: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Harrell's concordance: of the pairs of which it is known who came first, those that the risk orders rightly.

    A pair is comparable where the one with the shorter time had the event (equal times: where only one had it).
    Ties of the risk count half.
    """
    shorter = (time[:, None] < time[None]) | ((time[:, None] == time[None]) & ~event[None])
    comparable = (event[:, None] & shorter).astype(np.float64)
    np.fill_diagonal(comparable, 0)
    right = comparable * ((risk[:, None] > risk[None]) + 0.5 * (risk[:, None] == risk[None]))
    return _ratio(((weights @ right) * weights).sum(axis=1), ((weights @ comparable) * weights).sum(axis=1))


def macro(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis, NaN left out; NaN where nothing is left."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=-1) / np.where(known.any(axis=-1), known.sum(axis=-1), np.nan)


def dice(overlap: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """2 |A ∩ B| / (|A| + |B|) from counts of pixels; NaN where both are empty."""
    return _ratio(2 * overlap, predicted + true)


def iou(overlap: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """|A ∩ B| / |A ∪ B| from counts of pixels; NaN where both are empty."""
    return _ratio(overlap, predicted + true - overlap)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)
