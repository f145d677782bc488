"""Decoders on frozen patch features: trained on features from the cache, chosen by validation patients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from eval.config import DecoderConfig
from eval.contract import Context
from eval.data.cohorts import Cohort
from eval.networks import decoders, segmentation, training
from eval.networks.decoders import Standardise
from eval.networks.segmentation import FittedSegmenter
from pretrain import optim
from pretrain.runtime.device import autocast, pick_device

_SAMPLE = 128  # slices by which features are standardised


@dataclass(frozen=True)
class FrozenDecoder:
    """A decoder under features of some blocks; calling it draws (see volume_scores.Draw)."""

    decoder: nn.Module
    standardise: Standardise
    blocks: tuple[int, ...]
    device: torch.device

    def logits(self, cohort: Cohort, rows: np.ndarray) -> torch.Tensor:
        """(n, O, R, R)."""
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


def fit(
    train: Cohort, val: Cohort, context: Context, kind: str, config: DecoderConfig, blocks: Sequence[int]
) -> FittedSegmenter:
    """A decoder per learning rate; validation patients choose it and the thresholds.

    With `refit` the chosen one is trained again on both; the thresholds stay.
    """
    task = context.task
    tried = ((lr, train_decoder(train, kind, config, blocks, lr, task.seed)) for lr in config.lr)
    lr, decoded, thresholds = segmentation.best(tried, val, task.drawing)
    if task.refit:
        decoded = train_decoder(train.plus(val), kind, config, blocks, lr, task.seed)
    choices = {"lr": lr, "thresholds": dict(zip(train.names, thresholds.tolist())), "blocks": list(blocks)}
    return FittedSegmenter(decoded, thresholds, task.drawing, choices, task.refit)


def train_decoder(
    train: Cohort, kind: str, config: DecoderConfig, blocks: Sequence[int], lr: float, seed: int
) -> FrozenDecoder:
    """One decoder at one learning rate."""
    device = pick_device("auto")
    standardise = standardised(train, blocks, seed)
    width, organs = len(standardise.mean), len(train.names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channels = train.images.shape[1] if kind == "unet" else 1
        decoder = decoders.build(kind, width, organs, config.cells, len(blocks), config.channels, channels)
    decoded = FrozenDecoder(decoder.to(device), standardise.to(device), tuple(blocks), device)
    examples = train.examples

    def loss_of(rows: np.ndarray, _) -> torch.Tensor:
        logits = decoded.logits(train, rows)
        wanted = segmentation.targets(train.maps(logits.shape[-1])[rows], examples).to(device)
        return segmentation.masked_loss(logits, wanted, torch.from_numpy(examples.annotated[rows]).to(device))

    named = [(name, each) for name, each in decoder.named_parameters()]
    plan = training.Hyperparameters(
        lr, config.epochs, config.batch_size, config.weight_decay, warmup=0.0, clip=math.inf
    )
    training.run(optim.build_groups(named, 0, 1.0, 1.0), loss_of, len(examples), plan, seed)
    decoder.eval()
    return decoded


def standardised(train: Cohort, blocks: Sequence[int], seed: int) -> Standardise:
    """Mean and spread of the features of some training slices."""
    count = len(train.rows)
    sample = np.sort(np.random.default_rng(seed).permutation(count)[:_SAMPLE])
    return Standardise.of(train.patches(sample, blocks))


def blocks_of(config: DecoderConfig, depth: int) -> tuple[int, ...]:
    """Blocks counted from 0: the configuration's, or the ends of the quarters."""
    return tuple(number % depth for number in config.blocks) or tuple(decoders.spread(depth))
