"""What a probe is: what it is given, what it gives back, and how validation patients choose.

`fit` sees training and validation patients only; the runner calls `predict` once, after every probe of the run is
fitted, with the test patients. So nothing can be chosen on them.

A new probe is a function `fit(train, val, context) -> Fitted`, a row of eval.probes.registry.PROBES and, where it has
settings, a dataclass in eval/config.py and a field of TaskConfig with the probe's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from eval.config import Kind, Level, TaskConfig
from eval.data.cohorts import Cohort
from eval.encoders.encoder import FrozenEncoder
from eval.statistics import metrics
from eval.statistics.predictions import DEFAULT, LOWER_IS_BETTER, ON_REQUEST, Prediction, Scored

# what a probe reads: cls token and mean patch; patch features too; pixels and no features
Needs = Literal["pooled", "patches", "images"]
Choices = dict[str, Any]  # JSON


@dataclass(frozen=True)
class Context:
    """What a probe may use besides its examples: the task, the encoder, and a folder for what is slow to make again."""

    task: TaskConfig
    encoder: FrozenEncoder
    cache: Path


@dataclass(frozen=True)
class Outcome:
    """One prediction of the test examples; `variant` tells those of one probe apart, e.g. {"shots": 4}; {} for one."""

    prediction: Prediction
    variant: dict[str, Any] = field(default_factory=dict)


class Fitted(Protocol):
    """A fitted probe.

    choices   what validation patients chose, for the row of results
    refitted  whether the final fit saw the validation patients too
    """

    @property
    def choices(self) -> Choices: ...

    @property
    def refitted(self) -> bool: ...

    def predict(self, test: Cohort) -> Sequence[Outcome]:
        """Predictions of the test patients."""


@runtime_checkable
class Drawing(Protocol):
    """A fitted probe that draws structures, for the report's pictures."""

    def draw(self, cohort: Cohort, rows: np.ndarray) -> np.ndarray:
        """(n, R, R) uint8 of slices `rows`: the structure's place in `names` plus 1, 0 for none, on the square that the
        encoder sees."""


@dataclass(frozen=True)
class Parts:
    """What a fitted probe is made of, as it is kept on the disk: arrays, and JSON. Nothing of it is executed.

    arrays     by name
    plain      whatever else it takes to put the probe together again, JSON
    choices, refitted  those of the fitted probe
    """

    arrays: Mapping[str, np.ndarray]
    plain: Mapping[str, Any] = field(default_factory=dict)
    choices: Choices = field(default_factory=dict)
    refitted: bool = False


@dataclass(frozen=True)
class Keeping:
    """How a fitted probe is kept.

    parts    fitted probe → its Parts
    restore  (parts, context) → the fitted probe, which predicts what it predicted before
    """

    parts: Callable[[Any], Parts]
    restore: Callable[[Parts, Context], Fitted]


@dataclass(frozen=True)
class Probe:
    """One row of the registry.

    kinds   of task that it serves
    needs   what it reads, or a function of the task that says so
    fit     (train, val, context) → Fitted
    blocks  (task, depth) → the blocks, counted from 0 or negative from the end, whose patch features it reads; None:
            those of the task
    levels  that it serves
    refits  False where `refit` would change the question that it asks
    keeping  how its fitted head is kept for new patients; text: why it is not
    lacks    encoder → why it cannot be asked this, "" where it can; None: every encoder can
    """

    name: str
    kinds: tuple[Kind, ...]
    needs: Needs | Callable[[TaskConfig], Needs]
    fit: Callable[[Cohort, Cohort, Context], Fitted]
    keeping: Keeping | str
    blocks: Callable[[TaskConfig, int], tuple[int, ...]] | None = None
    levels: tuple[Level, ...] = ("slice", "volume")
    refits: bool = True
    lacks: Callable[[FrozenEncoder], str] | None = None

    def reads(self, task: TaskConfig) -> Needs:
        """Return what the probe reads for this task."""
        return self.needs(task) if callable(self.needs) else self.needs


def prediction_of(scores: np.ndarray, cohort: Cohort, task: TaskConfig) -> Scored:
    """Return the prediction of a cohort's units: (U, T) scores of one fit, or (D, U, T) of several."""
    scores = scores if scores.ndim == 3 else scores[None]
    kind = "multilabel" if task.kind == "segmentation" else task.kind
    return Scored(kind, scores, cohort.targets, cohort.subjects, cohort.keys, cohort.names)


def score(scores: np.ndarray, val: Cohort, task: TaskConfig) -> float:
    """Return how good (U, T) scores of the validation patients are by `chooser`, averaged over labels.

    Higher is better, whatever the metric; −inf where it cannot be computed (a class is missing in all patients).
    """
    prediction, metric = prediction_of(scores, val, task), chooser(task)
    patients = np.unique(prediction.subjects)
    found = prediction.figures(metric, np.ones((1, len(patients))), patients, np.zeros(1, np.int64))
    value = float(metrics.macro(metrics.macro(found)))
    if np.isnan(value):
        return -np.inf
    return -value if metric in LOWER_IS_BETTER else value


def chooser(task: TaskConfig) -> str:
    """Return the metric by which validation patients choose: the task's first one that suits its kind, else the
    kind's."""
    kind = "multilabel" if task.kind == "segmentation" else task.kind
    known = (*DEFAULT[kind], *ON_REQUEST.get(kind, ()))
    return next((name for name in task.metrics if name in known), known[0])
