"""What small trained heads share: their training, and the probabilities that they give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from eval.data.cohorts import Cohort
from eval.networks import targets, training
from eval.networks.targets import Outputs
from eval.networks.training import Hyperparameters

Batch = Callable[[np.ndarray], Sequence[torch.Tensor]]  # units → the arguments of a head


def train(
    head: nn.Module, batch: Batch, cohort: Cohort, *, lr: float, epochs: int, batch_size: int, weight_decay: float
) -> None:
    """Train a head on a cohort's units in place; it is in evaluation mode afterwards.

    Weight decay holds for every parameter: a head has few, and its biases are as free to overfit as its weights.
    """
    outputs = Outputs.of(cohort)

    def loss_of(units: np.ndarray, _: np.random.Generator) -> torch.Tensor:
        return outputs.loss(head(*batch(units)), cohort.targets[units])

    alike = {"lr_multiplier": 1.0, "wd_multiplier": 1.0, "is_last_layer": False}
    hyper = Hyperparameters(lr, epochs, batch_size, weight_decay, warmup=0.0, clip=math.inf, reaches_0=False)
    head.train()
    training.run([{"params": list(head.parameters()), **alike}], loss_of, len(cohort), hyper, cohort.base.task.seed)
    head.eval()


def probabilities(head: nn.Module, batch: Batch, cohort: Cohort, batch_size: int) -> np.ndarray:
    """Return (U, O) probabilities of a cohort's units."""
    starts, count = range(0, len(cohort), batch_size), len(cohort)
    with torch.inference_mode():
        logits = torch.cat([head(*batch(np.arange(at, min(at + batch_size, count)))) for at in starts])
    return targets.probabilities(logits, cohort.base.task.kind == "multiclass")
