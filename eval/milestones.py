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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from eval.config import TaskConfig, check
from eval.contract import Context
from eval.data import features, leaks, sources, splits
from eval.data.cohorts import Base, Cohort
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
    """A milestone's prediction of the validation patients, and the digest of its encoder."""

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
    main_figure.wanted(task.main, task.probes, task.metrics)
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
        if frozen.digest in [known.digest for known in scores.values()]:
            continue  # a stage begins with the weights that the one before it ended with
        console.say(f"{task.name}: {each.name} ({number} of {len(milestones)})")
        place = folder / "validation" / each.name.replace("/", "-")
        name, prediction = _stored_or_made(frozen, task, examples, fold, figure, place, cache)
        figure = figure or name
        scores[each.name] = Scores(frozen.digest, prediction)
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
) -> tuple[MainFigure, Prediction]:
    """Return a milestone's main figure and prediction: as kept in `place`, or made now and kept."""
    parts = (frozen.digest, examples.version, examples.digests.tobytes().hex(), sorted(asdict(task).items()))
    key = hashlib.sha256(repr(parts).encode()).hexdigest()
    try:
        if read_json(place / "of.json", {"key": str}, "")["key"] == key:
            _, predictions = results.read_predictions(place)
            if kept := main_figure.find(task.kind, task.metrics, task.main, predictions, registry.SCRATCH):
                return kept, predictions[kept.probe]
    except MeddapError:  # none there yet, or a damaged one
        pass
    probes = [figure.probe.partition(" ")[0]] if figure else _candidates(task, frozen)
    outcomes = {probe: _predicted(probe, frozen, task, examples, fold, cache) for probe in probes}
    predictions = {
        probe + results.words(each.variant): each.prediction for probe, found in outcomes.items() for each in found
    }
    main = main_figure.find(task.kind, task.metrics, task.main, predictions, registry.SCRATCH)
    if main is None:
        metrics = " or ".join(main_figure.metrics_of(task.kind, task.metrics, task.main))
        raise SettingsError(f"{task.name}: no probe of {', '.join(task.probes)} gives {metrics}; see main=PROBE/METRIC")
    probe = main.probe.partition(" ")[0]
    results.save_predictions(place / "predictions.npz", {probe: outcomes[probe]}, task)
    write_atomic(place / "of.json", (json.dumps({"key": key}) + "\n").encode())
    for old in cache.glob("features-*"):
        shutil.rmtree(old)
    return main, predictions[main.probe]


def _candidates(task: TaskConfig, frozen: FrozenEncoder) -> list[str]:
    """Return the probes that may give the main figure: the one that `main` names, else all that read an encoder."""
    if known := main_figure.wanted(task.main, task.probes):
        return [known.partition(" ")[0]]
    reading = [name for name in task.probes if name not in registry.SCRATCH]
    return list(registry.answerable(registry.find(reading, task.kind, task.level), frozen)[0])


def _predicted(
    probe: str, frozen: FrozenEncoder, task: TaskConfig, examples: Examples, fold: Fold, cache: Path
) -> list[results.Outcome]:
    """Fit one probe on training patients; return what it predicts for the validation patients."""
    task = replace(task, probes=[probe], refit=False)
    row = registry.find(task.probes, task.kind, task.level)[probe]
    needs, found = row.reads(task), None
    if needs != "images":
        blocks = registry.blocks([row], task, frozen.depth) if needs == "patches" else ()
        found = features.extract(frozen, examples, task, cache, blocks)
    base = Base(examples, found, task, cache, frozen.window)
    train, val = (Cohort(name, base, fold.rows[name]) for name in ("train", "val"))
    return list(row.fit(train, val, Context(task, frozen, cache)).predict(val))
