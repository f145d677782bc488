"""A U-Net from scratch."""

from __future__ import annotations

from eval import scratch
from eval.data.cohorts import Part
from eval.probes import Context

KINDS = ("segmentation",)
NEEDS = "images"


def fit(train: Part, val: Part, context: Context):
    """See scratch.fit."""
    return scratch.fit(train, val, context, "unet", context.task.unet)
