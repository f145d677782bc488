"""Networks that are trained on images: one way to train, choose and score them, for structures and for labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from eval.config import NetworkConfig
from eval.contract import Context, Outcome, prediction_of
from eval.data.cohorts import Cohort
from eval.networks import segmentation, training
from eval.networks.augment import augment
from eval.networks.segmentation import FittedSegmenter
from eval.networks.targets import Outputs
from pretrain.runtime.device import autocast

_ROWS = 32  # images at a time where nothing is learned


@dataclass(frozen=True)
class Network:
    """A network before its training: what it is, how images in 0…1 become its input, what the optimizer sees."""

    network: nn.Module
    prepare: Callable[[torch.Tensor], torch.Tensor]
    groups: list[dict]
    device: torch.device

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Of images in 0…1, on any device."""
        inputs = self.prepare(images.to(self.device))
        with autocast("auto", self.device):
            return self.network(inputs).float()

    def of(self, cohort: Cohort, rows: np.ndarray) -> torch.Tensor:
        """Logits of some slices, nothing learned."""
        with torch.inference_mode():
            return self.logits(torch.from_numpy(cohort.images[rows]).float())

    def __call__(self, cohort: Cohort, rows: np.ndarray) -> torch.Tensor:
        """Draws (see volume_scores.Draw)."""
        return self.of(cohort, rows).sigmoid().cpu()


@dataclass(frozen=True)
class FittedClassifier:
    """A trained network that gives labels or values; a volume's are the mean over its slices."""

    made: Network
    outputs: Outputs
    context: Context
    choices: dict
    refitted: bool = False

    def scores(self, cohort: Cohort) -> np.ndarray:
        """(U, T)."""
        found = [
            self.outputs.scores(self.made.of(cohort, np.arange(start, min(start + _ROWS, len(cohort.rows)))))
            for start in range(0, len(cohort.rows), _ROWS)
        ]
        slices, unit = np.concatenate(found), cohort.unit
        total = np.zeros((len(cohort), slices.shape[1]))
        np.add.at(total, unit, slices)
        return total / np.bincount(unit, minlength=len(cohort))[:, None]

    def predict(self, test: Cohort) -> list[Outcome]:
        return [Outcome(prediction_of(self.scores(test), test, self.context.task))]


def fit(
    make: Callable[[Cohort], Network],
    train: Cohort,
    val: Cohort,
    context: Context,
    config: NetworkConfig,
    draws: bool,
    **told,
) -> FittedSegmenter | FittedClassifier:
    """A network per learning rate; validation patients choose one (and, where it draws, the thresholds).

    make   a fresh network for some training patients
    told   what the choices say of the network besides
    With `refit` the chosen one is trained again on both.
    """
    task, outputs = context.task, None if draws else Outputs.of(train)
    tried = ((lr, _train(make(train), train, config, lr, task.seed, outputs)) for lr in config.lr)
    if draws:
        lr, made, thresholds = segmentation.best(tried, val, task.drawing)
    else:
        lr, made = outputs.best(tried, lambda each: FittedClassifier(each, outputs, context, {}).scores(val), val)
    if task.refit:
        both = train.plus(val)
        made = _train(make(both), both, config, lr, task.seed, outputs)
    choices = {"lr": lr, **told}
    if not draws:
        return FittedClassifier(made, outputs, context, choices, task.refit)
    choices["thresholds"] = dict(zip(train.names, thresholds.tolist()))
    return FittedSegmenter(made, thresholds, task.drawing, choices, task.refit)


def _train(
    made: Network, train: Cohort, config: NetworkConfig, lr: float, seed: int, outputs: Outputs | None
) -> Network:
    examples, stored, side = train.examples, train.images, None
    if outputs is None:
        side = made.of(train, np.arange(1)).shape[-1]
    wanted = None if outputs is None else train.targets[train.unit]

    def loss_of(rows: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
        images = torch.from_numpy(stored[rows]).float()
        maps = None if side is None else torch.from_numpy(train.maps(side)[rows])
        if config.augment:
            images, maps = augment(images, maps, generator)
        logits = made.logits(images)
        if outputs is not None:
            return outputs.loss(logits, wanted[rows])
        annotated = torch.from_numpy(examples.annotated[rows]).to(logits.device)
        return segmentation.masked_loss(logits, segmentation.targets(maps, examples).to(logits.device), annotated)

    plan = training.Hyperparameters(lr, config.epochs, config.batch_size, config.weight_decay, config.warmup)
    made.network.train()
    training.run(made.groups, loss_of, len(examples), plan, seed)
    made.network.eval()
    return made
