"""A TransUNet-like hybrid of convolutions and a transformer, from scratch."""

from __future__ import annotations

from eval import scratch
from eval.contract import Context
from eval.data.cohorts import Cohort

KINDS = ("segmentation",)
NEEDS = "images"


def fit(train: Cohort, val: Cohort, context: Context):
    """See scratch.fit."""
    return scratch.fit(train, val, context, "transunet", context.task.transunet)
