"""A light head in three dimensions over frozen features of neighbouring slices: structures, or labels of volumes."""

from __future__ import annotations

from eval import frozen_decoder, stacking
from eval.config import TaskConfig
from eval.outputs import KINDS
from eval.parts import Part
from eval.probes import Context

__all__ = ["KINDS", "NEEDS", "blocks", "fit"]
NEEDS = "patches"


def blocks(task: TaskConfig, depth: int) -> tuple[int, ...]:
    """The ends of the quarters, where the probe names none."""
    return frozen_decoder.blocks_of(task.stack3d, depth)


def fit(train: Part, val: Part, context: Context):
    """See stacking.fit."""
    return stacking.fit(train, val, context, blocks(context.task, context.encoder.depth))
