"""The light head in three dimensions (eval.stack), trained on stacks of neighbouring slices' frozen features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from eval.config import VolumeHeadConfig
from eval.contract import Context, Outcome, prediction_of
from eval.data.cohorts import Cohort
from eval.networks import segmentation, training, volume_scores
from eval.networks.decoders import Standardise
from eval.networks.frozen_decoder import standardised
from eval.networks.segmentation import FittedSegmenter
from eval.networks.targets import Outputs
from eval.stack import StackHead
from meddap.settings import SettingsError
from pretrain import optim
from pretrain.runtime.device import autocast, pick_device


@dataclass(frozen=True)
class FrozenVolumeHead:
    """A head under features of the slices around each; calling it draws (see volume_scores.Draw)."""

    head: StackHead
    standardise: Standardise
    blocks: tuple[int, ...]
    reach: int  # slices on each side that the head's layers see
    device: torch.device

    def logits(self, cohort: Cohort, stack: np.ndarray) -> torch.Tensor:
        """Of stacks (B, Z) of rows: (B, Z, O, R, R), or (B, T) of whole stacks."""
        patches = self.standardise(cohort.patches(stack.ravel(), self.blocks).to(self.device))
        side = round(patches.shape[1] ** 0.5)
        with autocast("auto", self.device):
            return self.head(patches.unflatten(0, stack.shape), (side, side)).float()

    def __call__(self, cohort: Cohort, rows: np.ndarray) -> torch.Tensor:
        """Each slice as it is drawn when its whole study passes through the head at once."""
        found: dict[int, torch.Tensor] = {}
        with torch.inference_mode():
            for study in volume_scores.studies(cohort.examples):
                places = np.flatnonzero(np.isin(study, rows))
                if len(places):
                    first = max(places[0] - self.reach, 0)
                    window = study[first : places[-1] + self.reach + 1]
                    drawn = self.logits(cohort, window[None])[0].sigmoid().cpu()
                    found |= {int(study[place]): drawn[place - first] for place in places}
        return torch.stack([found[int(row)] for row in rows])


@dataclass(frozen=True)
class VolumeClassifier:
    """A head that gives labels or values of whole volumes."""

    stacked: FrozenVolumeHead
    outputs: Outputs
    context: Context
    choices: dict
    refitted: bool = False

    def scores(self, cohort: Cohort) -> np.ndarray:
        """(U, T)."""
        with torch.inference_mode():
            found = [
                self.stacked.logits(cohort, each[None]) for each in _evenly(cohort, self.context.task.stack3d.depth)
            ]
        return np.concatenate([self.outputs.scores(each) for each in found])

    def predict(self, test: Cohort) -> list[Outcome]:
        return [Outcome(prediction_of(self.scores(test), test, self.context.task))]


def fit(train: Cohort, val: Cohort, context: Context, blocks: tuple[int, ...]) -> FittedSegmenter | VolumeClassifier:
    """A head per learning rate; validation patients choose. With `refit` the chosen one is trained again on both."""
    task, config = context.task, context.task.stack3d
    draws = task.kind == "segmentation"
    if not draws and task.level != "volume":
        raise SettingsError("stack3d: looks at whole volumes; set level=volume or drop that probe")
    outputs = None if draws else Outputs.of(train)
    tried = ((lr, _train(train, config, blocks, lr, task.seed, outputs)) for lr in config.lr)
    if draws:
        lr, stacked, thresholds = segmentation.best(tried, val, task.drawing)
    else:
        lr, stacked = outputs.best(tried, lambda each: VolumeClassifier(each, outputs, context, {}).scores(val), val)
    if task.refit:
        stacked = _train(train.plus(val), config, blocks, lr, task.seed, outputs)
    choices = {"lr": lr, "blocks": list(blocks)}
    if not draws:
        return VolumeClassifier(stacked, outputs, context, choices, task.refit)
    choices["thresholds"] = dict(zip(train.names, thresholds.tolist()))
    return FittedSegmenter(stacked, thresholds, task.drawing, choices, task.refit)


def _train(
    train: Cohort, config: VolumeHeadConfig, blocks: tuple[int, ...], lr: float, seed: int, outputs: Outputs | None
) -> FrozenVolumeHead:
    device, examples = pick_device("auto"), train.examples
    standardise = standardised(train, blocks, seed)
    cells, count = (config.cells, len(train.names)) if outputs is None else (None, outputs.count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = StackHead(len(standardise.mean), count, cells, config.channels, config.layers)
    stacked = FrozenVolumeHead(head.to(device), standardise.to(device), blocks, config.layers, device)
    studies = list(volume_scores.studies(examples))
    units = _evenly(train, config.depth)
    pieces = [(study, start) for study in studies for start in range(0, len(study), config.depth)]

    def maps_loss(chosen: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
        stack = np.stack([_window(*pieces[number], config, generator) for number in chosen])
        logits = stacked.logits(train, stack).flatten(0, 1)
        flat = stack.ravel()
        wanted = segmentation.targets(train.maps(logits.shape[-1])[flat], examples).to(device)
        return segmentation.masked_loss(logits, wanted, torch.from_numpy(examples.annotated[flat]).to(device))

    def labels_loss(chosen: np.ndarray, _) -> torch.Tensor:
        return outputs.loss(stacked.logits(train, units[chosen]), train.targets[chosen])

    plan = training.Hyperparameters(
        lr, config.epochs, config.batch_size, config.weight_decay, warmup=0.0, clip=math.inf
    )
    count = len(pieces) if outputs is None else len(units)
    groups = optim.build_groups(list(head.named_parameters()), 0, 1.0, 1.0)
    training.run(groups, maps_loss if outputs is None else labels_loss, count, plan, seed)
    head.eval()
    return stacked


def _window(study: np.ndarray, start: int, config: VolumeHeadConfig, generator: np.random.Generator) -> np.ndarray:
    """`depth` neighbouring rows of a study from about `start`; the last one again where the study is shorter."""
    start = start + int(generator.integers(-config.depth // 2, config.depth // 2 + 1))
    start = min(max(start, 0), max(len(study) - config.depth, 0))
    return study[np.minimum(np.arange(start, start + config.depth), len(study) - 1)]


def _evenly(cohort: Cohort, depth: int) -> np.ndarray:
    """(U, depth) rows of each unit's slices, evenly spaced, in the order of the units."""
    found = np.zeros((len(cohort), depth), np.int64)
    for study in volume_scores.studies(cohort.examples):
        found[cohort.unit[study[0]]] = study[np.linspace(0, len(study) - 1, depth).round().astype(int)]
    return found
