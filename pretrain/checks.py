"""What a stage's settings must satisfy so that it can be trained and each of them does what it says.

Tens of GPUs may run for weeks at a rate that a forgotten warm-up turned into another one. So every number that is set
over a stage's steps takes effect, or the stage is refused before it begins. All checks raise SettingsError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.schema import CHANNELS
from meddap.ranges import check_ranges
from meddap.settings import SettingsError
from pretrain import ranges, schedules, shares
from pretrain.config import (
    ColourAugmentConfig,
    Config,
    IntensityConfig,
    ScheduleConfig,
    SourceConfig,
    StageConfig,
    gram_teacher_place,
    recorded,
)

_NAME = re.compile(r"[A-Za-z0-9_-]+")  # of a source: part of a metric's name and of an override's key


def stage(config: Config, name: str) -> StageConfig:
    """Return stage `name` as it is trained: `config.recorded`, checked.

    Raises SettingsError for what cannot be trained or would not take effect.
    """
    merged = recorded(config, name)
    check_model(config)
    check_stage(f"stages.{name}", merged, config.model.patch_size)
    _check_colour(f"stages.{name}", merged, config.model.channels)
    if merged.gram.teacher_from:
        _check_gram_teacher(config, name, merged.gram.teacher_from)
    return merged


def check_model(config: Config) -> None:
    """Check numbers of the model, its heads and its machine, and names of runs, stages and sequences."""
    check_ranges("", config, ranges.MODEL)
    _check_channels(config)
    if not config.name.strip("./") or ".." in Path(config.name).parts or Path(config.name).is_absolute():
        raise SettingsError(f"name={config.name!r}: the run's folder would not lie below output; give another name")
    if not config.name.isprintable():
        raise SettingsError(f"name={config.name!r}: holds line ends or other control characters; give another name")
    if strange := [name for name in config.stages if not name.strip(".") or "/" in name]:
        raise SettingsError(f"stages.{strange[0]}: a stage is a folder of the run; give it a plain name")
    names, known = config.data.sequences, config.model.sequences
    for key, each in (("data", names), ("model", known)):
        if len(set(each)) < len(each):
            raise SettingsError(f"{key}.sequences={each}: duplicate name; list each once")
    if not names:
        raise SettingsError("data.sequences=[]: name at least one, e.g. [ct]")
    if not known and len(names) > 1:
        raise SettingsError(f"data.sequences={names}: model.sequences is empty; set model.sequences={names}")
    if known and (missing := [name for name in names if name not in known]):
        raise SettingsError(
            f"data.sequences: {missing[0]} is not in model.sequences={known}; add it there (trained weights: a new row)"
        )
    _check_sources(config, names)


def _check_channels(config: Config) -> None:
    """Check that channels are 1 or 3, and that no mean or deviation of the other kind of model is set."""
    channels = config.model.channels
    if channels not in CHANNELS:
        raise SettingsError(f"model.channels={channels}: take 1 (grey) or 3 (red, green and blue)")
    unused, used = (("mean", "std"), "rgb_") if channels == 3 else (("rgb_mean", "rgb_std"), "")
    usual = IntensityConfig()
    places: list[tuple[str, object, object]] = [("intensity", config.intensity, usual)]
    places += [(f"data.sources.{name}", source, SourceConfig()) for name, source in config.data.sources.items()]
    for where, given, default in places:
        for key in unused:
            if (value := getattr(given, key)) != getattr(default, key):
                instead = used + key.removeprefix("rgb_")
                raise SettingsError(
                    f"{where}.{key}={value}: does nothing with model.channels={channels}; set {where}.{instead}"
                )


def _check_colour(where: str, stage: StageConfig, channels: int) -> None:
    """Check that colours are changed in a model that sees them alone."""
    if channels == 3:
        return
    for name, usual in vars(ColourAugmentConfig()).items():
        if (value := getattr(stage.augment.colour, name)) != usual:
            raise SettingsError(
                f"{where}.augment.colour.{name}={value}: needs model.channels=3; set that, or leave it out"
            )


def _check_sources(config: Config, names: list[str]) -> None:
    """Check what is said of each source, as far as that needs no data; `names` are all sequences that are read."""
    sources, temperature = config.data.sources, config.data.temperature
    if not sources:
        if temperature != 1:
            raise SettingsError(f"data.temperature={temperature:g}: there is one data set; leave it out")
        return
    if config.data.root:
        raise SettingsError(f"data.root={config.data.root}: there are data.sources too; give one of the two")
    for name, source in sources.items():
        where = f"data.sources.{name}"
        if not _NAME.fullmatch(name):
            raise SettingsError(f"{where}: a name has letters, digits, _ and - alone; give another one")
        check_ranges(f"{where}.", source, ranges.SOURCE)
        if len(set(source.sequences)) < len(source.sequences):
            raise SettingsError(f"{where}.sequences={source.sequences}: duplicate name; list each once")
        if missing := [each for each in source.sequences if each not in names]:
            raise SettingsError(
                f"{where}.sequences: {missing[0]} is not among the sequences that are read, {names}; add it to "
                "model.sequences, and to data.sequences where that is given"
            )
    if temperature != 1 and all(source.weight is not None for source in sources.values()):
        raise SettingsError(
            f"data.temperature={temperature:g}: every source has a weight, so sizes do not count; leave one of them out"
        )
    weights = [source.weight for source in sources.values()]
    try:
        shares.divide(list(sources), [1] * len(weights), weights)
    except ValueError as error:
        raise SettingsError(f"data.sources: {error}") from error


def check_stage(where: str, stage: StageConfig, patch_size: int) -> None:
    """Check all that one stage says by itself; `where` is its key, stages.NAME."""
    check_ranges(f"{where}.", stage, ranges.STAGE)
    for number, pair in enumerate(stage.crops.mixture):
        check_ranges(f"{where}.crops.mixture[{number}].", pair, ranges.PAIR)
    _check_sizes(where, stage, patch_size)
    _check_steps(where, stage)


def _check_gram_teacher(config: Config, name: str, teacher_from: str) -> None:
    where = f"stages.{name}.gram.teacher_from={teacher_from}"
    stages = list(config.stages)
    try:
        stage_name, step = gram_teacher_place(teacher_from)
    except ValueError as error:
        raise SettingsError(f"{where}: expected STAGE or STAGE/STEP") from error
    if stage_name not in stages[: stages.index(name)]:
        raise SettingsError(f"{where}: no stage before {name} is called {stage_name}")
    last = recorded(config, stage_name).steps
    if step is not None and not 0 < step <= last:
        raise SettingsError(f"{where}: stage {stage_name} has steps 1 to {last}")


def _check_sizes(where: str, stage: StageConfig, patch_size: int) -> None:
    sizes = {f"crops.{key}": getattr(stage.crops, key) for key in ("global_size", "local_size")}
    if stage.gram.teacher_from:
        sizes["gram.size"] = stage.gram.size
    for number, pair in enumerate(stage.crops.mixture):
        found = {key: getattr(pair, key) for key in ("global_size", "local_size", "gram_size")}
        sizes |= {f"crops.mixture[{number}].{key}": size for key, size in found.items() if size}
    for key, size in sizes.items():
        if size % patch_size:
            raise SettingsError(f"{where}.{key}={size}: not a multiple of model.patch_size={patch_size}")
    _check_gram_size(where, stage)
    _check_masks(where, stage)
    if (group := stage.loss.koleo_group) is not None and group > stage.batch_size:
        raise SettingsError(
            f"{where}.loss.koleo_group={group}: a batch has {stage.batch_size} images; give fewer, or null for all"
        )


def _check_gram_size(where: str, stage: StageConfig) -> None:
    """Check that the Gram teacher's crops are not coarser than the student's."""
    if not stage.gram.teacher_from:
        return
    pairs = [(pair.gram_size or stage.gram.size, pair.global_size) for pair in stage.crops.mixture]
    for gram, whole in pairs or [(stage.gram.size, stage.crops.global_size)]:
        if gram < whole:
            raise SettingsError(
                f"{where}.gram.size={gram}: coarser than the student's crops of {whole} pixels; give {whole} or more"
            )


def _check_masks(where: str, stage: StageConfig) -> None:
    """Check that patches are masked where iBOT learns from them."""
    masks = stage.masks
    if stage.loss.ibot and not masks.sequence_probability and not int(2 * stage.batch_size * masks.probability):
        raise SettingsError(
            f"{where}.masks.probability={masks.probability}: masks none of the {2 * stage.batch_size} global crops of "
            "a batch, and iBOT learns from masked ones; give more, or loss.ibot=0"
        )


def _check_steps(where: str, stage: StageConfig) -> None:
    """Check that every number over a stage's steps takes effect and that no rate leaves it learning nothing."""
    if stage.steps < 1:
        raise SettingsError(f"{where}.steps={stage.steps}: give 1 or more")
    found = list(_without_effect(stage))
    if found:
        others = ", ".join(setting for setting, _ in found[1:])
        also = f" (and correct {others})" if others else ""
        setting, remedy = found[0]
        raise SettingsError(f"{where}.{setting}: {remedy}{also}")


def _without_effect(stage: StageConfig) -> Iterator[tuple[str, str]]:
    """Yield `key=value` below the stage, and the remedy, for each number that does not fit the stage's steps."""
    optim, steps = stage.optim, stage.steps
    yield from _of_schedule("optim.lr", optim.lr, steps, idle=0.0, why="the student would learn nothing")
    yield from _of_schedule("optim.weight_decay", optim.weight_decay, steps)
    why = "the teacher would stay as it is"
    yield from _of_schedule("optim.teacher_momentum", optim.teacher_momentum, steps, top=1.0, idle=1.0, why=why)
    yield from _of_schedule("optim.teacher_temp", optim.teacher_temp, steps, floor=1e-6)
    yield from _of_schedule("loss.dino_local", stage.loss.dino_local, steps)
    if stage.gram.teacher_from:
        yield from _of_schedule("gram.weight", stage.gram.weight, steps)  # 0 throughout measures without holding
    for key, what in (("freeze_last_layer_steps", "the prototypes"), ("freeze_backbone_steps", "the backbone")):
        if (frozen := getattr(optim, key)) >= steps:
            remedy = f"the stage has {steps} steps, so {what} would never learn; give fewer than {steps}"
            yield f"optim.{key}={frozen}", remedy
    every, most = stage.gram.refresh_every, stage.gram.refresh_most
    if every >= steps:
        remedy = f"the stage has {steps} steps, so the Gram teacher would never be refreshed; give fewer, 0 for never"
        yield f"gram.refresh_every={every}", remedy
    if most is not None and not every:
        yield f"gram.refresh_most={most}", "needs gram.refresh_every; set that, or leave this out"


def _of_schedule(
    key: str,
    schedule: ScheduleConfig,
    steps: int,
    *,
    floor: float = 0.0,
    top: float | None = None,
    idle: float | None = None,
    why: str = "",
) -> Iterator[tuple[str, str]]:
    """Yield a number without effect, values outside floor … top, or a schedule that is `idle` throughout."""
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
        yield f"{key}.{name}={getattr(schedule, name)}", remedy
        return
    values = schedule.values(steps)
    if not np.isfinite(values).all():
        yield f"{key}={values[~np.isfinite(values)][0]}", "give finite numbers"
        return
    worst = values.min() if values.min() < floor else values.max()
    if worst < floor or (top is not None and worst > top):
        allowed = f"{floor:g} or more" if top is None else f"{floor:g} to {top:g}"
        yield f"{key}={worst:g}", f"give numbers from {allowed}"
    elif idle is not None and (values == idle).all():
        yield f"{key}.peak={schedule.peak:g}", f"{idle:g} in every one of {steps} steps, {why}"
