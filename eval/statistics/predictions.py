"""What a probe predicts for the test examples, in three forms, and the figures of each.

Every form has `subjects`, whose patients are resampled, and `figures(metric, counts, patients, draws)`: the figures of
one metric under R resamples. A probe that is fitted several times (few-shot draws, label fractions) keeps all of its
fits on the first axis of `scores` or `values`; resample r takes fit `draws[r]`, so that an interval holds both sources
of chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from eval.statistics import metrics
from eval.statistics.metrics import Weights

# the figures of each kind of task where the task names none; the first one is what validation patients choose by
DEFAULT = {
    "binary": ("auroc", "auprc", "balanced_accuracy", "f1", "mcc", "ece", "brier"),
    "multilabel": ("auroc", "auprc", "balanced_accuracy", "f1", "mcc", "ece", "brier"),
    "multiclass": ("auroc", "accuracy", "balanced_accuracy", "f1", "mcc", "ece", "brier"),
    "regression": ("mae", "rmse", "r2", "pearson"),
    "survival": ("c_index",),
    "anomaly": ("auroc", "auprc"),
    "segmentation": ("dice", "iou"),
    "retrieval": ("map", "recall@1", "recall@5", "recall@10"),
}
# given only where a task names them: of a rare label accuracy says nothing, but published tables have it
ON_REQUEST = {"binary": ("accuracy",), "multilabel": ("accuracy",)}
LOWER_IS_BETTER = ("mae", "rmse", "ece", "brier", "hd95")


Figures = Callable[
    ["Scored", np.ndarray, Weights], np.ndarray
]  # prediction, scores (M, T) of one fit, weights → (R, T)


class Resampled(Protocol):
    """What intervals and comparisons work on."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def subjects(self) -> np.ndarray: ...

    def figures(self, metric: str, counts: np.ndarray, patients: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Return (R, T) figures of every name, or (R, 1) of all together, under (R, patients) resampling counts.

        draws  (R,) which fit each resample takes
        """


class Prediction(Resampled, Protocol):
    """One of the three forms below."""

    def metrics(self) -> tuple[str, ...]:
        """Return the names of the figures that this prediction can give."""


@dataclass(frozen=True)
class Scored:
    """Scores of M slices or volumes.

    kind      binary, multilabel, multiclass, regression, survival or anomaly
    scores    (D, M, T): probabilities of each label or class (anomaly: any number), values, or risk; D fits
    targets   (M, T) as Examples.targets: NaN where unknown (multiclass (M, 1) class, survival (M, 2) time, event)
    subjects  (M,)
    keys      (M,) whose scores they are
    names     T labels or classes
    """

    kind: str
    scores: np.ndarray
    targets: np.ndarray
    subjects: np.ndarray
    keys: np.ndarray
    names: tuple[str, ...]

    def metrics(self) -> tuple[str, ...]:
        return (*DEFAULT[self.kind], *ON_REQUEST.get(self.kind, ()))

    def figures(self, metric: str, counts: np.ndarray, patients: np.ndarray, draws: np.ndarray) -> np.ndarray:
        owner, fits = np.searchsorted(patients, self.subjects), np.unique(draws)
        parts = [
            FIGURES[metric](self, self.scores[fit], Weights(counts[draws == fit].astype(np.float64), owner))
            for fit in fits
        ]
        found = np.full((len(draws), parts[0].shape[1]), np.nan)
        for fit, part in zip(fits, parts):
            found[draws == fit] = part
        return found

    def label(self, scores: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return for one label or class: the rows that are known (M,), their scores, whether they are positive."""
        if self.kind == "multiclass":
            known = ~np.isnan(self.targets[:, 0])
            return known, scores[known, column], self.targets[known, 0] == column
        known = ~np.isnan(self.targets[:, column])
        return known, scores[known, column], self.targets[known, column] > 0


@dataclass(frozen=True)
class Tabled:
    """Figures of K patients or queries, to be averaged: values[metric] (D, K, O), NaN where there is none.

    subjects (K,) their patients; names the O structures or ("all",).
    """

    values: dict[str, np.ndarray]
    subjects: np.ndarray
    names: tuple[str, ...]

    def metrics(self) -> tuple[str, ...]:
        return tuple(self.values)

    def figures(self, metric: str, counts: np.ndarray, patients: np.ndarray, draws: np.ndarray) -> np.ndarray:
        owner = np.searchsorted(patients, self.subjects)
        found = np.full((len(draws), len(self.names)), np.nan)
        for fit in np.unique(draws):
            table, mine = self.values[metric][fit], draws == fit
            weights = Weights(counts[mine].astype(np.float64), owner)
            for column in range(table.shape[1]):
                found[mine, column] = metrics.mean(table[:, column], weights)
        return found


@dataclass(frozen=True)
class Binned:
    """Scores of very many pixels as counts, bins ascending; subjects (patients,).

    positive, negative  (patients, B), or (D, patients, B) of several fits
    """

    metric: str
    positive: np.ndarray
    negative: np.ndarray
    subjects: np.ndarray
    names: tuple[str, ...] = ("all",)

    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def figures(self, metric: str, counts: np.ndarray, patients: np.ndarray, draws: np.ndarray) -> np.ndarray:
        weights = counts[:, np.searchsorted(patients, self.subjects)].astype(np.float64)
        positive, negative = (each if each.ndim == 3 else each[None] for each in (self.positive, self.negative))
        found = np.full((len(draws), 1), np.nan)
        for fit in np.unique(draws):
            mine = draws == fit
            figures = metrics.auroc_of_counts(weights[mine] @ positive[fit], weights[mine] @ negative[fit])
            found[mine, 0] = figures
        return found


def _ranked(function: Callable[[np.ndarray, np.ndarray, Weights], np.ndarray]) -> Figures:
    """Return a metric of scores and a yes or no, for every label."""

    def figures(prediction: Scored, scores: np.ndarray, weights: Weights) -> np.ndarray:
        columns = []
        for column in range(scores.shape[1]):
            known, mine, positive = prediction.label(scores, column)
            columns.append(function(mine, positive, weights.take(known)))
        return np.stack(columns, axis=1)

    return figures


def _decided(function: Callable[[np.ndarray], np.ndarray], counts_half: bool = False) -> Figures:
    """Return a metric of a confusion table: of all classes together, or of every label above 0.5.

    counts_half  a probability of 0.5 itself is a yes for each of several labels, as in MedMNIST's getACC
    """

    def figures(prediction: Scored, scores: np.ndarray, weights: Weights) -> np.ndarray:
        if prediction.kind == "multiclass":
            known = ~np.isnan(prediction.targets[:, 0])
            true = prediction.targets[known, 0].astype(np.int64)
            table = metrics.confusion(scores[known].argmax(axis=1), true, scores.shape[1], weights.take(known))
            found = function(table)
            return found if found.ndim == 2 else found[:, None]
        columns = []
        for column in range(scores.shape[1]):
            known, mine, positive = prediction.label(scores, column)
            yes = mine >= 0.5 if counts_half and prediction.kind == "multilabel" else mine > 0.5
            table = metrics.confusion(yes.astype(np.int64), positive.astype(np.int64), 2, weights.take(known))
            found = function(table)
            columns.append(found[:, 1] if found.ndim == 2 else found)  # F1 of the positive class
        return np.stack(columns, axis=1)

    return figures


def _ece(prediction: Scored, scores: np.ndarray, weights: Weights) -> np.ndarray:
    if prediction.kind == "multiclass":
        known = ~np.isnan(prediction.targets[:, 0])
        right = scores[known].argmax(axis=1) == prediction.targets[known, 0]
        return metrics.ece(scores[known].max(axis=1), right, weights.take(known))[:, None]
    return _ranked(metrics.ece)(prediction, scores, weights)


def _brier(prediction: Scored, scores: np.ndarray, weights: Weights) -> np.ndarray:
    if prediction.kind == "multiclass":
        known = ~np.isnan(prediction.targets[:, 0])
        one_hot = prediction.targets[known] == np.arange(scores.shape[1])
        return metrics.mean(((scores[known] - one_hot) ** 2).sum(axis=1), weights.take(known))[:, None]
    return _ranked(lambda mine, positive, w: metrics.mean((mine - positive) ** 2, w))(prediction, scores, weights)


def _valued(function: Callable[[np.ndarray, np.ndarray, Weights], np.ndarray]) -> Figures:
    """Return a metric of predicted and true values, for every column."""

    def figures(prediction: Scored, scores: np.ndarray, weights: Weights) -> np.ndarray:
        columns = []
        for column in range(scores.shape[1]):
            known = ~np.isnan(prediction.targets[:, column])
            columns.append(function(scores[known, column], prediction.targets[known, column], weights.take(known)))
        return np.stack(columns, axis=1)

    return figures


def _c_index(prediction: Scored, scores: np.ndarray, weights: Weights) -> np.ndarray:
    known = ~np.isnan(prediction.targets).any(axis=1)
    time, event = prediction.targets[known].T
    return metrics.c_index(scores[known, 0], time, event > 0, weights.take(known))[:, None]


FIGURES: dict[str, Figures] = {
    "auroc": _ranked(metrics.auroc),
    "auprc": _ranked(metrics.auprc),
    "accuracy": _decided(metrics.accuracy, counts_half=True),
    "balanced_accuracy": _decided(metrics.balanced_accuracy),
    "f1": _decided(metrics.f1),
    "mcc": _decided(metrics.mcc),
    "ece": _ece,
    "brier": _brier,
    "mae": _valued(lambda predicted, true, w: metrics.mean(np.abs(predicted - true), w)),
    "rmse": _valued(lambda predicted, true, w: np.sqrt(metrics.mean((predicted - true) ** 2, w))),
    "r2": _valued(metrics.r_squared),
    "pearson": _valued(metrics.pearson),
    "c_index": _c_index,
}
