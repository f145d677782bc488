"""Networks trained on images: one way to train, choose and score them, for structures and for labels.

They begin with the encoder's weights (eval.networks.tuning), or from scratch: what the labels alone would have bought.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from eval.config import NetworkConfig
from eval.contract import Choices, Context, Outcome, Parts, prediction_of
from eval.data.cohorts import Cohort
from eval.networks import baselines, segmentation, state, training
from eval.networks.augment import augment
from eval.networks.baselines import Architecture
from eval.networks.segmentation import FittedSegmenter
from eval.networks.targets import Outputs
from meddap.settings import SettingsError
from pretrain import optim
from pretrain.runtime.device import autocast, pick_device

_ROWS = 32  # images at a time where nothing is learned
_SAMPLE = 256  # images by which the input of a network from scratch is standardised


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation (1, C, 1, 1) of the training images, by which a network from scratch sees images."""

    mean: torch.Tensor
    std: torch.Tensor

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / (self.std + 1e-6)


@dataclass(frozen=True)
class Network:
    """A network with what its training needs: how images in 0…1 become its input, the optimizer's parameter groups."""

    module: nn.Module
    prepare: Callable[[torch.Tensor], torch.Tensor]
    groups: list[dict]
    device: torch.device

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images in 0…1 on any device."""
        inputs = self.prepare(images.to(self.device))
        with autocast("auto", self.device):
            return self.module(inputs).float()

    def logits_of(self, cohort: Cohort, rows: np.ndarray) -> torch.Tensor:
        """Return the logits of some slices, without gradients."""
        with torch.inference_mode():
            return self.logits(torch.from_numpy(cohort.images[rows]).float())

    def __call__(self, cohort: Cohort, rows: np.ndarray) -> torch.Tensor:
        """Draw (see volume_scores.Draw)."""
        return self.logits_of(cohort, rows).sigmoid().cpu()


@dataclass(frozen=True)
class FittedClassifier:
    """A trained network that gives labels or values; a volume's are the mean over its slices."""

    network: Network
    outputs: Outputs
    context: Context
    choices: Choices
    refitted: bool = False

    def scores(self, cohort: Cohort) -> np.ndarray:
        """Return (U, T)."""
        found = [
            self.outputs.scores(self.network.logits_of(cohort, np.arange(start, min(start + _ROWS, len(cohort.rows)))))
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
    *,
    draws: bool,
    extra_choices: Choices,
) -> FittedSegmenter[Network] | FittedClassifier:
    """Train a network per learning rate; validation patients choose one (and, where it draws, the thresholds).

    make           a fresh network for some training patients
    draws          whether it draws structures; else it gives labels or values
    extra_choices  what the row of results says of the network besides
    With `refit` the chosen one is trained again on training and validation patients.
    """
    task = context.task
    outputs = None if draws else Outputs.of(train)
    candidates = ((lr, _train(make(train), train, config, lr, task.seed, outputs)) for lr in config.lr)
    if outputs is None:
        lr, network, thresholds = segmentation.best(candidates, val, task.drawing)
    else:
        coded = outputs
        lr, network = coded.best(candidates, lambda each: FittedClassifier(each, coded, context, {}).scores(val), val)
    if task.refit:
        both = train.plus(val)
        network = _train(make(both), both, config, lr, task.seed, outputs)
    choices = {"lr": lr, **extra_choices}
    if outputs is not None:
        return FittedClassifier(network, outputs, context, choices, task.refit)
    choices["thresholds"] = dict(zip(train.names, thresholds.tolist()))
    return FittedSegmenter(network, thresholds, task.drawing, choices, task.refit)


def fit_from_scratch(
    train: Cohort, val: Cohort, context: Context, kind: Architecture
) -> FittedSegmenter[Network] | FittedClassifier:
    """Fit a network of eval.networks.baselines: `unet` and `transunet` draw, `cnn` gives labels or values.

    The encoder lends its window of HU and nothing else. Raises SettingsError for a size that the network cannot halve.
    """
    task, draws = context.task, kind != "cnn"
    config = {"unet": task.unet, "transunet": task.transunet, "cnn": task.cnn}[kind]
    if draws and task.size % 16:
        raise SettingsError(f"size={task.size}: {kind} needs a multiple of 16")

    def make(cohort: Cohort) -> Network:
        device = pick_device("auto")
        stored = cohort.images
        sample = np.sort(np.random.default_rng(task.seed).permutation(len(stored))[:_SAMPLE])
        seen = torch.from_numpy(stored[sample]).float()
        mean, std = (value.view(1, -1, 1, 1).to(device) for value in (seen.mean((0, 2, 3)), seen.std((0, 2, 3))))
        outputs = len(cohort.names) if draws else Outputs.of(cohort).count
        generator = torch.Generator().manual_seed(task.seed)
        module = baselines.build(kind, stored.shape[1], outputs, config.channels, generator).to(device)
        groups = optim.build_groups(module.named_parameters(), 0, 1.0, 1.0)
        return Network(module, Scaling(mean, std), groups, device)

    parameters = sum(each.numel() for each in make(train).module.parameters())
    return fit(make, train, val, context, config, draws=draws, extra_choices={"parameters": parameters})


def parts(fitted: FittedSegmenter[Network] | FittedClassifier) -> Parts:
    """Return what is kept of a network from scratch: all of its weights, and how images enter it."""
    network = network_of(fitted)
    assert isinstance(network.prepare, Scaling)
    scaling = {"mean": network.prepare.mean.cpu().numpy(), "std": network.prepare.std.cpu().numpy()}
    return kept(fitted, {**state.arrays(network.module, "network"), **scaling})


def restore(stored: Parts, context: Context, kind: Architecture) -> FittedSegmenter[Network] | FittedClassifier:
    """Return what `parts` took apart."""
    arrays, device = stored.arrays, pick_device("auto")
    mean, std = (torch.from_numpy(np.array(arrays[name])).to(device) for name in ("mean", "std"))
    config = {"unet": context.task.unet, "transunet": context.task.transunet, "cnn": context.task.cnn}[kind]
    generator = torch.Generator().manual_seed(context.task.seed)
    module = baselines.build(kind, mean.shape[1], stored.plain["outputs"], config.channels, generator)
    state.fill(module, arrays, "network")
    return restored(Network(module.eval().to(device), Scaling(mean, std), [], device), stored, context)


def network_of(fitted: FittedSegmenter[Network] | FittedClassifier) -> Network:
    """Return the network of a fitted probe."""
    return fitted.maps if isinstance(fitted, FittedSegmenter) else fitted.network


def kept(fitted: FittedSegmenter[Network] | FittedClassifier, arrays: Mapping[str, np.ndarray]) -> Parts:
    """Return the arrays of a network with the thresholds, or with what its outputs mean."""
    if isinstance(fitted, FittedSegmenter):
        return segmentation.kept(fitted, arrays, outputs=len(fitted.thresholds))
    return Parts({**arrays, **fitted.outputs.arrays()}, {"outputs": fitted.outputs.count})


def restored(network: Network, stored: Parts, context: Context) -> FittedSegmenter[Network] | FittedClassifier:
    """Return the fitted probe of a network whose weights are in place."""
    if "thresholds" in stored.arrays:
        return segmentation.restored(network, stored, context)
    outputs = Outputs.kept(stored.arrays, context.task.kind, stored.plain["outputs"])
    return FittedClassifier(network, outputs, context, stored.choices, stored.refitted)


def _train(
    network: Network, train: Cohort, config: NetworkConfig, lr: float, seed: int, outputs: Outputs | None
) -> Network:
    """Train `network` in place; without `outputs` it draws structures."""
    images = train.images

    def augmented(
        rows: np.ndarray, maps: torch.Tensor | None, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        stored = torch.from_numpy(images[rows]).float()
        return augment(stored, maps, generator) if config.augment else (stored, maps)

    if outputs is None:
        side = network.logits_of(train, np.arange(1)).shape[-1]
        examples, maps = train.examples, train.maps(side)

        def loss_of(rows: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
            seen, drawn = augmented(rows, torch.from_numpy(maps[rows]), generator)
            assert drawn is not None
            logits = network.logits(seen)
            annotated = torch.from_numpy(examples.annotated[rows]).to(logits.device)
            return segmentation.masked_loss(logits, segmentation.targets(drawn, examples).to(logits.device), annotated)

    else:
        coded, wanted = outputs, train.targets[train.unit]

        def loss_of(rows: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
            return coded.loss(network.logits(augmented(rows, None, generator)[0]), wanted[rows])

    hyper = training.Hyperparameters(lr, config.epochs, config.batch_size, config.weight_decay, config.warmup)
    network.module.train()
    training.run(network.groups, loss_of, len(train.examples), hyper, seed)
    network.module.eval()
    return network
