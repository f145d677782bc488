"""McNemar's test: do two classifiers err on the same units?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from eval.statistics.predictions import Scored

_EXACT = 25  # discordant units below which the binomial takes the place of χ²


@dataclass(frozen=True)
class Discordance:
    """Units that only the second classifies correctly (better), that only the first does (worse), all; two-sided p."""

    better: int
    worse: int
    units: int
    p: float

    @property
    def gain(self) -> float:
        """Accuracy of the second minus that of the first."""
        return (self.better - self.worse) / max(self.units, 1)


def mcnemar(one: Scored, other: Scored) -> dict[str, Discordance]:
    """Return the test for every label, or for all classes together as `all`.

    Slices of one patient are not independent: the statistic is (Σ d)² / Σ d² over patients, d being a patient's better
    minus worse units, which is McNemar's own where every patient has one unit.
    Raises ValueError where the two rest on different units.
    """
    if not np.array_equal(np.sort(one.keys), np.sort(other.keys)):
        raise ValueError("the two probes rest on different units; run both on the same data and task")
    order, theirs = np.argsort(one.keys), np.argsort(other.keys)
    first, second, known = right(one)[order], right(other)[theirs], ~np.isnan(one.targets[order])
    names = one.names if first.shape[1] > 1 else ("all",)
    subjects = one.subjects[order]
    return {
        name: _test(first[mine, column], second[mine, column], subjects[mine])
        for column, name in enumerate(names)
        for mine in [known[:, column]]
    }


def right(prediction: Scored) -> np.ndarray:
    """Return (M, T) whether the first fit is right: by the likeliest class, or a label's probability above one half."""
    scores = prediction.scores[0]
    if prediction.kind == "multiclass":
        return scores.argmax(axis=1)[:, None] == prediction.targets
    return (scores > 0.5) == (prediction.targets > 0)


def _test(first: np.ndarray, second: np.ndarray, subjects: np.ndarray) -> Discordance:
    better, worse = second & ~first, first & ~second
    patients, which = np.unique(subjects, return_inverse=True)
    lead = np.bincount(which, better.astype(float) - worse, minlength=len(patients))
    gained, lost = int(better.sum()), int(worse.sum())
    alone = len(patients) == len(subjects)
    if not (lead**2).sum():
        p = 1.0
    elif alone and gained + lost < _EXACT:
        p = float(stats.binomtest(gained, gained + lost).pvalue)
    else:
        p = float(stats.chi2.sf(lead.sum() ** 2 / (lead**2).sum(), 1))
    return Discordance(gained, lost, len(subjects), p)
