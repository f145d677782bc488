"""A training step to be measured: the networks of a configuration, a batch of made-up slices, and what a step does.

Everything is what `pretrain.train` calls; nothing but the pixels is made up.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from pretrain import build, distillation, optim
from pretrain.config import Config, StageConfig
from pretrain.data import batch_plan, views
from pretrain.data.micro_batch import MicroBatch, micro_batches
from pretrain.data.views import Views
from pretrain.model.student_teacher import Model
from pretrain.model.vit import VisionTransformer
from pretrain.objective.koleo import spans_micro_batches
from pretrain.planning import counting
from pretrain.planning.peak_memory import backbones, batch_of, masks_of, weights_of
from pretrain.runtime.device import autocast


def networks(config: Config, stage: StageConfig, device: torch.device) -> tuple[Model, Model, VisionTransformer | None]:
    """Student, teacher and Gram teacher (None where the stage has none) with the weights that the seed gives."""
    student, teacher = build.student_and_teacher(counting.unlabelled(config), device)
    gram_teacher = None
    if stage.gram.teacher_from:
        gram_teacher = build.backbone(config.model).to(device).requires_grad_(False).eval()
        gram_teacher.load_state_dict(teacher.backbone.state_dict())
    for network in backbones(student, teacher, gram_teacher):
        build.prepare(network, config.machine, device)
    return student, teacher, gram_teacher


class Arm:
    """One of a stage's variants (`build.crop_variants`) on a device.

    accumulate  micro-batches in which the batch goes through the networks, at most
    masked      share of the global crops' patches that are masked; None: as many as are expected
    side        of a slice in pixels
    """

    def __init__(
        self,
        config: Config,
        stage: StageConfig,
        images: int,
        device: torch.device,
        *,
        accumulate: int = 1,
        masked: float | None = None,
        side: int = 512,
    ) -> None:
        self.counts = batch_plan.divide_batch(images, accumulate, stage.loss.koleo_group)
        self.config, self.stage, self.images, self.device = config, stage, images, device
        self.student, self.teacher, self.gram_teacher = networks(config, stage, device)
        self.optimizer = build.optimizer(stage, self.student, config.model.depth)
        names = tuple(config.data.sequences)
        self.settings = build.view_settings(stage, config.intensity, names)
        self.batch = batch_of(images, len(names), side, device)
        share = counting.masked_share(stage.masks, len(names)) if masked is None else masked
        self.masks = masks_of(config, stage, images, share)
        first = spans_micro_batches(self.counts, stage.loss.koleo_group)
        masked = int(self.masks.sum())
        self.counted = counting.step(config, stage, images, pixels=(side, side), masked=masked, first_pass=first)

    @property
    def precision(self) -> AbstractContextManager:
        return autocast(self.config.machine.precision, self.device)

    def views(self) -> Views:
        """The crops of the batch."""
        return views.make(self.batch, self.settings, seed=0)

    def gradients(self, crops: Views) -> dict[str, torch.Tensor]:
        """Forward and backward pass of all networks."""
        return distillation.backward(
            self.student,
            self.teacher,
            self.micro_batches(crops),
            self.weights,
            gram_teacher=self.gram_teacher,
            precision=self.precision,
        )

    def micro_batches(self, crops: Views) -> list[MicroBatch]:
        """The batch as the networks get it."""
        draws = build.draws(self.config, self.stage, self.batch, 0)
        return micro_batches(crops, self.masks, draws, self.counts)

    @property
    def weights(self) -> distillation.StepWeights:
        return weights_of(self.stage)

    def step(self) -> None:
        """A whole training step, from a batch on the device to new weights."""
        self.gradients(self.views())
        update(self.student, self.teacher, self.optimizer, clip=self.stage.optim.clip, lr=1e-6, momentum=0.994)


def update(
    student: Model,
    teacher: Model,
    optimizer: torch.optim.Optimizer,
    *,
    clip: float,
    lr: float,
    momentum: float,
) -> None:
    """Apply the gradients: clipping, optimizer and moving average."""
    optim.clip(student, clip)
    optim.set_step(optimizer, lr=lr, weight_decay=0.04, freeze_last_layer=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    optim.update_teacher(teacher, student, momentum)
