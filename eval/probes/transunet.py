"""A TransUNet-like hybrid of convolutions and a transformer, from scratch."""

from __future__ import annotations

from eval import scratch
from eval.data.cohorts import Part
from eval.probes import Context

KINDS = ("segmentation",)
NEEDS = "images"


def fit(train: Part, val: Part, context: Context):
    """See scratch.fit."""
    return scratch.fit(train, val, context, "transunet", context.task.transunet)
