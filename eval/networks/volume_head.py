"""A light head in three dimensions over frozen features of neighbouring slices: structures, or labels of volumes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from eval.config import TaskConfig, VolumeHeadConfig
from eval.contract import Choices, Context, Outcome, Parts, prediction_of
from eval.data.cohorts import Cohort
from eval.networks import decoders, segmentation, state, training, volume_scores
from eval.networks.decoders import ChannelNorm, LinearDecoder, Standardise
from eval.networks.frozen_decoder import standardised
from eval.networks.segmentation import FittedSegmenter
from eval.networks.targets import Outputs
from meddap.settings import SettingsError
from pretrain import optim
from pretrain.runtime.device import autocast, pick_device


class Residual(nn.Module):
    """x + conv(act(norm(x))), 3 × 3 × 3, on (B, C, Z, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)  # each place by itself, so that a slice sees no further than its neighbours
        self.convolve = nn.Conv3d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.convolve.weight)  # at first the head sees each slice alone
        assert self.convolve.bias is not None
        nn.init.zeros_(self.convolve.bias)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + self.convolve(nn.functional.gelu(self.norm(maps)))


class StackHead(nn.Module):
    """From standardised features of stacks of slices (B, Z, P, F) to maps of structures, or scores of the whole stack.

    cells  output pixels per patch and axis for maps (B, Z, O, R, R); None for scores (B, O)
    """

    def __init__(self, width: int, outputs: int, cells: int | None, channels: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.project = nn.Linear(width, channels)
        self.trunk = nn.Sequential(*(Residual(channels) for _ in range(depth)))
        self.out = nn.Linear(channels, outputs) if cells is None else LinearDecoder(channels, outputs, cells)
        self.dense = cells is not None

    def forward(self, features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        count, slices = features.shape[:2]
        maps = self.project(features).unflatten(2, grid).permute(0, 4, 1, 2, 3)
        maps = self.trunk(maps)
        if not self.dense:
            return self.out(maps.mean(dim=(2, 3, 4))).float()
        tokens = maps.permute(0, 2, 3, 4, 1).flatten(0, 1).flatten(1, 2)
        return self.out(tokens, grid).unflatten(0, (count, slices))


@dataclass(frozen=True)
class FrozenVolumeHead:
    """A head on features of each slice and those around it; calling it draws (see volume_scores.Draw)."""

    head: StackHead
    standardise: Standardise
    blocks: tuple[int, ...]
    reach: int  # slices on each side that the head's layers see
    device: torch.device

    def logits(self, cohort: Cohort, stack: np.ndarray) -> torch.Tensor:
        """Return (B, Z, O, R, R) logits of stacks (B, Z) of rows, or (B, T) of whole stacks."""
        patches = self.standardise(cohort.patches(stack.ravel(), self.blocks).to(self.device))
        side = round(patches.shape[1] ** 0.5)
        with autocast("auto", self.device):
            return self.head(patches.unflatten(0, stack.shape), (side, side)).float()

    def __call__(self, cohort: Cohort, rows: np.ndarray) -> torch.Tensor:
        """Draw each slice as if its whole study passed through the head at once."""
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

    head: FrozenVolumeHead
    outputs: Outputs
    context: Context
    choices: Choices
    refitted: bool = False

    def scores(self, cohort: Cohort) -> np.ndarray:
        """Return (U, T)."""
        with torch.inference_mode():
            found = [self.head.logits(cohort, each[None]) for each in _evenly(cohort, self.context.task.stack3d.depth)]
        return np.concatenate([self.outputs.scores(each) for each in found])

    def predict(self, test: Cohort) -> list[Outcome]:
        return [Outcome(prediction_of(self.scores(test), test, self.context.task))]


def blocks(task: TaskConfig, depth: int) -> tuple[int, ...]:
    """Return the blocks, counted from 0, that the head reads: its own, or the ends of the quarters."""
    return tuple(number % depth for number in task.stack3d.blocks or decoders.spread(depth))


def fit(train: Cohort, val: Cohort, context: Context) -> FittedSegmenter[FrozenVolumeHead] | VolumeClassifier:
    """Train a head per learning rate; validation patients choose. With `refit` the chosen one is trained on both.

    Raises SettingsError for labels of single slices.
    """
    task, config = context.task, context.task.stack3d
    if task.kind != "segmentation" and task.level != "volume":
        raise SettingsError("stack3d: looks at whole volumes; set level=volume or drop that probe")
    read = blocks(task, context.encoder.depth)
    outputs = None if task.kind == "segmentation" else Outputs.of(train)
    candidates = ((lr, _train(train, config, read, lr, task.seed, outputs)) for lr in config.lr)
    if outputs is None:
        lr, head, thresholds = segmentation.best(candidates, val, task.drawing)
    else:
        coded = outputs
        lr, head = coded.best(candidates, lambda each: VolumeClassifier(each, coded, context, {}).scores(val), val)
    if task.refit:
        head = _train(train.plus(val), config, read, lr, task.seed, outputs)
    choices: Choices = {"lr": lr, "blocks": list(read)}
    if outputs is not None:
        return VolumeClassifier(head, outputs, context, choices, task.refit)
    choices["thresholds"] = dict(zip(train.names, thresholds.tolist()))
    return FittedSegmenter(head, thresholds, task.drawing, choices, task.refit)


def parts(fitted: FittedSegmenter[FrozenVolumeHead] | VolumeClassifier) -> Parts:
    """Return what is kept of it: the head, its standardisation, and thresholds or what its outputs mean."""
    mine = fitted.maps if isinstance(fitted, FittedSegmenter) else fitted.head
    arrays = {**state.arrays(mine.head, "head"), **state.arrays(mine.standardise, "standardise")}
    if isinstance(fitted, FittedSegmenter):
        return segmentation.kept(fitted, arrays, blocks=list(mine.blocks))
    return Parts({**arrays, **fitted.outputs.arrays()}, {"blocks": list(mine.blocks), "outputs": fitted.outputs.count})


def restore(kept: Parts, context: Context) -> FittedSegmenter[FrozenVolumeHead] | VolumeClassifier:
    """Return what `parts` took apart."""
    config, device, draws = context.task.stack3d, pick_device("auto"), "thresholds" in kept.arrays
    standardise = state.standardise(kept.arrays)
    outputs = len(kept.arrays["thresholds"]) if draws else kept.plain["outputs"]
    cells = config.cells if draws else None
    head = StackHead(len(standardise.mean), outputs, cells, config.channels, config.layers)
    state.fill(head, kept.arrays, "head")
    blocks = tuple(kept.plain["blocks"])
    frozen = FrozenVolumeHead(head.eval().to(device), standardise.to(device), blocks, config.layers, device)
    if draws:
        return segmentation.restored(frozen, kept, context)
    coded = Outputs.kept(kept.arrays, context.task.kind, outputs)
    return VolumeClassifier(frozen, coded, context, kept.choices, kept.refitted)


def _train(
    train: Cohort, config: VolumeHeadConfig, blocks: tuple[int, ...], lr: float, seed: int, outputs: Outputs | None
) -> FrozenVolumeHead:
    """Train one head; without `outputs` it draws structures."""
    device, examples = pick_device("auto"), train.examples
    cells, width = (config.cells, len(train.names)) if outputs is None else (None, outputs.count)
    standardise = standardised(train, blocks, seed, cells)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = StackHead(len(standardise.mean), width, cells, config.channels, config.layers)
    frozen = FrozenVolumeHead(head.to(device), standardise.to(device), blocks, config.layers, device)
    if outputs is None:
        studies = list(volume_scores.studies(examples))
        pieces = [(study, start) for study in studies for start in range(0, len(study), config.depth)]
        count = len(pieces)

        def loss_of(chosen: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
            windows = (_window(study, start, config, generator) for study, start in (pieces[n] for n in chosen))
            stack = np.stack(list(windows))
            logits = frozen.logits(train, stack).flatten(0, 1)
            rows = stack.ravel()
            wanted = segmentation.targets(train.maps(logits.shape[-1])[rows], examples).to(device)
            return segmentation.masked_loss(logits, wanted, torch.from_numpy(examples.annotated[rows]).to(device))

    else:
        coded, units = outputs, _evenly(train, config.depth)
        count = len(units)

        def loss_of(chosen: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
            return coded.loss(frozen.logits(train, units[chosen]), train.targets[chosen])

    hyper = training.Hyperparameters(
        lr, config.epochs, config.batch_size, config.weight_decay, warmup=0.0, clip=math.inf
    )
    training.run(optim.build_groups(head.named_parameters(), 0, 1.0, 1.0), loss_of, count, hyper, seed)
    head.eval()
    return frozen


def _window(study: np.ndarray, start: int, config: VolumeHeadConfig, generator: np.random.Generator) -> np.ndarray:
    """Return `depth` neighbouring rows of a study from about `start`; the last one again where it is shorter."""
    start = start + int(generator.integers(-config.depth // 2, config.depth // 2 + 1))
    start = min(max(start, 0), max(len(study) - config.depth, 0))
    return study[np.minimum(np.arange(start, start + config.depth), len(study) - 1)]


def _evenly(cohort: Cohort, depth: int) -> np.ndarray:
    """Return (U, depth) rows of each unit's slices, evenly spaced, in the order of the units."""
    found = np.zeros((len(cohort), depth), np.int64)
    for study in volume_scores.studies(cohort.examples):
        found[cohort.unit[study[0]]] = study[np.linspace(0, len(study) - 1, depth).round().astype(int)]
    return found
