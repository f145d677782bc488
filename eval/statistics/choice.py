"""The rule by which validation patients choose a milestone: largest lower bound of the paired gain over the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from eval.statistics.simultaneous import Together

_TIE = 1e-9


def rule(tasks: Sequence[str], main: str) -> str:
    """Return the rule in words."""
    bound = "lower bound of the paired gain over the start, which holds for all milestones at once (max-T, 95 %"
    if len(tasks) > 1 and not main:
        return (
            f"smallest mean rank over {len(tasks)} tasks of the {bound}, over tasks by Bonferroni), among milestones "
            "that gain on one task and lose on none; ties to the earliest; none such: the start"
        )
    by = f" on {main}" if len(tasks) > 1 else ""
    return f"largest {bound}){by}; ties to the earliest; none above zero: the start"


def choose(gains: Mapping[str, Together], main: str) -> tuple[int, int | None]:
    """Return the milestone that comes first by the rule, and the chosen one: the same, or None where it beats nothing.

    gains  task → K milestones' gains over the start, larger is better, in the order of training
    main   the task that decides alone; "": all of them, by mean rank
    """
    deciding = [gains[main]] if main else list(gains.values())
    gained = np.any([each.low > _TIE for each in deciding], axis=0)
    lost = np.any([each.high < -_TIE for each in deciding], axis=0)
    if len(deciding) == 1:
        scores = _rounded(deciding[0].low)
    else:
        scores = -np.mean([rankdata(-_rounded(each.low)) for each in deciding], axis=0)
    best = int(np.argmax(scores))  # the first of equal ones
    fit = gained & ~lost
    return best, (int(np.argmax(np.where(fit, scores, -np.inf))) if fit.any() else None)


def _rounded(low: np.ndarray) -> np.ndarray:
    """Return lower bounds, equal where they differ by rounding alone; an unknown one comes last."""
    return np.where(np.isnan(low), -np.inf, np.round(np.nan_to_num(low), 9))
