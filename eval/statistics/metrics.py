"""Figures of merit in their vectorised form over weighted resamples of patients.

Every function takes arrays of M predictions and how often each counts in R resamples, and returns (R,) figures, NaN
where a resample has none (a class is missing). With weights of ones it is the figure of the whole. Slices of a patient
always count alike, so what is a sum over slices is summed by patient once, not in every resample (`Weights.sum`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ECE_BINS = 15
_PATIENTS, _CELLS = 1000, 20_000_000  # up to here the pairs of patients are counted beforehand


@dataclass(frozen=True)
class Weights:
    """counts (R, P) of P patients in R resamples; owner (M,) the patient of each prediction."""

    counts: np.ndarray
    owner: np.ndarray

    def take(self, rows: np.ndarray) -> Weights:
        """Return the weights of some predictions."""
        return Weights(self.counts, self.owner[rows])

    def by_patient(self, values: np.ndarray) -> np.ndarray:
        """(P, K) sums of (M, K) values."""
        found = np.zeros((self.counts.shape[1], values.shape[1]))
        np.add.at(found, self.owner, values)
        return found

    def sum(self, values: np.ndarray) -> np.ndarray:
        """(R,) weighted sums of (M,) values, or (R, K) of (M, K)."""
        if values.ndim == 1:
            return self.counts @ np.bincount(self.owner, values, minlength=self.counts.shape[1])
        return self.counts @ self.by_patient(values)

    @property
    def total(self) -> np.ndarray:
        """(R,) sum of all weights."""
        return self.counts @ np.bincount(self.owner, minlength=self.counts.shape[1])

    def full(self) -> np.ndarray:
        """Return (R, M) weights of the predictions."""
        return self.counts[:, self.owner]


def weights_of(weights: Weights | np.ndarray | None, count: int) -> Weights:
    """Return weights from (R, M) numbers, each prediction a patient of its own; ones where none are given."""
    if isinstance(weights, Weights):
        return weights
    return Weights(np.ones((1, count)) if weights is None else np.asarray(weights, np.float64), np.arange(count))


def auroc(scores: np.ndarray, positive: np.ndarray, weights: Weights | np.ndarray | None = None) -> np.ndarray:
    """Return (R,) area under the ROC curve, ties counting half; NaN where a resample lacks one of the classes.

    scores (M,), positive (M,) bool, weights of R resamples (default: one of ones). With few patients the pairs of
    patients are counted once for all resamples: the same figures, 25 times as fast for 30 patients of 40 slices.
    """
    weights = weights_of(weights, len(scores))
    if not len(scores):
        return np.full(len(weights.counts), np.nan)
    patients = weights.counts.shape[1]
    level = np.unique(scores, return_inverse=True)[1]
    if patients > _PATIENTS or patients * (level.max(initial=0) + 1) > _CELLS or len(weights.counts) < 2:
        return auroc_of_counts(*_at_scores(scores, positive, weights))
    held = np.zeros((2, level.max(initial=0) + 1, patients))  # positives and negatives at each score by patient
    np.add.at(held, ((~positive).astype(np.int64), level, weights.owner), 1.0)
    # for every pair of patients, how often the first one's positives beat the second one's negatives
    beaten = held[0].T @ (np.cumsum(held[1], axis=0) - held[1] / 2)
    pairs = np.prod([weights.counts @ each.sum(axis=0) for each in held], axis=0)
    return _ratio(((weights.counts @ beaten) * weights.counts).sum(axis=1), pairs)


def auroc_of_counts(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return (R,) AUROC from the weights of positives and negatives at each distinct score, ascending, (R, K) each."""
    beaten = np.cumsum(below, axis=1) - below / 2
    return _ratio((above * beaten).sum(axis=1), above.sum(axis=1) * below.sum(axis=1))


def auprc(scores: np.ndarray, positive: np.ndarray, weights: Weights | np.ndarray | None = None) -> np.ndarray:
    """Average precision: the sum over thresholds of precision times the step in recall."""
    weights = weights_of(weights, len(scores))
    if not len(scores):
        return np.full(len(weights.counts), np.nan)
    found = _at_scores(scores, positive, weights)
    above, below = (part[:, ::-1] for part in found)  # highest score first
    hits, alarms = np.cumsum(above, axis=1), np.cumsum(below, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(hits + alarms > 0, hits / (hits + alarms), 0)
    return _ratio((precision * above).sum(axis=1), above.sum(axis=1))


def _at_scores(scores: np.ndarray, positive: np.ndarray, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """(R, K) weight of positives and of negatives at each of the K distinct scores, ascending."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    ordered = weights.take(order).full()
    above, below = (np.where(kind[order], ordered, 0) for kind in (positive, ~positive))
    return np.add.reduceat(above, starts, axis=1), np.add.reduceat(below, starts, axis=1)


def confusion(predicted: np.ndarray, true: np.ndarray, classes: int, weights: Weights | np.ndarray) -> np.ndarray:
    """(R, classes, classes) weight of each (true, predicted) pair."""
    cells = np.zeros((len(true), classes * classes))
    cells[np.arange(len(true)), true * classes + predicted] = 1
    return weights_of(weights, len(true)).sum(cells).reshape(-1, classes, classes)


def accuracy(table: np.ndarray) -> np.ndarray:
    """Share of right predictions, from (R, C, C) confusion tables (true, predicted)."""
    return _ratio(np.trace(table, axis1=1, axis2=2), table.sum(axis=(1, 2)))


def balanced_accuracy(table: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that are there."""
    return macro(_ratio(np.diagonal(table, axis1=1, axis2=2), table.sum(axis=2)))


def f1(table: np.ndarray) -> np.ndarray:
    """(R, C) F1 of each class; 0 if a class is never predicted rightly, NaN if it is neither true nor predicted."""
    return _ratio(2 * np.diagonal(table, axis1=1, axis2=2), table.sum(axis=1) + table.sum(axis=2))


def mcc(table: np.ndarray) -> np.ndarray:
    """Matthews' correlation of any number of classes (Gorodkin 2004); 0 where one side is constant."""
    right, total = np.trace(table, axis1=1, axis2=2), table.sum(axis=(1, 2))
    true, predicted = table.sum(axis=2), table.sum(axis=1)
    top = right * total - (true * predicted).sum(axis=1)
    square = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, np.where(square > 0, top / np.sqrt(square), 0.0), np.nan)


def ece(confidence: np.ndarray, right: np.ndarray, weights: Weights | np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
    """Expected calibration error: |confidence − share that is right| averaged over `bins` equal bins of confidence."""
    weights = weights_of(weights, len(confidence))
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    member = (place[:, None] == np.arange(bins)).astype(np.float64)
    gap = np.abs(weights.sum(member * (confidence - right)[:, None]))
    return _ratio(gap.sum(axis=1), weights.total)


def mean(values: np.ndarray, weights: Weights | np.ndarray) -> np.ndarray:
    """Weighted mean of (M,) values; NaN values take no part."""
    known = ~np.isnan(values)
    weights = weights_of(weights, len(values)).take(known)
    return _ratio(weights.sum(values[known]), weights.total)


def r_squared(predicted: np.ndarray, true: np.ndarray, weights: Weights | np.ndarray) -> np.ndarray:
    """1 − residual over total sum of squares; NaN where the truth is constant."""
    weights = weights_of(weights, len(true))
    total, squares = weights.total, weights.sum(true**2)
    spread = squares - total * _ratio(weights.sum(true), total) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-12 * squares, 1 - weights.sum((predicted - true) ** 2) / spread, np.nan)


def pearson(predicted: np.ndarray, true: np.ndarray, weights: Weights | np.ndarray) -> np.ndarray:
    """Correlation; NaN where one side is constant."""
    weights = weights_of(weights, len(true))
    total = weights.total
    one, other = (_ratio(weights.sum(each), total) for each in (predicted, true))
    both = _ratio(weights.sum(predicted * true), total) - one * other
    spreads = [_ratio(weights.sum(each**2), total) - m**2 for each, m in ((predicted, one), (true, other))]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.minimum(*spreads) > 1e-12, both / np.sqrt(np.maximum(spreads[0] * spreads[1], 0)), np.nan)


def c_index(risk: np.ndarray, time: np.ndarray, event: np.ndarray, weights: Weights | np.ndarray) -> np.ndarray:
    """Return Harrell's concordance: the share of comparable pairs that the risk puts in the right order.

    A pair is comparable where the one with the shorter time had the event (equal times: where only one had it).
    Ties of the risk count half.
    """
    weights = weights_of(weights, len(time))
    shorter = (time[:, None] < time[None]) | ((time[:, None] == time[None]) & ~event[None])
    comparable = (event[:, None] & shorter).astype(np.float64)
    np.fill_diagonal(comparable, 0)
    right = comparable * ((risk[:, None] > risk[None]) + 0.5 * (risk[:, None] == risk[None]))
    top, bottom = (
        ((weights.counts @ weights.by_patient(weights.by_patient(each).T).T) * weights.counts).sum(axis=1)
        for each in (right, comparable)
    )
    return _ratio(top, bottom)


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
