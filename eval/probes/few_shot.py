"""How many labels are needed: logistic regression on few units of each class, or on a share of the training patients.

Both are fitted on many draws, so that a figure's interval holds the chance of the draw, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.config import TaskConfig
from eval.contract import Choices, Context, Outcome, prediction_of
from eval.data.cohorts import Cohort
from eval.probes import logistic
from eval.probes.logistic import Line, Standard, solve
from meddap.settings import SettingsError

_MINIMUM = 10  # draws of few shots: fewer say little about chance
_STRENGTHS = 7  # of the 45 for a share of the patients: enough to choose by, and there are many fits


@dataclass(frozen=True)
class RepeatedLogistic:
    """lines[point]: one line over all labels per draw; `axis` names what the points are (shots, percent)."""

    axis: str
    lines: dict[float, list[Line]]
    task: TaskConfig
    choices: Choices
    refitted: bool = False

    def predict(self, test: Cohort) -> list[Outcome]:
        inputs, exclusive = test.pooled(), self.task.kind == "multiclass"
        found = []
        for point, lines in self.lines.items():
            scores = np.stack([line.probabilities(inputs, exclusive) for line in lines])
            found.append(Outcome(prediction_of(scores, test, self.task), {self.axis: point}))
        return found


def fit_shots(train: Cohort, val: Cohort, context: Context) -> RepeatedLogistic:
    """Fit on every number of units of each class that the training patients allow.

    Raises SettingsError for too few draws, or where no number is small enough.
    """
    task, config = context.task, context.task.few_shot
    if config.draws < _MINIMUM:
        raise SettingsError(f"few_shot.draws={config.draws}: take {_MINIMUM} or more, chance is large with few shots")
    features = train.pooled()
    standard = Standard.of(features)
    inputs, states, exclusive = standard.apply(features), train.states, task.kind == "multiclass"
    most = max_shots(states, exclusive)
    lines: dict[float, list[Line]] = {}
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
    choices = {"C": config.strength, "draws": config.draws, "most_shots": most}
    return RepeatedLogistic("shots", lines, task, choices)


def fit_fractions(train: Cohort, val: Cohort, context: Context) -> RepeatedLogistic:
    """Fit on shares of the training patients, 1 to 100 %: per draw the best strength on the validation patients."""
    task, config = context.task, context.task.fractions
    patients = np.unique(train.subjects)
    lines: dict[float, list[Line]] = {}
    chosen: dict[str, list[float]] = {}
    for percent in config.percent:
        draws = 1 if percent >= 100 else config.draws
        fitted = []
        for number in range(draws):
            mine = share_of(patients, percent, np.random.default_rng((task.seed, number)))
            some = train.only(np.flatnonzero(np.isin(train.subjects, mine)))
            fitted.append(logistic.choose(some, val, task, _STRENGTHS))
        lines[percent] = [line for _, line in fitted]
        chosen[f"{percent:g} %"] = [strength for strength, _ in fitted]
    return RepeatedLogistic("percent", lines, task, {"C": chosen})


def share_of(patients: np.ndarray, percent: float, generator: np.random.Generator) -> np.ndarray:
    """Draw a share of the patients, two at least; a larger share of the same draw holds the smaller one."""
    count = min(len(patients), max(2, round(len(patients) * percent / 100)))
    return generator.permutation(patients)[:count]


def max_shots(states: np.ndarray, exclusive: bool) -> int:
    """Return the number of units of the rarest class (of labels: of yes or no, labels without both left out)."""
    if exclusive:
        return int((states == 1).sum(axis=0).min())
    both = [min((column == 1).sum(), (column == 0).sum()) for column in states.T]
    return int(min((each for each in both if each), default=0))


def draw(
    states: np.ndarray, subjects: np.ndarray, shots: int, exclusive: bool, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `shots` units of each class (of labels: of yes and of no), from as many different patients as there are.

    Return the rows, and their (n, O) states with −1 wherever a row was not drawn for a label.
    """
    chosen = np.full(states.shape, -1, np.int8)
    for label in range(states.shape[1]):
        for state in (1,) if exclusive else (1, 0):
            mine = np.flatnonzero(states[:, label] == state)
            if len(mine) >= shots:
                rows = of_patients(mine, subjects, shots, generator)
                if exclusive:
                    chosen[rows] = states[rows]
                else:
                    chosen[rows, label] = state
    rows = np.flatnonzero((chosen >= 0).any(axis=1))
    return rows, chosen[rows]


def of_patients(rows: np.ndarray, subjects: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw `count` of some rows, from as many different patients as there are."""
    mine = generator.permutation(rows)
    return mine[np.argsort(_repeats(subjects[mine]), kind="stable")[:count]]


def _repeats(subjects: np.ndarray) -> np.ndarray:
    """Return how often each unit's patient came before it: 0 for a patient's first unit, 1 for the second …"""
    found = np.empty(len(subjects), np.int64)
    seen: dict[str, int] = {}
    for place, subject in enumerate(subjects.tolist()):
        found[place] = seen.get(subject, 0)
        seen[subject] = found[place] + 1
    return found
