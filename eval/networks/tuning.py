"""The encoder trained further, whole or in a small part, under a head that begins as the frozen probe's.

Beginning with the fitted head keeps the first steps from spoiling the features (arXiv 2202.10054).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from eval.config import DecoderKind, TaskConfig, TuneConfig
from eval.contract import Context, Needs, Parts
from eval.data.cohorts import Cohort
from eval.networks import adapters, decoders, fitting, frozen_decoder, state
from eval.networks.adapters import Method
from eval.networks.augment import augment
from eval.networks.decoders import Standardise
from eval.networks.fitting import FittedClassifier, Network
from eval.networks.frozen_decoder import FrozenDecoder
from eval.networks.segmentation import FittedSegmenter
from eval.networks.segmenter import Segmenter, groups
from eval.networks.targets import Outputs
from meddap.settings import SettingsError
from pretrain.model.vit import VisionTransformer

_STARTS: WeakKeyDictionary[Cohort, dict[str, FrozenDecoder]] = WeakKeyDictionary()
_HEAD_STEPS, _HEAD_DECAY = 200, 1e-2  # of L-BFGS, and what keeps weights small
_ROWS = 32  # images at a time
_ENCODER = "backbone."


class Classifier(nn.Module):
    """(N, C, h, w) images → scores: a linear layer over standardised cls token and mean patch."""

    def __init__(self, backbone: VisionTransformer, head: nn.Linear, standardise: Standardise) -> None:
        super().__init__()
        self.backbone, self.head, self.standardise = backbone, head, standardise

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.standardise(self.features(images)))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return (N, 2 D) features; where images have more channels than the backbone takes, the mean over channels."""
        takes = self.backbone.patch_embed.proj.in_channels
        stacked = images.unflatten(1, (-1, takes))
        found = self.backbone(stacked.flatten(0, 1))
        both = torch.cat([found.cls, found.patches.mean(dim=1)], dim=1)
        return both.unflatten(0, stacked.shape[:2]).mean(dim=1)


def settings(task: TaskConfig, method: Method) -> TuneConfig:
    """Return the task's settings of the probe that trains the encoder by this method. Raises SettingsError for an
    unknown decoder."""
    found = {"lora": task.lora, "bitfit": task.bitfit, "full": task.finetune}[method]
    if found.decoder not in get_args(DecoderKind):
        raise SettingsError(f"decoder={found.decoder}: no such decoder; there are {', '.join(get_args(DecoderKind))}")
    return found


def needs(task: TaskConfig) -> Needs:
    """Return what is read: patch features for the decoder to begin with, where structures are drawn."""
    return "patches" if task.kind == "segmentation" else "images"


def blocks(task: TaskConfig, depth: int, method: Method) -> tuple[int, ...]:
    """Return the blocks that the frozen probe of the same decoder reads."""
    return frozen_decoder.blocks(task, depth, settings(task, method).decoder)


def fit(train: Cohort, val: Cohort, context: Context, method: Method) -> FittedSegmenter[Network] | FittedClassifier:
    """Train the encoder further, by what `method` trains of it (see eval.networks.adapters).

    Raises SettingsError for an encoder without weights of ours, or of several sequences.
    """
    task, encoder = context.task, context.encoder
    config, backbone, draws = settings(task, method), _backbone(context, method), task.kind == "segmentation"
    share = {}

    def make(cohort: Cohort) -> Network:
        mine = copy.deepcopy(backbone)
        generator = torch.Generator().manual_seed(task.seed)
        adapters.prepare(mine, method, generator, rank=config.rank, alpha=config.alpha)
        share["trained"] = adapters.share(mine)
        module: nn.Module
        if draws:
            start = _start(cohort, val, context, config.decoder)
            module = Segmenter(mine, start.blocks, copy.deepcopy(start.decoder), start.standardise)
        else:
            module = _classifier(mine, cohort, encoder.prepare, Outputs.of(cohort), config.augment, task.seed)
        device = next(mine.parameters()).device
        decay = config.layer_decay if method == "full" else 1.0
        return Network(module.to(device), encoder.prepare, groups(module, mine.depth, decay), device)

    fitted = fitting.fit(
        make, train, val, context, config, draws=draws, extra_choices={"method": method, "share": share}
    )
    fitted.choices["share"] = round(share["trained"], 5)  # known only now that a network was made
    return fitted


def _backbone(context: Context, method: Method) -> VisionTransformer:
    """Return the encoder's network. Raises SettingsError where it is none of ours, or takes several sequences."""
    encoder = context.encoder
    backbone = getattr(encoder, "model", None)
    if not isinstance(backbone, VisionTransformer):
        raise SettingsError(f"{encoder.source}: has no weights that {method} could train; drop that probe")
    if getattr(encoder, "sequences", None):
        raise SettingsError(f"{encoder.source}: takes several sequences; {method} trains encoders of one sequence")
    return backbone


def parts(fitted: FittedSegmenter[Network] | FittedClassifier) -> Parts:
    """Return what is kept of it: the head, and of the encoder what was trained. The rest is the encoder's own."""
    module = fitting.network_of(fitted).module
    frozen = {name for name, each in module.named_parameters() if not each.requires_grad}
    mine = [name for name in module.state_dict() if not (name.startswith(_ENCODER) and name in frozen)]
    return fitting.kept(fitted, state.arrays(module, "network", mine))


def restore(stored: Parts, context: Context, method: Method) -> FittedSegmenter[Network] | FittedClassifier:
    """Return what `parts` took apart, on the weights of the encoder in `context`."""
    task, arrays = context.task, stored.arrays
    config, backbone = settings(task, method), copy.deepcopy(_backbone(context, method))
    adapters.prepare(backbone, method, torch.Generator(), rank=config.rank, alpha=config.alpha)
    standardise, outputs = state.standardise(arrays, "network.standardise"), stored.plain["outputs"]
    module: nn.Module
    if task.kind == "segmentation":
        read, own = blocks(task, context.encoder.depth, method), frozen_decoder.settings(task, config.decoder)
        channels = len(standardise.mean) // (len(read) * backbone.embed_dim) * backbone.channels
        decoder = decoders.build(
            config.decoder, len(standardise.mean), outputs, own.cells, len(read), own.channels, channels
        )
        module = Segmenter(backbone, read, decoder, standardise)
    else:
        module = Classifier(backbone, nn.Linear(len(standardise.mean), outputs), standardise)
    device = next(backbone.parameters()).device
    state.fill(module, arrays, "network", whole=False)
    network = Network(module.eval().to(device), context.encoder.prepare, [], device)
    return fitting.restored(network, stored, context)


def _start(cohort: Cohort, val: Cohort, context: Context, kind: DecoderKind) -> FrozenDecoder:
    """Return the frozen probe's decoder for these patients; fitted once for all ways to go on."""
    known = _STARTS.setdefault(cohort, {})
    if kind not in known:
        known[kind] = frozen_decoder.fit(cohort, val, context, kind).maps
    return known[kind]


def _classifier(
    backbone: VisionTransformer,
    cohort: Cohort,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    outputs: Outputs,
    augmented: bool,
    seed: int,
) -> Classifier:
    """Return a classifier whose head is pre-fitted on frozen features of original and augmented images."""
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
