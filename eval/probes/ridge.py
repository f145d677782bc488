"""Ridge regression on frozen features: scikit-learn's Ridge, over many strengths from one decomposition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.config import TaskConfig
from eval.contract import Choices, Context, Outcome, Parts, prediction_of, score
from eval.data.cohorts import Cohort
from eval.probes.logistic import Standard
from meddap.settings import SettingsError


@dataclass(frozen=True)
class Ridge:
    """Weights (D, T) and intercepts (T,) on standardised features."""

    standard: Standard
    weights: np.ndarray
    intercepts: np.ndarray
    task: TaskConfig
    choices: Choices
    refitted: bool

    def predict(self, test: Cohort) -> list[Outcome]:
        found = self.standard.apply(test.pooled()) @ self.weights + self.intercepts
        return [Outcome(prediction_of(found.astype(np.float64), test, self.task))]


def fit(train: Cohort, val: Cohort, context: Context) -> Ridge:
    """Choose the best strength on the validation patients."""
    task = context.task
    standard = Standard.of(train.pooled())
    inputs, tests = standard.apply(train.pooled()), standard.apply(val.pooled())
    found = solutions(inputs, train.targets, task.ridge.strengths, task.data)
    alpha, weights, intercepts = max(found, key=lambda one: score(tests @ one[1] + one[2], val, task))
    if task.refit:
        both = train.plus(val)
        standard = Standard.of(both.pooled())
        ((_, weights, intercepts),) = solutions(standard.apply(both.pooled()), both.targets, [alpha], task.data)
    return Ridge(standard, weights, intercepts, task, {"alpha": alpha}, task.refit)


def parts(fitted: Ridge) -> Parts:
    """Return what is kept of it: the line and the standardisation before it."""
    return Parts({**fitted.standard.arrays(), "weights": fitted.weights, "intercepts": fitted.intercepts})


def restore(kept: Parts, context: Context) -> Ridge:
    """Return what `parts` took apart."""
    weights, intercepts = kept.arrays["weights"], kept.arrays["intercepts"]
    return Ridge(Standard.kept(kept.arrays), weights, intercepts, context.task, kept.choices, kept.refitted)


def solutions(
    inputs: np.ndarray, targets: np.ndarray, strengths: list[float], where: str
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Return (alpha, weights (D, T), intercepts (T,)) for each strength.

    Each target is fitted on the units where it is known; the intercept is not penalised.
    """
    found = [(alpha, np.empty((inputs.shape[1], targets.shape[1])), np.empty(targets.shape[1])) for alpha in strengths]
    for column in range(targets.shape[1]):
        known = ~np.isnan(targets[:, column])
        if known.sum() < 2:
            raise SettingsError(f"{where}: {known.sum()} training units have a value; a regression needs two")
        features, values = inputs[known].astype(np.float64), targets[known, column]
        centre, middle = features.mean(axis=0), values.mean()
        left, singular, right = np.linalg.svd(features - centre, full_matrices=False)
        projected = left.T @ (values - middle)
        for alpha, weights, intercepts in found:
            weights[:, column] = right.T @ (singular / (singular**2 + alpha) * projected)
            intercepts[column] = middle - centre @ weights[:, column]
    return found
