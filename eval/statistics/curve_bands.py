"""Curves of classifiers with 95 % bands by resampling patients: ROC, and reliability in bins of the probability."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from eval.statistics import bootstrap
from eval.statistics.predictions import Scored

BINS = 10
_AT = np.linspace(0, 1, 101)  # false positive rates at which a band is given
_CELLS = 10_000_000  # of resamples × predictions at a time
_LEVEL = (2.5, 97.5)


def roc(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rate at every distinct threshold, from (0, 0) to (1, 1)."""
    alarms, hits = _rates(scores, positive, np.ones((1, len(scores))))
    return alarms[0], hits[0]


def _rates(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (R, thresholds + 1) false and true positive rates under (R, M) weights; NaN where a class is missing."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    found = []
    for wanted in (~positive, positive):
        summed = np.cumsum((weights * wanted)[:, order], axis=1)[:, last]
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(np.pad(summed / summed[:, -1:], ((0, 0), (1, 0))))
    return found[0], found[1]


def roc_band(prediction: Scored, column: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return false positive rates, and the ends of the 95 % interval of the true positive rate at each of them.

    Resamples are of whole patients, those that `bootstrap.figures` takes; those that lack a class are left out. The
    interval holds at each rate by itself, not for the whole curve; it is NaN with fewer than two patients.
    """
    known, scores, positive = prediction.label(prediction.scores[0], column)
    rows = []
    for weights in _weights(prediction, known, draws, seed):
        for alarms, hits in zip(*_rates(scores, positive, weights)):
            if not (np.isnan(alarms[-1]) or np.isnan(hits[-1])):
                rows.append(np.interp(_AT, alarms, hits))  # where the curve is vertical: its upper end
    if len(np.unique(prediction.subjects[known])) < 2 or not rows:
        return _AT, np.full(len(_AT), np.nan), np.full(len(_AT), np.nan)
    low, high = np.percentile(rows, _LEVEL, axis=0)
    return _AT, low, high


def _weights(prediction: Scored, known: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield (r, M) how often each known prediction counts, some resamples at a time."""
    patients, owner = np.unique(prediction.subjects, return_inverse=True)
    counts, mine = bootstrap.resamples(len(patients), draws, seed), owner[known]
    chunk = max(1, _CELLS // max(len(mine), 1))
    for start in range(0, draws, chunk):
        yield counts[start : start + chunk, mine].astype(np.float64)


def reliability(
    prediction: Scored, column: int, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return of each of ten equal bins that is not empty: mean probability, share of positives, and its 95 % interval.

    The interval is by resampling patients, without those resamples that leave the bin empty; NaN with fewer than two
    patients in it.
    """
    known, scores, positive = prediction.label(prediction.scores[0], column)
    place = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    patients, owner = np.unique(prediction.subjects, return_inverse=True)
    tables = np.zeros((2, len(patients), BINS))  # positives and all, by patient and bin
    np.add.at(tables[0], (owner[known], place), positive)
    np.add.at(tables[1], (owner[known], place), 1)
    counts = bootstrap.resamples(len(patients), draws, seed)
    with np.errstate(invalid="ignore"):
        drawn = (counts @ tables[0]) / (counts @ tables[1])
    count = np.bincount(place, minlength=BINS)
    there = np.flatnonzero(count)
    said = np.bincount(place, scores, minlength=BINS)[there] / count[there]
    true = np.bincount(place, positive, minlength=BINS)[there] / count[there]
    ends = np.full((2, len(there)), np.nan)
    for number, each in enumerate(there):
        if (tables[1][:, each] > 0).sum() > 1:
            ends[:, number] = np.nanpercentile(drawn[:, each], _LEVEL)
    return said, true, ends[0], ends[1]
