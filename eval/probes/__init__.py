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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from eval.config import TaskConfig
from eval.data.cohorts import Part
from eval.encoders.encoder import FrozenEncoder
from eval.statistics import metrics
from eval.statistics.predictions import DEFAULT, LOWER_IS_BETTER, Prediction, Scored
from meddap.settings import SettingsError

PROBES = {
    "knn": "eval.probes.knn",
    "logistic": "eval.probes.logistic",
    "linear": "eval.probes.linear",
    "attentive": "eval.probes.attentive",
    "mil": "eval.probes.mil",
    "few_shot": "eval.probes.few_shot",
    "fractions": "eval.probes.fractions",
    "region": "eval.probes.region",
    "retrieval": "eval.probes.retrieval",
    "anomaly": "eval.probes.anomaly",
    "ridge": "eval.probes.ridge",
    "cox": "eval.probes.cox",
    "segmentation": "eval.probes.segmentation",
    "primus": "eval.probes.primus",
    "unet_decoder": "eval.probes.unet_decoder",
    "patch_knn": "eval.probes.patch_knn",
    "stack3d": "eval.probes.stack3d",
    "lora": "eval.probes.lora",
    "bitfit": "eval.probes.bitfit",
    "finetune": "eval.probes.finetune",
    "unet": "eval.probes.unet",
    "transunet": "eval.probes.transunet",
    "cnn": "eval.probes.cnn",
    "subsets": "eval.probes.subsets",
}


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
    A probe that draws structures may have `draw(part, rows) -> (n, R, R) uint8`, the place of the structure in `names`
    plus 1, 0 for none, on the square that the encoder sees: for the report's pictures.
    """

    choices: dict[str, object]
    refitted: bool

    def predict(self, test: Part) -> Sequence[Outcome]:
        """Predictions of the test patients."""


def find(names: Sequence[str], kind: str, level: str, refit: bool = False) -> dict[str, ModuleType]:
    """The modules of some probes. Raises SettingsError for one that is not there or does not serve such a task."""
    if strange := sorted(set(names) - set(PROBES)):
        raise SettingsError(f"probes: {', '.join(strange)}: no such probe; there are {', '.join(PROBES)}")
    modules = {name: import_module(PROBES[name]) for name in names}
    for name, module in modules.items():
        if kind not in module.KINDS:
            raise SettingsError(f"probes: {name} serves tasks of kind {', '.join(module.KINDS)}; this one is {kind}")
        if level not in (levels := getattr(module, "LEVELS", ("slice", "volume"))):
            raise SettingsError(f"probes: {name} serves level {' and '.join(levels)}; this task's is {level}")
        if refit and not getattr(module, "REFITS", True):
            raise SettingsError(f"refit=true: {name} asks what few training labels give; drop that probe, or refit")
    return modules


def needs(module: ModuleType, task: TaskConfig) -> str:
    """What a probe reads for this task: its NEEDS, which may be a function of the task."""
    return module.NEEDS(task) if callable(module.NEEDS) else module.NEEDS


def blocks(modules: Iterable[ModuleType], task: TaskConfig, depth: int) -> tuple[int, ...]:
    """Blocks, counted from 0, whose patch features some of the probes read."""
    wanted = {depth - 1, *(number % depth for number in task.blocks)}
    for module in modules:
        if needs(module, task) == "patches" and hasattr(module, "blocks"):
            wanted |= {number % depth for number in module.blocks(task, depth)}
    return tuple(sorted(wanted))


def scored(scores: np.ndarray, part: Part, task: TaskConfig) -> Scored:
    """A prediction of a part's units from (U, T) or (D, U, T) scores."""
    scores = scores if scores.ndim == 3 else scores[None]
    kind = "multilabel" if task.kind == "segmentation" else task.kind
    return Scored(kind, scores, part.targets, part.subjects, part.keys, part.names)


def merit(prediction: Prediction, metric: str) -> float:
    """How good a prediction is by one metric, averaged over labels and fits, higher is better: for validation.

    −inf where it has no figure (a class is missing in all patients).
    """
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
