"""The Primus decoder on frozen patch features of several blocks: multi-scale token aggregation."""

from __future__ import annotations

from eval.config import TaskConfig
from eval.contract import Context
from eval.data.cohorts import Cohort
from eval.networks import frozen_decoder
from eval.networks.segmentation import FittedSegmenter

KINDS = ("segmentation",)
NEEDS = "patches"


def blocks(task: TaskConfig, depth: int) -> tuple[int, ...]:
    """The ends of the quarters, where the probe names none."""
    return frozen_decoder.blocks_of(task.primus, depth)


def fit(train: Cohort, val: Cohort, context: Context) -> FittedSegmenter:
    """See frozen_decoder.fit."""
    task = context.task
    return frozen_decoder.fit(train, val, context, "primus", task.primus, blocks(task, context.encoder.depth))
