"""The encoder trained further, whole or in a small part, under a head that begins as the frozen probe's.

Beginning with the fitted head keeps the first steps from spoiling the features (arXiv 2202.10054).
"""

from __future__ import annotations

import copy
from importlib import import_module
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from eval.config import TaskConfig, TuneConfig
from eval.contract import Context
from eval.data.cohorts import Cohort
from eval.networks import adapters, fitting, frozen_decoder
from eval.networks.augment import augment
from eval.networks.decoders import Standardise
from eval.networks.fitting import Network
from eval.networks.frozen_decoder import FrozenDecoder
from eval.networks.segmenter import Segmenter, groups
from eval.networks.targets import Outputs
from eval.probes import registry
from meddap.settings import SettingsError
from pretrain.model.vit import VisionTransformer

_STARTS: WeakKeyDictionary[Cohort, dict[str, FrozenDecoder]] = WeakKeyDictionary()
_DECODERS = {"linear": "segmentation", "primus": "primus", "unet": "unet_decoder"}  # the frozen probes that have them
_HEAD_STEPS, _HEAD_DECAY = 200, 1e-2  # of L-BFGS, and what keeps weights small
_ROWS = 32  # images at a time


class Classifier(nn.Module):
    """(N, C, h, w) images → scores: a linear layer over standardised cls token and mean patch."""

    def __init__(self, backbone: VisionTransformer, head: nn.Linear, standardise: Standardise) -> None:
        super().__init__()
        self.backbone, self.head, self.standardise = backbone, head, standardise

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.standardise(self.features(images)))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 2 D); of images of more channels than the backbone takes the mean over the channels' own."""
        takes = self.backbone.patch_embed.proj.in_channels
        parts = images.unflatten(1, (-1, takes))
        found = self.backbone(parts.flatten(0, 1))
        both = torch.cat([found.cls, found.patches.mean(dim=1)], dim=1)
        return both.unflatten(0, parts.shape[:2]).mean(dim=1)


def fit(train: Cohort, val: Cohort, context: Context, method: str, config: TuneConfig):
    """`lora`, `bitfit` or `full`: what of the encoder is trained (see eval.networks.adapters)."""
    task, encoder = context.task, context.encoder
    backbone = getattr(encoder, "model", None)
    if not isinstance(backbone, VisionTransformer):
        raise SettingsError(f"{encoder.source}: has no weights that {method} could train; drop that probe")
    if getattr(encoder, "sequences", None):
        raise SettingsError(f"{encoder.source}: takes several sequences; {method} trains encoders of one channel")
    draws = task.kind == "segmentation"
    share = {}

    def make(cohort: Cohort) -> Network:
        mine = copy.deepcopy(backbone)
        generator = torch.Generator().manual_seed(task.seed)
        adapters.prepare(mine, method, generator, rank=config.rank, alpha=config.alpha)
        share["trained"] = adapters.share(mine)
        if draws:
            start = _start(cohort, val, context, config.decoder)
            network = Segmenter(mine, start.blocks, copy.deepcopy(start.decoder), start.standardise)
        else:
            network = _classifier(mine, cohort, encoder.prepare, Outputs.of(cohort), config.augment, task.seed)
        device = next(mine.parameters()).device
        decay = config.layer_decay if method == "full" else 1.0
        return Network(network.to(device), encoder.prepare, groups(network, mine.depth, decay), device)

    fitted = fitting.fit(make, train, val, context, config, draws, method=method, share=share)
    fitted.choices["share"] = round(share["trained"], 5)
    return fitted


def needs(task: TaskConfig) -> str:
    """Patch features for the decoder to begin with, where structures are drawn."""
    return "patches" if task.kind == "segmentation" else "images"


def blocks(task: TaskConfig, decoder: str, depth: int) -> tuple[int, ...]:
    """Blocks that the frozen probe of this decoder reads. Raises SettingsError for another word."""
    if decoder not in _DECODERS:
        raise SettingsError(f"decoder={decoder}: no such decoder; there are {', '.join(_DECODERS)}")
    return import_module(registry.PROBES[_DECODERS[decoder]]).blocks(task, depth)


def _start(cohort: Cohort, val: Cohort, context: Context, kind: str) -> FrozenDecoder:
    """The frozen probe's decoder for these patients; fitted once for all ways to go on."""
    known = _STARTS.setdefault(cohort, {})
    if kind not in known:
        task = context.task
        settings, read = getattr(task, _DECODERS[kind]), blocks(task, kind, context.encoder.depth)
        known[kind] = frozen_decoder.fit(cohort, val, context, kind, settings, read).maps
    return known[kind]


def _classifier(
    backbone: VisionTransformer, cohort: Cohort, prepare, outputs: Outputs, augmented: bool, seed: int
) -> Classifier:
    """With a head fitted on the backbone's features as they are, of the images and of changed ones."""
    width, device = 2 * backbone.embed_dim, next(backbone.parameters()).device
    plain = Classifier(backbone, nn.Linear(width, outputs.count), Standardise(torch.zeros(width), torch.ones(width)))
    plain.to(device)
    generator, found = np.random.default_rng(seed), []
    for change in (False, True) if augmented else (False,):
        for start in range(0, len(cohort.rows), _ROWS):
            images = torch.from_numpy(cohort.images[np.arange(start, min(start + _ROWS, len(cohort.rows)))]).float()
            images = augment(images, None, generator)[0] if change else images
            with torch.no_grad():
                found.append(plain.features(prepare(images.to(device))))
    features = torch.cat(found)
    plain.standardise = Standardise.of(features).to(device)
    inputs = plain.standardise(features)
    wanted = np.tile(cohort.targets[cohort.unit], (len(inputs) // len(cohort.rows), 1))
    head = plain.head
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=_HEAD_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = outputs.loss(head(inputs), wanted) + _HEAD_DECAY / 2 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return plain
