"""A residual CNN from scratch, for labels and values."""

from __future__ import annotations

from eval import scratch
from eval.contract import Context
from eval.data.cohorts import Cohort
from eval.networks.targets import KINDS

__all__ = ["KINDS", "NEEDS", "fit"]
NEEDS = "images"


def fit(train: Cohort, val: Cohort, context: Context):
    """See scratch.fit."""
    return scratch.fit(train, val, context, "cnn", context.task.cnn)
