"""The probes of each fold, fitted on the encoder in the window that its validation patients chose, or in its own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval import validation
from eval.config import TaskConfig
from eval.contract import Context, Fitted, Probe
from eval.data import features
from eval.data.cohorts import Base, Cohort
from eval.data.examples import Examples
from eval.data.splits import Fold
from eval.encoders import colours, stored_vectors, windows
from eval.encoders.encoder import FrozenEncoder
from eval.encoders.windows import Seen
from eval.probes import registry
from meddap import console
from meddap.settings import SettingsError


@dataclass(frozen=True)
class FittedFold:
    """The probes of one fold, by name, and the encoder in its window, whose features they were fitted on."""

    fold: Fold
    base: Base
    encoder: FrozenEncoder
    probes: dict[str, Fitted]


def fit_folds(
    probes: dict[str, Probe],
    folds: Sequence[Fold],
    frozen: FrozenEncoder,
    examples: Examples,
    task: TaskConfig,
    cache: Path,
    in_hu: bool,
) -> tuple[list[FittedFold], Seen, str]:
    """Fit every probe of every fold; return them, what the encoder saw, and the digest of all that the figures rest on.

    Where the task names windows to choose from, the validation patients of each fold choose one.
    """
    needs = {probe.reads(task) for probe in probes.values()}
    blocks: tuple[int, ...] = ()
    if not probes or "patches" in needs:
        blocks = registry.blocks(probes.values(), task, frozen.depth)
    choosing = bool(task.windows) and task.windows_as == "choice" and bool(probes)
    found: list[FittedFold] = []
    bases: dict[str, Base] = {}
    for fold in folds:
        one = frozen
        if choosing:
            best = validation.best(frozen, task, examples, fold, cache, blocks)
            console.say(f"{fold.name} {best.line()}".strip())
            one = best.encoder
        if one.digest not in bases:
            stored = features.extract(one, examples, task, cache, blocks) if needs != {"images"} else None
            channels = colours.of_images(one, task)
            bases[one.digest] = Base(examples, stored, task, cache, one.window, channels=channels)
        base = bases[one.digest]
        found.append(FittedFold(fold, base, one, _fit(probes, fold, base, Context(task, one, cache))))
    seen = [pair for each in found for pair in getattr(each.encoder, "windows", None) or [each.encoder.window]]
    hu = tuple(dict.fromkeys(windows.pairs(seen))) if in_hu else ()
    tried = windows.pairs(task.windows) if choosing else ()
    digest = "".join(bases) if len(bases) == 1 else hashlib.sha256("".join(bases).encode()).hexdigest()
    return found, Seen(hu, "validation" if choosing else "encoder", tried), digest


def decided(asked: TaskConfig, task: TaskConfig) -> windows.By:
    """Return who decided about a window that nobody chose: the task as it was asked, or with its training's source."""
    if task.windows:
        return "channels"
    return "task" if asked.window is not None else "encoder" if task.window is None else "training"


def images_in_hu(examples: Examples, task: TaskConfig) -> bool:
    """Return whether the images are in HU, by the first and the last. Raises SettingsError for windows of others."""
    if task.source == stored_vectors.NAME:
        if task.windows or task.window is not None:
            raise SettingsError("source=vectors: window and windows are those of the images; leave them out")
        return False
    ends = [examples.read(number).scale for number in {0, len(examples) - 1}]
    if task.windows and "hu" not in ends:
        raise SettingsError(f"windows={task.windows}: the images of {task.data} are not in HU; leave it out")
    if task.window is not None and "hu" not in ends:
        console.say(f"window={task.window}: has no effect, the images are not in HU")
    return "hu" in ends


def check_readable(probes: dict[str, Probe], task: TaskConfig) -> None:
    """Raise SettingsError for probes that read images where there are vectors alone, or several windows at once."""
    for name, probe in probes.items():
        if task.source == stored_vectors.NAME and probe.reads(task) != "pooled":
            raise SettingsError(f"source=vectors: {name} reads images or patches, which vectors lack; drop that probe")
        if task.windows_as != "channels":
            continue
        if probe.reads(task) == "images" or name in registry.SEE_IMAGES:
            raise SettingsError(
                f"windows_as=channels: {name} reads images of one window; leave it out of probes, or take "
                "windows_as=choice"
            )


def _fit(probes: dict[str, Probe], fold: Fold, base: Base, context: Context) -> dict[str, Fitted]:
    """Fit every probe on the training and validation patients of one fold."""
    train, val = (Cohort(name, base, fold.rows[name]) for name in ("train", "val"))
    fitted = {}
    for name, probe in probes.items():
        began = time.monotonic()
        fitted[name] = probe.fit(train, val, context)
        console.say(f"{fold.name} {name}: {time.monotonic() - began:.0f} s".strip())
    return fitted
