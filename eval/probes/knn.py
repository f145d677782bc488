"""k nearest neighbours on frozen features, for labels, some of them unknown, or for values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.config import TaskConfig
from eval.contract import Choices, Context, Outcome, Parts, prediction_of, score
from eval.data.cohorts import Cohort

_QUERIES = 1024  # at a time


@dataclass(frozen=True)
class FittedKnn:
    """The training units that vote: features (N, D), what they vote for (N, O), NaN where unknown; and the k that
    validation patients chose."""

    features: np.ndarray
    wanted: np.ndarray
    task: TaskConfig
    choices: Choices
    refitted: bool = False

    def predict(self, test: Cohort) -> list[Outcome]:
        k = self.choices["k"]
        found = _predicted(self.features, self.wanted, test, [k], self.task)
        return [Outcome(prediction_of(found[k], test, self.task))]


def fit(train: Cohort, val: Cohort, context: Context) -> FittedKnn:
    """Choose the best k on the validation patients."""
    task = context.task
    found = predict(train, val, task.knn.k, task)
    scores = {k: score(each, val, task) for k, each in found.items()}
    best = max(scores, key=scores.__getitem__)
    voters = train.plus(val) if task.refit else train
    return FittedKnn(voters.pooled(), _wanted(voters, task), task, {"k": best}, task.refit)


def parts(fitted: FittedKnn) -> Parts:
    """Return what is kept of it: all training units."""
    return Parts({"features": fitted.features, "wanted": fitted.wanted})


def restore(kept: Parts, context: Context) -> FittedKnn:
    """Return what `parts` took apart."""
    return FittedKnn(kept.arrays["features"], kept.arrays["wanted"], context.task, kept.choices, kept.refitted)


def predict(train: Cohort, cohort: Cohort, ks: Sequence[int], task: TaskConfig) -> dict[int, np.ndarray]:
    """Return for each k the (U, O) share of votes, or (U, T) mean values where the task is a regression."""
    return _predicted(train.pooled(), _wanted(train, task), cohort, ks, task)


def _wanted(train: Cohort, task: TaskConfig) -> np.ndarray:
    """Return what each training unit votes for, (N, O), NaN where unknown."""
    return train.targets if task.kind == "regression" else np.where(train.states >= 0, train.states, np.nan)


def _predicted(
    features: np.ndarray, wanted: np.ndarray, cohort: Cohort, ks: Sequence[int], task: TaskConfig
) -> dict[int, np.ndarray]:
    found = votes(features, wanted, cohort.pooled(), ks, task.knn.temperature)
    if task.kind in ("multiclass", "retrieval"):
        found = {k: each / np.maximum(each.sum(axis=1, keepdims=True), 1e-12) for k, each in found.items()}
    return found


def votes(
    train: np.ndarray, wanted: np.ndarray, queries: np.ndarray, ks: Sequence[int], temperature: float
) -> dict[int, np.ndarray]:
    """Return for each k the (M, O) weighted mean of `wanted` over the k nearest training units by cosine.

    train (N, D), wanted (N, O) with NaN where unknown, queries (M, D). A neighbour weighs exp(cosine / temperature); a
    unit whose label is unknown has no vote on that label. Where no training unit has a known label: 0.5.
    """
    found = {k: np.full((len(queries), wanted.shape[1]), 0.5) for k in ks}
    known = ~np.isnan(wanted)
    patterns, which = np.unique(known, axis=1, return_inverse=True)  # labels with the same neighbours
    unit = _unit(train)
    for start in range(0, len(queries), _QUERIES):
        rows = np.arange(start, min(start + _QUERIES, len(queries)))[:, None]
        similarity = _unit(queries[rows[:, 0]]) @ unit.T
        for pattern in range(patterns.shape[1]):
            columns, there = np.flatnonzero(which.ravel() == pattern), np.flatnonzero(patterns[:, pattern])
            if len(there):
                mine = similarity if len(there) == len(train) else similarity[:, there]
                nearest, weights = _nearest(mine, min(max(ks), len(there)), temperature)
                held = wanted[np.ix_(there, columns)][nearest]  # (m, k, labels)
                total, weight = np.cumsum(held * weights[:, :, None], axis=1), np.cumsum(weights, axis=1)
                for k in ks:
                    last = min(k, len(there)) - 1
                    found[k][rows, columns] = total[:, last] / weight[:, last, None]
    return found


def _nearest(similarity: np.ndarray, count: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the `count` most similar, nearest first, and their weights (largest 1)."""
    some = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    close = np.take_along_axis(similarity, some, axis=1)
    order = np.argsort(-close, axis=1, kind="stable")
    close = np.take_along_axis(close, order, axis=1).astype(np.float64)
    return np.take_along_axis(some, order, axis=1), np.exp((close - close[:, :1]) / temperature)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
