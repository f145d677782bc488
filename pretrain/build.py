"""From the configuration to the parts: the only file beside `train.py` that sees both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from data_prep.schema import CT, Split
from meddap.settings import SettingsError
from pretrain import optim
from pretrain.config import (
    Config,
    DataConfig,
    GramConfig,
    HeadConfig,
    IntensityConfig,
    MachineConfig,
    ModelConfig,
    StageConfig,
    head_count,
)
from pretrain.data import labels, masking, randomness
from pretrain.data.batch_plan import BatchPlan, plan_batches
from pretrain.data.intensity import Intensity
from pretrain.data.labels import Labelling
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
from pretrain.schedules import summary

SCHEDULES = ("lr", "weight_decay", "teacher_momentum", "teacher_temp")


def backbone(config: ModelConfig, *, student: bool = False) -> VisionTransformer:
    """A transformer with one input channel, its weights not yet initialised. Raises SettingsError.

    student  with what is drawn in training: drop path and RoPE's scale
    """
    heads = head_count(config)
    try:
        return _backbone(config, heads, student)
    except (ValueError, KeyError) as error:
        raise SettingsError(f"model: {error}") from error


def _backbone(config: ModelConfig, heads: int, student: bool) -> VisionTransformer:
    return VisionTransformer(
        patch_size=config.patch_size,
        in_channels=1,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=heads,
        ffn=config.ffn,
        ffn_ratio=config.ffn_ratio,
        qkv_bias=config.qkv_bias,
        registers=config.registers,
        mask_k_bias=config.mask_k_bias,
        position=config.position,
        grid=config.grid,
        layer_scale=config.layer_scale,
        norm_eps=config.norm_eps,
        local_norm=config.local_norm,
        rope_base=config.rope_base,
        drop_path=config.drop_path if student else 0.0,
        drop_path_over_depth=config.drop_path_over_depth,
        rope_rescale=config.rope_rescale if student else None,
        sequences=config.sequences,
    )


def _head(config: HeadConfig, width: int) -> ProjectionHead:
    return ProjectionHead(
        width,
        prototypes=config.prototypes,
        hidden_dim=config.hidden_dim,
        bottleneck_dim=config.bottleneck_dim,
        layers=config.layers,
        unit_norm_rows=config.unit_norm_rows,
        learned_gain=config.learned_gain,
    )


def networks(config: Config, classes: Mapping[str, Sequence[str]] = MappingProxyType({})) -> tuple[Model, Model]:
    """Student and teacher, their weights not yet initialised; `classes` of each label column that they learn.

    Raises SettingsError.
    """
    width, prototypes = config.model.embed_dim, config.classifier == "prototypes"
    if prototypes:
        _check_prototypes(config.dino_head.prototypes, classes)
    linear = {} if prototypes else {column: len(names) for column, names in classes.items()}
    try:
        return tuple(
            Model(
                backbone(config.model, student=role == "student"),
                _head(config.dino_head, width),
                None if config.ibot_head is None else _head(config.ibot_head, width),
                ClassHeads(width, linear),
                next(iter(classes)) if prototypes else None,
            )
            for role in ("student", "teacher")
        )
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
    """The centres of both heads' targets, at 0; None where a stage balances by Sinkhorn-Knopp."""
    if stage.loss.targets == "sinkhorn":
        return None
    heads = (config.dino_head, config.dino_head if config.ibot_head is None else config.ibot_head)
    return Centring([head.prototypes for head in heads], stage.loss.centre_momentum, device)


def student_and_teacher(
    config: Config, device: torch.device, classes: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> tuple[Model, Model]:
    """Both networks with the weights that the seed gives; the teacher starts as the student's copy."""
    student, teacher = networks(config, classes)
    student.init_weights(torch.Generator().manual_seed(config.seed))
    teacher.load_state_dict(student.state_dict())
    return student.to(device).train(), teacher.to(device).requires_grad_(False).eval()


def prepare(model: VisionTransformer, machine: MachineConfig, device: torch.device) -> None:
    """What changes a backbone's speed and memory and none of its numbers. Raises SettingsError."""
    model.recompute = machine.recompute
    model.attend_with(attention.pick(machine.attention, device))
    if machine.compile and len(model.sequences) > 1:
        raise SettingsError(
            "machine.compile=true: patients with different sequences make every batch's shapes new; use compile=false"
        )
    if machine.cuda_graphs and not machine.compile:
        raise SettingsError("machine.cuda_graphs=true: what is recorded is compiled blocks; set machine.compile=true")
    if machine.cuda_graphs and machine.parallel == "fsdp":
        raise SettingsError("machine.cuda_graphs=true: sharded parameters move; use machine.parallel=ddp")
    if machine.compile:
        learns = any(parameter.requires_grad for parameter in model.parameters())
        compiling.compile_blocks(model, replayed=machine.cuda_graphs and not learns)


def intensity(config: IntensityConfig) -> Intensity:
    """How HU become the network's input, in pretraining and in every probe."""
    return Intensity(window=tuple(config.window), mean=config.mean, std=config.std)


def labelling(config: DataConfig, split: Split) -> Labelling:
    """Whose class labels a training sees. Raises SettingsError for a column that the data set lacks."""
    there = split.dataset["classes"]
    if strange := [column for column in config.labels if column not in there]:
        has = f"it has {', '.join(there)}" if there else "it has none; shard with --labels CSV"
        raise SettingsError(f"data.labels: {strange[0]} is no label of {config.root}: {has}")
    if config.only_labelled and not config.labels:
        raise SettingsError("data.only_labelled: no label column is named; set data.labels")
    known = labels.known(split, config.labelled_share, config.labels) if config.labels else None
    only = np.flatnonzero(known) if config.only_labelled else None
    return Labelling(tuple(config.labels), known, only)


def reads_voxels(name: str, stage: StageConfig, split: Split) -> bool:
    """Whether stage `name` centres crops at labelled voxels. Raises SettingsError where the data set has no label."""
    if stage.crops.around_labels and not split.dataset["labels"]:
        raise SettingsError(
            f"stages.{name}.crops.around_labels=true: {split.root} has no label map; "
            "shard with label maps (--masks), or set it to false"
        )
    return stage.crops.around_labels


def classes(config: DataConfig, split: Split) -> dict[str, list[str]]:
    """The classes of each label column that a training learns."""
    return {column: split.dataset["classes"][column]["names"] for column in config.labels}


def class_weights(config: DataConfig, split: Split) -> dict[str, tuple[float, ...]]:
    """Weights of the classes of each label column, by inverse frequency in the split."""
    found = split.dataset["classes"]
    return {column: labels.balanced(found[column]["samples"][split.name]) for column in config.labels}


def view_settings(
    stage: StageConfig, intensity_config: IntensityConfig, sequences: Sequence[str] = (CT,)
) -> ViewSettings:
    """Crops and intensity augmentation of a stage."""
    crops, augment = stage.crops, stage.augment
    once = {key: tuple(each) if isinstance(each, list) else each for key, each in vars(augment.slice).items()}
    return ViewSettings(
        global_size=crops.global_size,
        global_scale=tuple(crops.global_scale),
        local_size=crops.local_size,
        local_number=crops.local_number,
        local_scale=tuple(crops.local_scale),
        scale_of=crops.scale_of,
        around_labels=crops.around_labels,
        aspect=tuple(crops.aspect),
        min_body=crops.min_body,
        body_threshold_hu=crops.body_threshold_hu,
        candidates=crops.candidates,
        flip=crops.flip,
        sequences=tuple(sequences),
        window_shift=augment.window_shift,
        mr_shift=augment.mr_shift,
        window_stretch=augment.window_stretch,
        noise_p=augment.noise_p,
        noise_std=augment.noise_std,
        blur_p=tuple(augment.blur_p),
        blur_sigma=tuple(augment.blur_sigma),
        gamma_p=tuple(augment.gamma_p),
        gamma=tuple(augment.gamma),
        slice=SliceSettings(**once),
        intensity=intensity(intensity_config),
        gram_size=stage.gram.size if stage.gram.teacher_from else None,
    )


def crop_variants(stage: StageConfig) -> list[StageConfig]:
    """The stage with each of its pairs of crop sizes: of its mixture, or its own alone."""
    if not stage.crops.mixture:
        return [stage]
    variants = []
    for pair in stage.crops.mixture:
        crops = replace(stage.crops, global_size=pair.global_size, local_size=pair.local_size, mixture=[])
        gram = replace(stage.gram, size=pair.gram_size or stage.gram.size)
        variants.append(replace(stage, crops=crops, gram=gram))
    return variants


def batch_plan(stage: StageConfig, seed: int) -> BatchPlan:
    """Crop sizes (a number among `crop_variants`) and batch of every step of a stage."""
    ratios = [pair.ratio for pair in stage.crops.mixture] or [1.0]
    scales = [Fraction(_pixels(variant), _pixels(stage)) for variant in crop_variants(stage)]
    return plan_batches(stage.steps, stage.batch_size, seed, ratios, scales)


def _pixels(stage: StageConfig) -> int:
    """Pixels that the student sees of one sample."""
    return 2 * stage.crops.global_size**2 + stage.crops.local_number * stage.crops.local_size**2


def masks(stage: StageConfig, config: Config, batch: Batch, size: int) -> torch.Tensor:
    """(2·B, S·P) masks of a batch's global crops of `size` pixels."""
    chosen = stage.masks
    patches = masking.sample(
        (size // config.model.patch_size,) * 2,
        batch.sample,
        batch.epoch,
        config.seed,
        probability=chosen.probability,
        ratio=tuple(chosen.ratio),
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
    """Weights and temperatures of the losses at one step, `now` being the schedules' values."""
    loss = stage.loss
    return StepWeights(
        student_temp=loss.student_temp,
        teacher_temp=now["teacher_temp"],
        dino=loss.dino,
        ibot=loss.ibot,
        dino_local=now["dino_local"],
        koleo=loss.koleo,
        classes=loss.classes,
        label_smoothing=loss.label_smoothing,
        class_weights=class_weights,
        class_temp=loss.class_temp if classifier == "prototypes" else None,
        koleo_group=loss.koleo_group,
        gram=now.get("gram_weight", 0.0),
        sinkhorn_iterations=loss.sinkhorn_iterations,
    )


def draws(config: Config, stage: StageConfig, batch: Batch, step: int) -> Draws:
    """What the student draws at one step of a stage beside views and masks."""
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


def refreshes(gram: GramConfig, done: int) -> bool:
    """Whether the Gram teacher becomes the present teacher after `done` steps of its stage."""
    if not gram.refresh_every or done % gram.refresh_every:
        return False
    return gram.refresh_most is None or done // gram.refresh_every <= gram.refresh_most


def schedules(stage: StageConfig) -> dict[str, np.ndarray]:
    """(steps,) values of what changes over a stage, by name."""
    found = {name: getattr(stage.optim, name).values(stage.steps) for name in SCHEDULES}
    found["dino_local"] = stage.loss.dino_local.values(stage.steps)
    if stage.gram.teacher_from:
        found["gram_weight"] = stage.gram.weight.values(stage.steps)
    return found


def described(values: Mapping[str, np.ndarray]) -> str:
    """The schedules of a stage in one line: first, peak and its step, last."""
    return ", ".join(f"{name} {summary(each)}" for name, each in values.items())


def optimizer(stage: StageConfig, student: nn.Module, depth: int) -> torch.optim.Optimizer:
    """AdamW over the student's groups of layer-wise decay."""
    groups = optim.build_groups(
        student.named_parameters(), depth, stage.optim.layer_decay, stage.optim.patch_embed_multiplier
    )
    return optim.adamw(groups, betas=tuple(stage.optim.betas))
