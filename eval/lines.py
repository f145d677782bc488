"""Several logistic regressions for one figure: drawn again and again, so that its interval holds chance, too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.config import TaskConfig
from eval.contract import Outcome, prediction_of
from eval.data.cohorts import Cohort
from eval.probes.logistic import Line


@dataclass(frozen=True)
class Lines:
    """lines[point]: one line over all labels for each draw; `axis` names what the points are (shots, percent)."""

    axis: str
    lines: dict[float, list[Line]]
    task: TaskConfig
    choices: dict
    refitted: bool = False

    def predict(self, test: Cohort) -> list[Outcome]:
        inputs, exclusive = test.pooled(), self.task.kind == "multiclass"
        return [
            Outcome(
                prediction_of(np.stack([line.probabilities(inputs, exclusive) for line in lines]), test, self.task),
                {self.axis: point},
            )
            for point, lines in self.lines.items()
        ]
