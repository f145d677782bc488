"""The encoder's biases trained, with a head."""

from __future__ import annotations

from eval.config import TaskConfig
from eval.contract import Context
from eval.data.cohorts import Cohort
from eval.networks import tuning
from eval.networks.targets import KINDS

__all__ = ["KINDS", "NEEDS", "blocks", "fit"]
NEEDS = tuning.needs


def blocks(task: TaskConfig, depth: int) -> tuple[int, ...]:
    """Those of the frozen probe that it goes on from."""
    return tuning.blocks(task, task.bitfit.decoder, depth)


def fit(train: Cohort, val: Cohort, context: Context):
    """See tuning.fit."""
    return tuning.fit(train, val, context, "bitfit", context.task.bitfit)
