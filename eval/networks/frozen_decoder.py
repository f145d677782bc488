"""Decoders on frozen patch features: trained on features from the cache, chosen by validation patients.

One per probe: `linear` of segmentation, `primus` of primus, `unet` of unet_decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from eval.config import DecoderConfig, DecoderKind, TaskConfig
from eval.contract import Context, Parts
from eval.data.cohorts import Cohort
from eval.networks import decoders, segmentation, state, training
from eval.networks.decoders import Standardise
from eval.networks.segmentation import FittedSegmenter
from pretrain import optim
from pretrain.runtime.device import autocast, pick_device

_SAMPLE = 128  # slices by which features are standardised


@dataclass(frozen=True)
class FrozenDecoder:
    """A decoder under features of some blocks; calling it draws (see volume_scores.Draw).

    channels  of the images that it sees beside the features, where it sees any
    """

    decoder: nn.Module
    standardise: Standardise
    blocks: tuple[int, ...]
    device: torch.device
    channels: int = 1

    def logits(self, cohort: Cohort, rows: np.ndarray) -> torch.Tensor:
        """Return (n, O, R, R) logits of slices `rows`."""
        patches = self.standardise(cohort.patches(rows, self.blocks).to(self.device))
        side = round(patches.shape[1] ** 0.5)
        shown = None
        if getattr(self.decoder, "needs_images", False):
            shown = torch.from_numpy(cohort.images[rows]).float().to(self.device)
        with autocast("auto", self.device):
            return self.decoder(patches, (side, side), shown)

    def __call__(self, cohort: Cohort, rows: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            return self.logits(cohort, rows).sigmoid().cpu()


def settings(task: TaskConfig, kind: DecoderKind) -> DecoderConfig:
    """Return the task's settings of the probe that has this decoder."""
    return {"linear": task.segmentation, "primus": task.primus, "unet": task.unet_decoder}[kind]


def blocks(task: TaskConfig, depth: int, kind: DecoderKind) -> tuple[int, ...]:
    """Return the blocks, counted from 0, that a decoder reads: those of its settings, else those of the task (linear)
    or the ends of the quarters (primus, unet)."""
    own = settings(task, kind).blocks or (task.blocks if kind == "linear" else decoders.spread(depth))
    return tuple(number % depth for number in own)


def fit(train: Cohort, val: Cohort, context: Context, kind: DecoderKind) -> FittedSegmenter[FrozenDecoder]:
    """Fit a decoder per learning rate; validation patients choose it and the thresholds.

    With `refit` the chosen one is trained again on both; the thresholds stay.
    """
    task, config = context.task, settings(context.task, kind)
    read = blocks(task, context.encoder.depth, kind)
    tried = ((lr, train_decoder(train, kind, config, read, lr, task.seed)) for lr in config.lr)
    lr, decoder, thresholds = segmentation.best(tried, val, task.drawing)
    if task.refit:
        decoder = train_decoder(train.plus(val), kind, config, read, lr, task.seed)
    choices = {"lr": lr, "thresholds": dict(zip(train.names, thresholds.tolist())), "blocks": list(read)}
    return FittedSegmenter(decoder, thresholds, task.drawing, choices, task.refit)


def parts(fitted: FittedSegmenter[FrozenDecoder]) -> Parts:
    """Return what is kept of it: decoder, standardisation, thresholds."""
    maps = fitted.maps
    arrays = {**state.arrays(maps.decoder, "decoder"), **state.arrays(maps.standardise, "standardise")}
    return segmentation.kept(fitted, arrays, blocks=list(maps.blocks), channels=maps.channels)


def restore(kept: Parts, context: Context, kind: DecoderKind) -> FittedSegmenter[FrozenDecoder]:
    """Return what `parts` took apart."""
    config, device = settings(context.task, kind), pick_device("auto")
    standardise, read, channels = state.standardise(kept.arrays), tuple(kept.plain["blocks"]), kept.plain["channels"]
    width, organs = len(standardise.mean), len(kept.arrays["thresholds"])
    decoder = decoders.build(kind, width, organs, config.cells, len(read), config.channels, channels)
    state.fill(decoder, kept.arrays, "decoder")
    frozen = FrozenDecoder(decoder.eval().to(device), standardise.to(device), read, device, channels)
    return segmentation.restored(frozen, kept, context)


def train_decoder(
    train: Cohort, kind: DecoderKind, config: DecoderConfig, blocks: Sequence[int], lr: float, seed: int
) -> FrozenDecoder:
    """Train one decoder at one learning rate."""
    device = pick_device("auto")
    standardise = standardised(train, blocks, seed, config.cells)
    width, organs = len(standardise.mean), len(train.names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channels = train.images.shape[1] if kind == "unet" else 1
        decoder = decoders.build(kind, width, organs, config.cells, len(blocks), config.channels, channels)
    frozen = FrozenDecoder(decoder.to(device), standardise.to(device), tuple(blocks), device, channels)
    examples = train.examples

    def loss_of(rows: np.ndarray, _: np.random.Generator) -> torch.Tensor:
        logits = frozen.logits(train, rows)
        wanted = segmentation.targets(train.maps(logits.shape[-1])[rows], examples).to(device)
        return segmentation.masked_loss(logits, wanted, torch.from_numpy(examples.annotated[rows]).to(device))

    hyper = training.Hyperparameters(
        lr, config.epochs, config.batch_size, config.weight_decay, warmup=0.0, clip=math.inf
    )
    training.run(optim.build_groups(decoder.named_parameters(), 0, 1.0, 1.0), loss_of, len(examples), hyper, seed)
    decoder.eval()
    return frozen


def standardised(train: Cohort, blocks: Sequence[int], seed: int, cells: int | None) -> Standardise:
    """Return the standardisation of some blocks' features, from a sample of the training slices.

    cells  per patch and axis, in which label maps are looked at: patches that nobody annotated in full are left out,
           unless all are; None where there are no label maps
    """
    count = len(train.rows)
    sample = np.sort(np.random.default_rng(seed).permutation(count)[:_SAMPLE])
    patches = train.patches(sample, blocks)
    if cells is not None and train.examples.ignored:
        side = round(patches.shape[1] ** 0.5)
        hidden = np.isin(train.maps(side * cells)[sample], train.examples.ignored)
        known = torch.from_numpy(
            ~hidden.reshape(-1, side, cells, side, cells).any(axis=(2, 4)).reshape(len(sample), -1)
        )
        if known.any() and not known.all():
            return Standardise.of(patches[known])
    return Standardise.of(patches)
