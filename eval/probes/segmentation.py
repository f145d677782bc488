"""A linear head on frozen patch features that draws finer than a patch (decoders.LinearDecoder)."""

from __future__ import annotations

from eval.config import TaskConfig
from eval.contract import Context
from eval.data.cohorts import Cohort
from eval.networks import frozen_decoder
from eval.networks.segmentation import FittedSegmenter

KINDS = ("segmentation",)
NEEDS = "patches"
LEVELS = ("slice",)


def blocks(task: TaskConfig, depth: int) -> tuple[int, ...]:
    """Those of the task, where the probe names none."""
    return tuple(number % depth for number in task.segmentation.blocks or task.blocks)


def fit(train: Cohort, val: Cohort, context: Context) -> FittedSegmenter:
    """See frozen_decoder.fit."""
    task = context.task
    return frozen_decoder.fit(train, val, context, "linear", task.segmentation, blocks(task, context.encoder.depth))
