"""What a run of probes leaves behind.

results.jsonl      a row per probe, variant, metric and label:
                   task, probe, variant, metric, label (a name, `macro` over names, or `all`), split, value, low, high,
                   patients, leaks (eval.data.leaks.Leaks.row), confounded (sentences), site_told (eval.probes.site),
                   chosen_on_val, refitted, encoder, digest (of weights in their window), weights (digest of them
                   alone), window (eval.encoders.windows.Seen.row), dataset, test_opened, seed, draws, checkpoint
                   (as --checkpoint named it), tested (split.by),
                   preprocessing (eval.encoders.encoder.preprocessing)
predictions.npz    every prediction, for paired comparisons: arrays `<number>.<field>`, and `made`, JSON
test_opened.jsonl  a line for every time that the test patients were looked at
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from eval.config import TaskConfig
from eval.contract import Choices, Outcome
from eval.data import files
from eval.data.files import FileError
from eval.statistics import bootstrap
from eval.statistics.predictions import ON_REQUEST, Binned, Prediction, Scored, Tabled
from meddap.disk import write_atomic
from meddap.records import read_json_lines
from meddap.settings import SettingsError

HEADLINE = ("macro", "all")
_UNITS = {"hd95": "mm"}
_ROW = {  # the form (meddap.records) of a row as far as it is read again; figures may be null
    **dict.fromkeys(("task", "probe", "metric", "label"), str),
    **dict.fromkeys(("value", "low", "high"), object),
    **{"variant": dict, "patients": int},
}
_FORMS: dict[str, Callable[..., Prediction]] = {form.__name__: form for form in (Scored, Tabled, Binned)}


def rows(pooled: dict[str, list[Outcome]], choices: dict[str, Choices], task: TaskConfig) -> list[dict[str, Any]]:
    """Return a row per probe, variant, metric and label, with intervals by resampling patients."""
    found = []
    for probe, outcomes in pooled.items():
        for outcome in outcomes:
            for metric in metrics_of(outcome.prediction, task.metrics):
                shared: dict[str, Any] = {
                    "task": task.name,
                    "probe": probe,
                    "variant": outcome.variant,
                    "metric": metric,
                }
                shared |= {"split": "test", **choices[probe], "seed": task.seed, "draws": task.draws}
                figures = bootstrap.figures(outcome.prediction, metric, task.draws, task.seed)
                found += [{**shared, "label": label, **figure.row()} for label, figure in figures.items()]
    return found


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a probe's folder. Raises FileError for a file that is damaged or holds something else."""
    return read_json_lines(folder / "results.jsonl", _ROW, "probe again", FileError)


def metrics_of(prediction: Prediction, wanted: Sequence[str]) -> list[str]:
    """Return the wanted metrics that a prediction has; all that it has where it has none of these."""
    there, kind = prediction.metrics(), getattr(prediction, "kind", "")
    return [name for name in wanted if name in there] or [n for n in there if n not in ON_REQUEST.get(kind, ())]


def pooled(folds: Sequence[list[Outcome]]) -> list[Outcome]:
    """Return the outcomes of several folds as one: every patient is tested in one fold."""
    joined = []
    for same in zip(*folds):
        predictions = [outcome.prediction for outcome in same]
        joined.append(replace(same[0], prediction=_joined(predictions)))
    return joined


def _joined(folds: Sequence[Prediction]) -> Prediction:
    """Join the predictions of several folds, all of one form."""

    def column(name: str, axis: int = 0) -> np.ndarray:
        return np.concatenate([getattr(fold, name) for fold in folds], axis=axis)

    first = folds[0]
    if len(folds) == 1:
        return first
    if isinstance(first, Scored):
        scores, targets, keys = column("scores", axis=1), column("targets"), column("keys")
        return replace(first, scores=scores, targets=targets, keys=keys, subjects=column("subjects"))
    if isinstance(first, Tabled):
        tables = [fold.values for fold in folds if isinstance(fold, Tabled)]
        values = {name: np.concatenate([table[name] for table in tables], axis=1) for name in first.values}
        return replace(first, values=values, subjects=column("subjects"))
    assert isinstance(first, Binned)
    positive, negative = column("positive", axis=-2), column("negative", axis=-2)
    return replace(first, positive=positive, negative=negative, subjects=column("subjects"))


def words(variant: dict) -> str:
    """Return a variant as text that follows the probe's name."""
    shown = {key: f"{value:g}" if isinstance(value, float) else value for key, value in variant.items()}
    return "".join(f" {key} {value}" for key, value in shown.items())


def with_unit(metric: str) -> str:
    """Return a metric with its unit, where it has one whatever the task."""
    return f"{metric} ({_UNITS[metric]})" if metric in _UNITS else metric


def save_predictions(path: Path, pooled_outcomes: dict[str, list[Outcome]], task: TaskConfig) -> None:
    """Write every array of every prediction as `<number>.<field>`, and in `made` what they are."""
    arrays, described = {}, []
    flat = [(probe, outcome) for probe, outcomes in pooled_outcomes.items() for outcome in outcomes]
    names = [probe + words(outcome.variant) for probe, outcome in flat]
    assert len(set(names)) == len(names), f"two outcomes of one name, of which one would be lost: {names}"
    for number, (probe, outcome) in enumerate(flat):
        plain = {}
        for name, value in vars(outcome.prediction).items():
            if isinstance(value, np.ndarray):
                arrays[f"{number}.{name}"] = value
            elif isinstance(value, dict):
                arrays |= {f"{number}.{name}.{key}": array for key, array in value.items()}
            else:
                plain[name] = value
        form = type(outcome.prediction).__name__
        described.append({"probe": probe, "variant": outcome.variant, "form": form, "plain": plain})
    made = {"task": asdict(task), "predictions": described}
    files.write_arrays(path, {"made": np.array(json.dumps(made)), **arrays})


def read_predictions(folder: Path) -> tuple[dict, dict[str, Prediction]]:
    """Return the task and the predictions by probe and variant of a probe's folder.

    Raises SettingsError where it has none, FileError where they are damaged.
    """
    path = folder / "predictions.npz"
    if not path.is_file():
        raise SettingsError(f"{path}: not found; run eval.probe --output {folder} first")
    remedy = "probe again"
    arrays = files.read_arrays(path, remedy)
    found: dict[str, Prediction] = {}
    with files.reading(path, remedy):
        made = json.loads(str(arrays["made"]))
        for number, each in enumerate(made["predictions"]):
            fields: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in each["plain"].items()
            }
            for name in arrays:
                if name.startswith(f"{number}."):
                    _, field, *key = name.split(".", 2)
                    if key:
                        fields.setdefault(field, {})[key[0]] = arrays[name]
                    else:
                        fields[field] = arrays[name]
            found[each["probe"] + words(each["variant"])] = _FORMS[each["form"]](**fields)
    return made["task"], found


def record_opening(output: Path, source: str, digest: str, task: TaskConfig, version: str) -> int:
    """Record that the test patients are looked at now; return how often this output did so, now included.

    source, digest  of the encoder in its window
    """
    path = output / "test_opened.jsonl"
    with files.reading(path, "mend it: it counts how often the test patients were looked at"):
        before = path.read_text() if path.is_file() else ""
    line = {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "encoder": source,
        "digest": digest,
        "dataset": version,
        "task": task.name,
        "probes": list(task.probes),
    }
    write_atomic(path, (before + json.dumps(line) + "\n").encode())
    return before.count("\n") + 1
