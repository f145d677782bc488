"""Holm's correction: p-values of several questions, so that one wrong yes among all of them is rare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def adjusted(p: Sequence[float]) -> np.ndarray:
    """Return Holm's adjusted p-values, in the order given; 1 for NaN, which still counts as a question."""
    values = np.nan_to_num(np.asarray(p, np.float64), nan=1.0)
    order = np.argsort(values, kind="stable")
    steps = np.minimum(values[order] * (len(values) - np.arange(len(values))), 1.0)
    found = np.empty(len(values))
    found[order] = np.maximum.accumulate(steps)
    return found
