"""What a stage's settings must satisfy so that it can be trained and each of them does what it says.

Tens of GPUs may run for weeks on a rate that a forgotten warm-up turned into another one. So whatever is named over
the steps of a stage takes effect in it, or the stage is refused before it begins. All raise SettingsError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_prep.settings import SettingsError
from pretrain import schedules

if TYPE_CHECKING:
    from pretrain.config import Config, ScheduleConfig, StageConfig


def check_model(config: Config) -> None:
    """The sequences that are read are those that the model tells apart, or one."""
    names, known = config.data.sequences, config.model.sequences
    for key, each in (("data", names), ("model", known)):
        if len(set(each)) < len(each):
            raise SettingsError(f"{key}.sequences={each}: a name stands there twice")
    if not names:
        raise SettingsError("data.sequences=[]: name at least one, e.g. [ct]")
    if not known and len(names) > 1:
        raise SettingsError(f"data.sequences={names}: the model tells none apart; set model.sequences={names}")
    if known and (missing := [name for name in names if name not in known]):
        raise SettingsError(
            f"data.sequences: {missing[0]} is not in model.sequences={known}; add it there (trained weights: a new row)"
        )


def check_stage(where: str, stage: StageConfig, patch_size: int) -> None:
    """All that one stage says by itself; `where` is its key, stages.NAME."""
    _check_sizes(where, stage, patch_size)
    _check_draws(where, stage)
    _check_steps(where, stage)


def _check_sizes(where: str, stage: StageConfig, patch_size: int) -> None:
    sizes = {f"crops.{key}": getattr(stage.crops, key) for key in ("global_size", "local_size")}
    if stage.gram.teacher_from:
        sizes["gram.size"] = stage.gram.size
    for number, pair in enumerate(stage.crops.mixture):
        if pair.ratio <= 0:
            raise SettingsError(f"{where}.crops.mixture[{number}].ratio={pair.ratio}: must be above 0")
        found = {key: getattr(pair, key) for key in ("global_size", "local_size", "gram_size")}
        sizes |= {f"crops.mixture[{number}].{key}": size for key, size in found.items() if size}
    for key, size in sizes.items():
        if size % patch_size:
            raise SettingsError(f"{where}.{key}={size}: no multiple of model.patch_size={patch_size}")
    if stage.loss.koleo_group is not None and stage.loss.koleo_group < 2:
        raise SettingsError(
            f"{where}.loss.koleo_group={stage.loss.koleo_group}: one image has no neighbour; 2 or more, or null"
        )


def _check_draws(where: str, stage: StageConfig) -> None:
    augment = stage.augment
    for key in ("blur_p", "gamma_p"):
        if len(found := getattr(augment, key)) != 3:
            raise SettingsError(
                f"{where}.augment.{key}={found}: expected three probabilities, of global 1, global 2, local crops"
            )
    positive = {"gamma": augment.gamma, "slice.gamma": augment.slice.gamma}
    positive |= {"slice.low_resolution": augment.slice.low_resolution}
    for key, found in positive.items():
        if len(found) != 2 or not 0 < found[0] <= found[1]:
            raise SettingsError(f"{where}.augment.{key}={found}: expected the least and the largest value, above 0")


def _check_steps(where: str, stage: StageConfig) -> None:
    """Nothing that is named over a stage's steps is without effect, and no rate leaves it learning nothing."""
    if stage.steps < 1:
        raise SettingsError(f"{where}.steps={stage.steps}: give 1 or more")
    optim = f"{where}.optim"
    _check(f"{optim}.lr", stage.optim.lr, stage.steps, floor=0.0, idle=0.0, why="the student would learn nothing")
    _check(f"{optim}.weight_decay", stage.optim.weight_decay, stage.steps, floor=0.0)
    why = "the teacher would stay as it is"
    momentum = stage.optim.teacher_momentum
    _check(f"{optim}.teacher_momentum", momentum, stage.steps, floor=0.0, top=1.0, idle=1.0, why=why)
    _check(f"{optim}.teacher_temp", stage.optim.teacher_temp, stage.steps, floor=1e-6)
    _check(f"{where}.loss.dino_local", stage.loss.dino_local, stage.steps, floor=0.0)
    if stage.gram.teacher_from:
        # 0 throughout is allowed: it measures without holding
        _check(f"{where}.gram.weight", stage.gram.weight, stage.steps, floor=0.0)
    for key, what in (("freeze_last_layer_steps", "the prototypes"), ("freeze_backbone_steps", "the backbone")):
        if (frozen := getattr(stage.optim, key)) and not 0 <= frozen < stage.steps:
            raise SettingsError(
                f"{optim}.{key}={frozen}: the stage has {stage.steps} steps, so {what} would never learn; "
                f"give fewer than {stage.steps}"
            )
    _check_refreshing(where, stage)


def _check(
    key: str,
    schedule: ScheduleConfig,
    steps: int,
    *,
    floor: float,
    top: float | None = None,
    idle: float | None = None,
    why: str = "",
) -> None:
    """Raise SettingsError where a number has no effect, a value lies outside floor … top, or all of them are `idle`."""
    found = schedules.fault(
        start=schedule.start,
        peak=schedule.peak,
        end=schedule.end,
        warmup_steps=schedule.warmup_steps,
        total_steps=steps,
        cosine_steps=schedule.cosine_steps,
    )
    if found:
        name, remedy = found
        raise SettingsError(f"{key}.{name}={getattr(schedule, name)}: {remedy}")
    values = schedule.values(steps)
    if values.min() < floor or (top is not None and values.max() > top):
        worst = values.min() if values.min() < floor else values.max()
        allowed = f"{floor:g} or more" if top is None else f"{floor:g} to {top:g}"
        raise SettingsError(f"{key}: reaches {worst:g}; give numbers from {allowed}")
    if idle is not None and (values == idle).all():
        raise SettingsError(f"{key}.peak={schedule.peak:g}: {idle:g} in every one of {steps} steps, {why}")


def _check_refreshing(where: str, stage: StageConfig) -> None:
    gram = stage.gram
    if gram.refresh_every and not 0 < gram.refresh_every <= stage.steps:
        raise SettingsError(
            f"{where}.gram.refresh_every={gram.refresh_every}: the stage has {stage.steps} steps, so the Gram teacher "
            "would never be refreshed; give fewer, or 0 for never"
        )
    if gram.refresh_most is not None and not gram.refresh_every:
        raise SettingsError(
            f"{where}.gram.refresh_most={gram.refresh_most}: needs gram.refresh_every; set that, or leave this out"
        )
