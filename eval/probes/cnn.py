"""A residual CNN from scratch, for labels and values."""

from __future__ import annotations

from eval import scratch
from eval.outputs import KINDS
from eval.parts import Part
from eval.probes import Context

__all__ = ["KINDS", "NEEDS", "fit"]
NEEDS = "images"


def fit(train: Part, val: Part, context: Context):
    """See scratch.fit."""
    return scratch.fit(train, val, context, "cnn", context.task.cnn)
