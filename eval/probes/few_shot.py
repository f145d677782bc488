"""Few-shot: logistic regression on 1, 2, 4 … units of each class, over many stratified draws."""

from __future__ import annotations

import numpy as np

from eval.contract import Context
from eval.data.cohorts import Cohort
from eval.lines import Lines
from eval.probes.logistic import Line, Standard, solve
from meddap.settings import SettingsError

KINDS = ("binary", "multiclass", "multilabel", "segmentation")
NEEDS = "pooled"
REFITS = False  # its figures are those of a number of training labels
_MINIMUM = 10  # draws: fewer say little about chance


def fit(train: Cohort, val: Cohort, context: Context) -> Lines:
    """Every number of shots that the training patients allow. Raises SettingsError for too few draws."""
    task, config = context.task, context.task.few_shot
    if config.draws < _MINIMUM:
        raise SettingsError(f"few_shot.draws={config.draws}: take {_MINIMUM} or more, chance is large with few shots")
    features = train.pooled()
    standard = Standard.of(features)
    inputs, states, exclusive = standard.apply(features), train.states, task.kind == "multiclass"
    most = max_shots(states, exclusive)
    lines = {}
    for shots in (each for each in config.shots if each <= most):
        lines[shots] = [
            Line(standard, *solve(inputs[rows], drawn, config.strength, 100, exclusive))
            for rows, drawn in (
                draw(states, train.subjects, shots, exclusive, np.random.default_rng((task.seed, shots, number)))
                for number in range(config.draws)
            )
        ]
    if not lines:
        raise SettingsError(f"few_shot.shots: the rarest class has {most} training units; give smaller numbers")
    return Lines("shots", lines, task, {"C": config.strength, "draws": config.draws, "most_shots": most})


def max_shots(states: np.ndarray, exclusive: bool) -> int:
    """Units of the rarest class (of labels: of the rarest of yes and no, labels without both left out)."""
    if exclusive:
        return int((states == 1).sum(axis=0).min())
    both = [min((column == 1).sum(), (column == 0).sum()) for column in states.T]
    return int(min((each for each in both if each), default=0))


def draw(
    states: np.ndarray, subjects: np.ndarray, shots: int, exclusive: bool, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are drawn, and their (n, O) states with −1 wherever a row was not drawn for a label.

    Of each class (of each label: of yes and of no) `shots` units, of as many different patients as there are.
    """
    chosen = np.full(states.shape, -1, np.int8)
    for label in range(states.shape[1]):
        for state in (1,) if exclusive else (1, 0):
            mine = generator.permutation(np.flatnonzero(states[:, label] == state))
            if len(mine) >= shots:
                rows = mine[np.argsort(_repeats(subjects[mine]), kind="stable")[:shots]]
                if exclusive:
                    chosen[rows] = states[rows]
                else:
                    chosen[rows, label] = state
    rows = np.flatnonzero((chosen >= 0).any(axis=1))
    return rows, chosen[rows]


def _repeats(subjects: np.ndarray) -> np.ndarray:
    """How often each unit's patient came before it: 0 for the first unit of a patient, 1 for the second …"""
    found, seen = np.empty(len(subjects), np.int64), {}
    for place, subject in enumerate(subjects.tolist()):
        found[place] = seen.get(subject, 0)
        seen[subject] = found[place] + 1
    return found
