"""A light head in three dimensions over frozen features of neighbouring slices: structures, or labels of volumes."""

from __future__ import annotations

from eval.config import TaskConfig
from eval.contract import Context
from eval.data.cohorts import Cohort
from eval.networks import frozen_decoder, volume_head
from eval.networks.targets import KINDS

__all__ = ["KINDS", "NEEDS", "blocks", "fit"]
NEEDS = "patches"


def blocks(task: TaskConfig, depth: int) -> tuple[int, ...]:
    """The ends of the quarters, where the probe names none."""
    return frozen_decoder.blocks_of(task.stack3d, depth)


def fit(train: Cohort, val: Cohort, context: Context):
    """See stacking.fit."""
    return volume_head.fit(train, val, context, blocks(context.task, context.encoder.depth))
