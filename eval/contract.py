"""The probes: one module each, found by name in PROBES.

A probe is a module with

    KINDS        kinds of task that it serves (eval.config.TaskConfig.kind)
    LEVELS       levels that it serves, ("slice", "volume") where it is not there
    NEEDS        "pooled" (cls and mean patch), "patches" (patch features too) or "images" (pixels; no features), or a
                 function of the task that says so
    REFITS       False where `refit` would change what it asks, True where it is not there
    blocks       (task, depth) → the blocks whose patch features it reads; without it those of the task
    fit(train, val, context) -> Fitted

and, where it has settings, a dataclass in eval/config.py and a field of TaskConfig with the probe's name. `fit` sees
training and validation patients only; the runner calls `predict` once, after every probe of the run is fitted, with the
test patients. So nothing can be chosen on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from eval.config import TaskConfig
from eval.data.cohorts import Cohort
from eval.encoders.encoder import FrozenEncoder
from eval.statistics import metrics
from eval.statistics.predictions import DEFAULT, LOWER_IS_BETTER, Prediction, Scored


@dataclass(frozen=True)
class Context:
    """What a probe may use besides its examples: the task, the encoder (None where NEEDS is "images" and the probe is a
    network of its own), a folder for what is slow to make again."""

    task: TaskConfig
    encoder: FrozenEncoder | None
    cache: Path


@dataclass(frozen=True)
class Outcome:
    """One prediction of the test examples. variant tells those of one probe apart, e.g. {"shots": 4}; {} for one.

    default  whether its figures are those of the task's kind; else all that the prediction has are shown
    """

    prediction: Prediction
    variant: dict[str, object] = field(default_factory=dict)


class Fitted(Protocol):
    """A probe that has been fitted.

    choices  what validation patients chose, for the row of results; JSON
    refitted whether the final fit saw the validation patients too
    A probe that draws structures may have `draw(cohort, rows) -> (n, R, R) uint8` for the report's pictures: the
    structure's place in `names` plus 1, 0 for none, on the square that the encoder sees.
    """

    choices: dict[str, object]
    refitted: bool

    def predict(self, test: Cohort) -> Sequence[Outcome]:
        """Predictions of the test patients."""


def prediction_of(scores: np.ndarray, cohort: Cohort, task: TaskConfig) -> Scored:
    """A prediction of a cohort's units from (U, T) scores of one fit or (D, U, T) of several."""
    scores = scores if scores.ndim == 3 else scores[None]
    kind = "multilabel" if task.kind == "segmentation" else task.kind
    return Scored(kind, scores, cohort.targets, cohort.subjects, cohort.keys, cohort.names)


def score(scores: np.ndarray, val: Cohort, task: TaskConfig) -> float:
    """How well scores of the validation patients serve the task: higher is better, whatever the metric.

    The metric is the task's first one that suits its kind, else the kind's default; averaged over labels and fits. −inf
    where it cannot be computed (a class is missing in all patients).
    """
    prediction, metric = prediction_of(scores, val, task), chooser(task)
    patients = np.unique(prediction.subjects)
    found = prediction.figures(metric, np.ones((1, len(patients))), patients, np.zeros(1, np.int64))
    value = float(metrics.macro(metrics.macro(found)))
    if np.isnan(value):
        return -np.inf
    return -value if metric in LOWER_IS_BETTER else value


def chooser(task: TaskConfig) -> str:
    """The metric by which validation patients choose: the task's first one that suits, else that of its kind."""
    kind = "multilabel" if task.kind == "segmentation" else task.kind
    return next((name for name in task.metrics if name in DEFAULT[kind]), DEFAULT[kind][0])
