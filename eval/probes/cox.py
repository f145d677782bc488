"""Survival: Cox's proportional hazards (Breslow's ties, ridge penalty) on principal components of frozen features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from eval.config import TaskConfig
from eval.contract import Choices, Context, Outcome, Parts, prediction_of, score
from eval.data.cohorts import Cohort
from eval.probes.logistic import Standard
from meddap.settings import SettingsError


@dataclass(frozen=True)
class Hazard:
    """log hazard = components of the standardised features · weights."""

    standard: Standard
    axes: np.ndarray
    weights: np.ndarray
    task: TaskConfig
    choices: Choices
    refitted: bool

    def predict(self, test: Cohort) -> list[Outcome]:
        return [Outcome(prediction_of(self.risk(test.pooled()), test, self.task))]

    def risk(self, features: np.ndarray) -> np.ndarray:
        """Return (U, 1) log hazards of (U, D) features."""
        return (self.standard.apply(features) @ self.axes @ self.weights)[:, None].astype(np.float64)


def fit(train: Cohort, val: Cohort, context: Context) -> Hazard:
    """Choose the number of components and the penalty on the validation patients.

    With `refit` that choice is fitted again on training and validation patients. Raises SettingsError where the
    training patients had fewer than two events.
    """
    task, inputs = context.task, val.pooled()
    candidates = _fitted(train, task, list(product(task.cox.components, task.cox.penalties)), False)
    best = max(candidates, key=lambda each: score(each.risk(inputs), val, task))
    if task.refit:
        return next(_fitted(train.plus(val), task, [(best.choices["components"], best.choices["penalty"])], True))
    return best


def parts(fitted: Hazard) -> Parts:
    """Return what is kept of it: components, their weights and the standardisation before them."""
    return Parts({**fitted.standard.arrays(), "axes": fitted.axes, "weights": fitted.weights})


def restore(kept: Parts, context: Context) -> Hazard:
    """Return what `parts` took apart."""
    axes, weights = kept.arrays["axes"], kept.arrays["weights"]
    return Hazard(Standard.kept(kept.arrays), axes, weights, context.task, kept.choices, kept.refitted)


def _fitted(cohort: Cohort, task: TaskConfig, choices: list[tuple[int, float]], refitted: bool) -> Iterator[Hazard]:
    """Yield a line for each number of components and penalty."""
    known = ~np.isnan(cohort.targets).any(axis=1)
    time, event = cohort.targets[known].T
    if event.sum() < 2:
        raise SettingsError(f"{task.data}: {int(event.sum())} events among the training patients; survival needs two")
    standard = Standard.of(cohort.pooled())
    inputs = standard.apply(cohort.pooled())[known]
    axes = np.linalg.svd(inputs - inputs.mean(axis=0), full_matrices=False)[2].T
    for components, penalty in choices:
        mine = axes[:, :components]
        weights = hazard(inputs @ mine, time, event > 0, penalty)
        yield Hazard(standard, mine, weights, task, {"components": components, "penalty": penalty}, refitted)


def hazard(inputs: np.ndarray, time: np.ndarray, event: np.ndarray, penalty: float, steps: int = 50) -> np.ndarray:
    """Return (D,) weights: Breslow's partial likelihood per unit − penalty / 2 · |w|² maximised by Newton's method."""
    order = np.argsort(-time, kind="stable")
    inputs, time, event = inputs[order].astype(np.float64), time[order], event[order]
    # for each unit, the last one in falling order of time that is still at risk, units of its own time included
    last = np.searchsorted(-time, -time, side="right") - 1
    count, width = inputs.shape
    weights = np.zeros(width)

    def parts(weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        line = inputs @ weights
        share = np.exp(line - line.max())
        total = np.cumsum(share)[last]
        first = np.cumsum(share[:, None] * inputs, axis=0)[last] / total[:, None]
        second = np.cumsum(share[:, None, None] * inputs[:, :, None] * inputs[:, None], axis=0)[last]
        spread = second / total[:, None, None] - first[:, :, None] * first[:, None]
        likelihood = (line - line.max() - np.log(total))[event].sum() / count - penalty / 2 * weights @ weights
        gradient = (inputs - first)[event].sum(axis=0) / count - penalty * weights
        curvature = spread[event].sum(axis=0) / count + penalty * np.eye(width)
        return likelihood, gradient, curvature

    likelihood, gradient, curvature = parts(weights)
    for _ in range(steps):
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while size > 1e-6 and parts(weights + size * step)[0] < likelihood:
            size /= 2
        weights = weights + size * step
        likelihood, gradient, curvature = parts(weights)
        if np.abs(gradient).max() < 1e-9:
            break
    return weights
