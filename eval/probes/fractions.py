"""How much labels are worth: logistic regression on a share of the training patients, from 1 to 100 %."""

from __future__ import annotations

import numpy as np

from eval.contract import Context
from eval.data.cohorts import Cohort
from eval.lines import Lines
from eval.probes import logistic

KINDS = ("binary", "multiclass", "multilabel", "segmentation")
NEEDS = "pooled"
REFITS = False  # its figures are those of a number of training labels
_STRENGTHS = 7  # of the 45: enough to choose by, and there are many fits


def fit(train: Cohort, val: Cohort, context: Context) -> Lines:
    """For each share and draw the strength that serves the validation patients best."""
    task, config = context.task, context.task.fractions
    patients, lines, chosen = np.unique(train.subjects), {}, {}
    for percent in config.percent:
        draws = 1 if percent >= 100 else config.draws
        fitted = []
        for number in range(draws):
            mine = drawn(patients, percent, np.random.default_rng((task.seed, number)))
            some = train.only(np.flatnonzero(np.isin(train.subjects, mine)))
            fitted.append(logistic.choose(some, val, task, _STRENGTHS))
        lines[percent] = [line for _, line in fitted]
        chosen[f"{percent:g} %"] = [strength for strength, _ in fitted]
    return Lines("percent", lines, task, {"C": chosen})


def drawn(patients: np.ndarray, percent: float, generator: np.random.Generator) -> np.ndarray:
    """A share of the patients, two at least; a larger share of the same draw holds the smaller one."""
    count = min(len(patients), max(2, round(len(patients) * percent / 100)))
    return generator.permutation(patients)[:count]
