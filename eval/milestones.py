"""Every kept teacher of a run, probed on validation patients alone; no image of a test patient is read.

Training patients fit the probe of the task's main figure, validation patients choose its settings and are scored. The
scores are optimistic for that reason, equally so for every teacher: they serve to compare, and the test says how much
is left.

RUN/choose/TASK/validation/STAGE-STEP/predictions.npz  predictions of the validation patients, and of.json: of what
RUN/choose/TASK/cache/                                 label maps; features only while they are needed
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from eval import validation
from eval.config import TaskConfig, check
from eval.data import leaks, sources, splits
from eval.data.examples import Examples
from eval.data.splits import Fold
from eval.encoders import encoder, windows
from eval.encoders.encoder import FrozenEncoder
from eval.probes import registry
from eval.reporting import main_figure, results
from eval.reporting.main_figure import MainFigure
from eval.statistics.predictions import Prediction
from meddap import console
from meddap.disk import write_atomic
from meddap.errors import MeddapError
from meddap.records import read_json
from meddap.settings import SettingsError
from pretrain.config import load, recorded
from pretrain.runtime import checkpoint
from pretrain.runtime.checkpoint import Checkpoint, CheckpointError


@dataclass(frozen=True)
class Milestone:
    """A kept checkpoint of a run; `seen`: steps of all stages up to it."""

    place: Checkpoint
    seen: int

    @property
    def name(self) -> str:
        """STAGE/STEP."""
        return f"{self.place.path.parent.name}/{self.place.path.name}"


@dataclass(frozen=True)
class Scores:
    """A milestone's prediction of the validation patients.

    loaded  digest of its encoder; digest: in the window that it was probed in
    """

    loaded: str
    digest: str
    prediction: Prediction


@dataclass(frozen=True)
class Validated:
    """A task's milestones, the start first; those with the very weights of an earlier one are left out.

    task       with its window, and all of its probes
    figure     by which they are compared; scores: milestone's name → its prediction
    dataset    hash of data and labels; notes: what the user is told
    """

    task: TaskConfig
    figure: MainFigure
    scores: dict[str, Scores]
    dataset: str
    notes: tuple[str, ...]


def of_run(run: Path) -> tuple[list[Milestone], list[str]]:
    """Return the checkpoints that a run keeps, in the order of training, and what to say of those left out.

    Raises SettingsError for a folder that is no run or keeps no start, CheckpointError for a start that is damaged.
    """
    if not (run / "config.yaml").is_file():
        raise SettingsError(f"{run}: not a run (no config.yaml); name a folder that pretrain.train wrote")
    config = load(run / "config.yaml")
    found: list[Milestone] = []
    said, before = [], 0
    for name in config.stages:
        steps = recorded(config, name).steps
        for path in checkpoint.steps(run / name):
            try:
                found.append(Milestone(checkpoint.read(path), before + int(path.name)))
            except CheckpointError as error:
                if not found:
                    raise
                said.append(f"left out: {error}")
        last = found[-1].seen if found else 0
        before += steps
        if last < before:
            said.append(f"training has not ended: stage {name} has kept step {last - before + steps} of {steps}")
            break
    if not found or found[0].seen:
        raise SettingsError(f"{run}: keeps no step 00000000 of its first stage, which others are compared with")
    if len(found) == 1:
        raise SettingsError(f"{run}: keeps nothing but its start; train on, or keep more with save.keep_every=STEPS")
    return found, said


def validated(run: Path, milestones: list[Milestone], task: TaskConfig, folder: Path) -> Validated:
    """Return the validation patients' predictions by every milestone, those of an earlier start from `folder`.

    Raises SettingsError for a task whose every patient is tested, and whatever probing raises for the start.
    """
    check(task)
    if task.split.by in ("kfold", "site"):
        raise SettingsError(
            f"{task.name}: split.by={task.split.by} tests every patient, which leaves none to choose on; "
            "take split.by=given or patient"
        )
    wanted = main_figure.wanted(task.main, task.probes, task.metrics)
    if not wanted and not set(task.probes) - set(registry.SCRATCH):
        raise SettingsError(f"{task.name}: no probe of {', '.join(task.probes)} reads the encoder; add one to probes")
    newest = str(milestones[-1].place.path)
    task, about_window = windows.chosen(newest, task)
    examples, fold, cache = *_seen(task, folder / "cache"), folder / "cache"
    notes = [about_window] if about_window else []
    shown = Fold("", {"train": fold.rows["train"], "val": fold.rows["val"][:0], "test": fold.rows["val"]})
    found_leaks = leaks.check(newest, task, examples, [shown], cache, "validation")
    notes += found_leaks.lines("validation")
    patients = len(np.unique(examples.subjects[fold.rows["val"]]))
    if patients < 2:
        raise SettingsError(f"{task.data}: {patients} validation patient; choosing needs two or more: see split.val")
    if patients < 10:
        notes.append(f"few validation patients ({patients}): the choice is a coarse one")
    figure: MainFigure | None = None
    scores: dict[str, Scores] = {}
    for number, each in enumerate(milestones, 1):
        try:
            frozen = encoder.load(str(each.place.path), task)
        except MeddapError as error:
            if number == 1:
                raise
            notes.append(f"left out: {error}")
            continue
        if frozen.digest in [known.loaded for known in scores.values()]:
            continue  # a stage begins with the weights that the one before it ended with
        console.say(f"{task.name}: {each.name} ({number} of {len(milestones)})")
        place = folder / "validation" / each.name.replace("/", "-")
        name, scores[each.name] = _stored_or_made(frozen, task, examples, fold, figure, place, cache)
        figure = figure or name
    assert figure is not None
    return Validated(task, figure, scores, examples.version, tuple(notes))


def _seen(task: TaskConfig, cache: Path) -> tuple[Examples, Fold]:
    """Return the examples of training and validation patients alone, and which is which."""
    everyone = sources.load(task, cache)
    if not everyone.names:
        raise SettingsError(f"{task.data}: no labels, so nothing to choose by")
    (fold,) = splits.folds(everyone, task)
    train, val = fold.rows["train"], fold.rows["val"]
    rows = {"train": np.arange(len(train)), "val": len(train) + np.arange(len(val))}
    return everyone.take(np.concatenate([train, val])), Fold("", rows)


def _stored_or_made(
    frozen: FrozenEncoder,
    task: TaskConfig,
    examples: Examples,
    fold: Fold,
    figure: MainFigure | None,
    place: Path,
    cache: Path,
) -> tuple[MainFigure, Scores]:
    """Return a milestone's main figure and scores: as kept in `place`, or made now and kept."""
    parts = (frozen.digest, examples.version, examples.digests.tobytes().hex(), sorted(asdict(task).items()))
    key = hashlib.sha256(repr(parts).encode()).hexdigest()
    try:
        record = read_json(place / "of.json", {"key": str, "digest": str}, "")
        if record["key"] == key:
            _, predictions = results.read_predictions(place)
            if kept := main_figure.find(task.kind, task.metrics, task.main, predictions, registry.SCRATCH):
                return kept, Scores(frozen.digest, record["digest"], predictions[kept.probe])
    except MeddapError:  # none there yet, or a damaged one
        pass
    made = validation.best(frozen, task, examples, fold, cache, figure=figure)
    results.save_predictions(place / "predictions.npz", {made.figure.probe.partition(" ")[0]: made.outcomes}, task)
    write_atomic(place / "of.json", (json.dumps({"key": key, "digest": made.encoder.digest}) + "\n").encode())
    for old in cache.glob("features-*"):
        shutil.rmtree(old)
    if made.tried:
        console.say(made.line())
    return made.figure, Scores(frozen.digest, made.encoder.digest, made.prediction)
