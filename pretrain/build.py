"""From the configuration to what it describes: networks, views, masks, schedules, the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from data_prep.schema import CT, Split
from meddap.settings import SettingsError
from pretrain import optim
from pretrain.config import (
    Config,
    IntensityConfig,
    MachineConfig,
    ModelConfig,
    StageConfig,
    head_count,
)
from pretrain.data import masking, randomness
from pretrain.data.batch_plan import BatchPlan, plan_batches, plan_micro_batches
from pretrain.data.colour import ColourSettings
from pretrain.data.corpus import Corpus
from pretrain.data.intensity import Intensity
from pretrain.data.randomness import Draws
from pretrain.data.slices import SliceSettings
from pretrain.data.stream import Batch
from pretrain.data.views import ViewSettings
from pretrain.distillation import StepWeights
from pretrain.model import attention, compiling
from pretrain.model.heads import ClassHeads, ProjectionHead
from pretrain.model.student_teacher import Model
from pretrain.model.vit import VisionTransformer
from pretrain.objective.sinkhorn import Centring

SCHEDULES = ("lr", "weight_decay", "teacher_momentum", "teacher_temp")


def backbone(config: ModelConfig, *, student: bool = False) -> VisionTransformer:
    """Return a transformer, its weights not yet initialised. Raises SettingsError.

    student  with what is drawn in training: drop path and RoPE's scale
    """
    settings = vars(config) | {"num_heads": head_count(config)}
    del settings["rope_rescale_per"]  # of `draws`
    if not student:
        settings |= {"drop_path": 0.0, "rope_rescale": None}
    try:
        return VisionTransformer(**settings)
    except (ValueError, KeyError) as error:
        raise SettingsError(f"model: {error}") from error


def networks(config: Config, classes: Mapping[str, Sequence[str]] = MappingProxyType({})) -> tuple[Model, Model]:
    """Return student and teacher, their weights not yet initialised.

    classes  names of the classes of each label column that they learn
    Raises SettingsError.
    """
    width, prototypes = config.model.embed_dim, config.classifier == "prototypes"
    if prototypes:
        _check_prototypes(config.dino_head.prototypes, classes)
    linear = {} if prototypes else {column: len(names) for column, names in classes.items()}

    def model(student: bool) -> Model:
        return Model(
            backbone(config.model, student=student),
            ProjectionHead(width, **vars(config.dino_head)),
            None if config.ibot_head is None else ProjectionHead(width, **vars(config.ibot_head)),
            ClassHeads(width, linear),
            next(iter(classes)) if prototypes else None,
        )

    try:
        return model(student=True), model(student=False)
    except ValueError as error:
        raise error if isinstance(error, SettingsError) else SettingsError(f"dino_head, ibot_head: {error}") from error


def _check_prototypes(prototypes: int, classes: Mapping[str, Sequence[str]]) -> None:
    if len(classes) != 1:
        raise SettingsError(
            f"classifier=prototypes: the DINO head learns one label column, data.labels names {len(classes)}; "
            "name one, or set classifier=linear"
        )
    ((column, names),) = classes.items()
    if len(names) != prototypes:
        raise SettingsError(
            f"dino_head.prototypes={prototypes}: classifier=prototypes needs one for each class, and {column} has "
            f"{len(names)} ({', '.join(names)}); set dino_head.prototypes={len(names)}"
        )


def centring(config: Config, stage: StageConfig, device: torch.device) -> Centring | None:
    """Return the centres of both heads' targets, at 0; None where a stage balances by Sinkhorn-Knopp."""
    if stage.loss.targets == "sinkhorn":
        return None
    heads = (config.dino_head, config.dino_head if config.ibot_head is None else config.ibot_head)
    return Centring([head.prototypes for head in heads], stage.loss.centre_momentum, device)


def student_and_teacher(
    config: Config, device: torch.device, classes: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> tuple[Model, Model]:
    """Return both networks with the weights that the seed gives; the teacher starts as the student's copy."""
    student, teacher = networks(config, classes)
    student.init_weights(torch.Generator().manual_seed(config.seed))
    teacher.load_state_dict(student.state_dict())
    return student.to(device).train(), teacher.to(device).requires_grad_(False).eval()


def prepare(model: VisionTransformer, machine: MachineConfig, device: torch.device) -> None:
    """Set up a backbone's speed and memory; its numbers stay the same. Raises SettingsError."""
    model.recompute = machine.recompute
    model.attend_with(attention.pick(machine.attention, device))
    if machine.compile and len(model.sequences) > 1:
        raise SettingsError(
            "machine.compile=true: patients with different sequences give every batch new shapes; use compile=false"
        )
    if machine.cuda_graphs and not machine.compile:
        raise SettingsError("machine.cuda_graphs=true: only compiled blocks are recorded; set machine.compile=true")
    if machine.cuda_graphs and machine.parallel == "fsdp":
        raise SettingsError("machine.cuda_graphs=true: sharded parameters move; use machine.parallel=ddp")
    if machine.compile:
        learns = any(parameter.requires_grad for parameter in model.parameters())
        compiling.compile_blocks(model, replayed=machine.cuda_graphs and not learns)


def intensity(config: IntensityConfig, channels: int = 1) -> Intensity:
    """Return how HU become the input of a network of 1 or 3 channels, in pretraining and in every probe."""
    low, high = config.window
    if channels == 1:
        return Intensity((low, high), config.mean, config.std)
    return Intensity((low, high), tuple(config.rgb_mean), tuple(config.rgb_std))


def reads_voxels(name: str, stage: StageConfig, *splits: Split) -> bool:
    """Whether stage `name` centres crops at labelled voxels. Raises SettingsError where no data set has a label."""
    if stage.crops.around_labels and not any(split.dataset["labels"] for split in splits):
        roots = " nor ".join(str(split.root) for split in splits)
        raise SettingsError(
            f"stages.{name}.crops.around_labels=true: {roots} has no label map; "
            "shard with label maps (--masks), or set it to false"
        )
    return stage.crops.around_labels


def view_settings(
    stage: StageConfig,
    intensity_config: IntensityConfig,
    sequences: Sequence[str] = (CT,),
    channels: int = 1,
    corpus: Corpus | None = None,
) -> ViewSettings:
    """Return crops and augmentation of a stage.

    channels  of the model
    corpus    what is read, whose sources may have intensities and thresholds of their own
    """
    drawn = _tuples(vars(stage.crops) | vars(stage.augment))
    del drawn["mixture"]  # of `crop_variants`
    drawn["slice"] = SliceSettings(**_tuples(vars(stage.augment.slice)))
    drawn["colour"] = ColourSettings(**_tuples(vars(stage.augment.colour)))
    own = intensity(intensity_config, channels)
    return ViewSettings(
        **drawn,
        sequences=tuple(sequences),
        channels=channels,
        source_intensities=() if corpus is None else corpus.intensities(own),
        source_thresholds=() if corpus is None else corpus.body_thresholds(stage.crops.body_threshold_hu),
        intensity=own,
        gram_size=stage.gram.size if stage.gram.teacher_from else None,
    )


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with lists as tuples: YAML has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def crop_variants(stage: StageConfig) -> list[StageConfig]:
    """Return the stage with each of its pairs of crop sizes: those of its mixture, or its own alone."""
    if not stage.crops.mixture:
        return [stage]
    variants = []
    for pair in stage.crops.mixture:
        crops = replace(stage.crops, global_size=pair.global_size, local_size=pair.local_size, mixture=[])
        gram = replace(stage.gram, size=pair.gram_size or stage.gram.size)
        variants.append(replace(stage, crops=crops, gram=gram))
    return variants


def batch_plan(stage: StageConfig, seed: int) -> BatchPlan:
    """Return crop sizes (an index into `crop_variants`) and batch of every step of a stage."""
    ratios = [pair.ratio for pair in stage.crops.mixture] or [1.0]
    scales = [Fraction(_pixels(variant), _pixels(stage)) for variant in crop_variants(stage)]
    return plan_batches(stage.steps, stage.batch_size, seed, ratios, scales)


def micro_batches(
    config: Config, name: str, stage: StageConfig, plan: BatchPlan, processes: int
) -> list[list[tuple[int, ...]]]:
    """Return every process's images of each micro-batch, for each of `crop_variants`. Raises SettingsError."""
    count, group = config.machine.accumulate, stage.loss.koleo_group
    return plan_micro_batches(stage.batch_size, count, plan.scales, group, name, processes)


def _pixels(stage: StageConfig) -> int:
    """Return the pixels that the student sees of one sample."""
    return 2 * stage.crops.global_size**2 + stage.crops.local_number * stage.crops.local_size**2


def masks(stage: StageConfig, config: Config, batch: Batch, size: int) -> torch.Tensor:
    """Return (2·B, S·P) masks of a batch's global crops of `size` pixels."""
    chosen = stage.masks
    low, high = chosen.ratio
    patches = masking.sample(
        (size // config.model.patch_size,) * 2,
        batch.sample,
        batch.epoch,
        config.seed,
        probability=chosen.probability,
        ratio=(low, high),
        min_aspect=chosen.min_aspect,
        whole=batch.whole,
    )
    return masking.over_sequences(
        patches,
        batch.present,
        batch.sample,
        batch.epoch,
        config.seed,
        probability=chosen.sequence_probability,
        count=chosen.sequence_count,
    )


def step_weights(
    stage: StageConfig,
    now: dict[str, float],
    class_weights: Mapping[str, Sequence[float]] = MappingProxyType({}),
    classifier: str = "linear",
) -> StepWeights:
    """Return weights and temperatures of the losses at one step; `now` holds the schedules' values."""
    names = {field.name for field in fields(StepWeights)}
    settings = {key: value for key, value in vars(stage.loss).items() if key in names}
    settings |= {"teacher_temp": now["teacher_temp"], "dino_local": now["dino_local"], "class_weights": class_weights}
    settings |= {"gram": now.get("gram_weight", 0.0)}
    if classifier != "prototypes":
        settings["class_temp"] = None
    return StepWeights(**settings)


def draws(config: Config, stage: StageConfig, batch: Batch, step: int) -> Draws:
    """Return what the student draws at one step of a stage beside views and masks."""
    return randomness.sample_draws(
        batch.sample,
        batch.epoch,
        config.seed,
        step,
        crops=2 + stage.crops.local_number,
        depth=config.model.depth,
        drop_path=config.model.drop_path,
        rope_rescale=config.model.rope_rescale,
        factors=config.model.depth if config.model.rope_rescale_per == "block" else 1,
    )


def schedules(stage: StageConfig) -> dict[str, np.ndarray]:
    """Return the (steps,) values of what changes over a stage, by name."""
    found = {name: getattr(stage.optim, name).values(stage.steps) for name in SCHEDULES}
    found["dino_local"] = stage.loss.dino_local.values(stage.steps)
    if stage.gram.teacher_from:
        found["gram_weight"] = stage.gram.weight.values(stage.steps)
    return found


def optimizer(stage: StageConfig, student: nn.Module, depth: int) -> torch.optim.Optimizer:
    """Return AdamW over the student's groups of layer-wise decay."""
    first, second = stage.optim.betas
    groups = optim.build_groups(
        student.named_parameters(), depth, stage.optim.layer_decay, stage.optim.patch_embed_multiplier
    )
    return optim.adamw(groups, betas=(first, second))
