"""The paired difference of two probed encoders, or of two probes, on the same patients."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from eval.reporting import results
from eval.statistics import bootstrap, discordance
from eval.statistics.predictions import Prediction, Scored
from meddap.settings import SettingsError


def compare(before: Path, after: Path, probes: tuple[str, str] | None = None) -> list[dict[str, Any]]:
    """Return a row per probe, metric and label: the difference after − before with its interval.

    probes  one of `before` and one of `after` to compare; None compares each probe that both have with itself
    Raises SettingsError for a folder without predictions, without the probe, or of another task or patients.
    """
    stamps = tuple(_stamp(folder) for folder in (before, after))
    return [dict(row) for row in _compared(before, after, probes, stamps)]


def _stamp(folder: Path) -> int:
    """Return when a folder's predictions were written, so that a comparison is made again for others; 0: none there."""
    path = folder / "predictions.npz"
    return path.stat().st_mtime_ns if path.is_file() else 0


@lru_cache(maxsize=64)
def _compared(
    before: Path, after: Path, probes: tuple[str, str] | None, stamps: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Return the rows of `compare`, which a page asks for several times; they are not to be changed."""
    task, ours = results.read_predictions(before)
    other_task, theirs = results.read_predictions(after)
    if task["name"] != other_task["name"]:
        raise SettingsError(f"{after}: probes {other_task['name']}, but {before} {task['name']}; run the same task")
    rows: list[dict[str, Any]] = []
    pairs = [probes] if probes else [(name, name) for name in ours if name in theirs]
    for folder, found, wanted in zip((before, after), (ours, theirs), zip(*pairs)):
        if missing := [name for name in wanted if name not in found]:
            raise SettingsError(f"{folder}: has no probe {missing[0]}; it has {', '.join(found)}")
    for one, other in pairs:
        mine, its = ours[one], theirs[other]
        if mine.names != its.names:
            names = [", ".join(each.names) for each in (its, mine)]
            raise SettingsError(f"{after}: probes {names[0]}, but {before} {names[1]}; run the same task")
        name = one if one == other else f"{other} − {one}"
        shared = {"probe": name, "before": before.name, "after": after.name}
        shown = results.metrics_of(mine, task["metrics"])
        for metric in (name for name in shown if name in its.metrics()):
            try:
                figures = bootstrap.differences(mine, its, metric, task["draws"], task["seed"])
            except ValueError as error:
                raise SettingsError(f"{after}: {error}") from error
            rows += [{**shared, "metric": metric, "label": label, **each.row()} for label, each in figures.items()]
        rows += [{**shared, **row} for row in _mcnemar(mine, its, after)]
    return rows


def _mcnemar(one: Prediction, other: Prediction, after: Path) -> list[dict[str, Any]]:
    """Return rows of McNemar's test where both decide between classes; the value is the gain in accuracy."""
    if not (_decides(one) and _decides(other)):
        return []
    try:
        found = discordance.mcnemar(one, other)
    except ValueError as error:
        raise SettingsError(f"{after}: {error}") from error
    patients = len(np.unique(one.subjects))
    return [
        {
            **{"metric": "mcnemar", "label": label, "value": each.gain, "low": None, "high": None, "p": each.p},
            **{"patients": patients, "better": each.better, "worse": each.worse},
        }
        for label, each in found.items()
    ]


def _decides(prediction: Prediction) -> TypeGuard[Scored]:
    return isinstance(prediction, Scored) and prediction.kind in ("binary", "multilabel", "multiclass")
