"""Which windows in HU an encoder sees a task's images in, and what results say of it.

A window decides what an encoder can tell: in one of soft tissue all of the lung is black. So a comparison is fair where
both encoders have the same choice, and each row of results says what its encoder saw. Mean and standard deviation that
training read shards with come the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data_prep.schema import read_dataset
from eval.config import TaskConfig
from pretrain.runtime.checkpoint import CheckpointError
from pretrain.weights import encoder

_SHARDS = ("shards", "table")  # sources of examples that read shards
By = Literal["encoder", "training", "task", "validation", "channels"]
_BY = {
    "encoder": "the encoder's own",
    "training": "as training read these shards",
    "task": "set by the task",
    "channels": "several at once, as channels",
}


@dataclass(frozen=True)
class Seen:
    """What an encoder saw.

    hu     (low, high) of the window, of each fold's where validation patients of folds chose differently, or of all
           channels; () for images that are not in HU
    by     who decided: the encoder, its training's source, the task, validation patients, or all at once
    tried  windows that validation patients chose between
    """

    hu: tuple[tuple[float, float], ...]
    by: By
    tried: tuple[tuple[float, float], ...] = ()

    def row(self) -> dict[str, Any]:
        """Return it as JSON, for rows of results."""
        return {"hu": [list(pair) for pair in self.hu], "by": self.by, "tried": [list(pair) for pair in self.tried]}


def pairs(windows: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    """Return windows of a task as pairs."""
    return tuple((float(low), float(high)) for low, high in windows)


def told(row: Mapping[str, Any]) -> str:
    """Return in words what a row of results says of its encoder's window; "" for rows that do not say it."""
    seen = row.get("window")
    if not isinstance(seen, Mapping):
        return ""
    if not seen["hu"]:
        return "images that are not in HU, without a window"
    said = f"{' and '.join(shown(pair) for pair in seen['hu'])} HU"
    if seen["by"] == "validation":
        return f"{said} (chosen on validation patients among {len(seen['tried'])})"
    return f"{said} ({_BY[seen['by']]})"


def shown(pair: Sequence[float]) -> str:
    """Return a window as text, without its unit."""
    return f"{pair[0]:g} to {pair[1]:g}"


def chosen(checkpoint: str, task: TaskConfig) -> tuple[TaskConfig, str]:
    """Return the task, with window, mean and std of its images where they are not the encoder's, and a line on them.

    The line is "" where there is nothing to say. Sources of a training may have a window, mean and standard deviation
    of their own: the shards of one are probed as training read them. What the task says itself stays. Raises
    SchemaError for shards that are damaged.
    """
    try:
        sources = encoder.find(Path(checkpoint)).state.get("sources", {})
    except CheckpointError:  # no run of ours
        return task, ""
    own = {name: found for name, source in sources.items() if (found := _own(source, task))}
    if not own:
        return task, ""
    digest = read_dataset(task.data)["digest"] if task.source in _SHARDS and task.data else ""
    for name, source in sources.items():
        if source["digest"] == digest:
            mine = own.get(name, {})
            return replace(task, **mine), f"{_said(mine)}, as training read {name}" if mine else ""
    others = ", ".join(f"{name} {_said(each, short=True)}" for name, each in own.items())
    keys = ", ".join(f"{key}=[…]" for key in ("window", "mean", "std") if any(key in each for each in own.values()))
    what = "window" if keys == "window=[…]" else "window, mean and std"
    return task, f"{what}: the encoder's; training read some sources in others ({others}), which {keys} sets"


def _own(source: Mapping[str, Any], task: TaskConfig) -> dict[str, Any]:
    """Return the settings of a task that a source had of its own and the task leaves open."""
    found: dict[str, Any] = {}
    for key in ("window", "mean", "std"):
        value, said = source.get(key), getattr(task, key)
        if value is not None and said is None and not (key == "window" and task.windows):
            found[key] = list(value) if isinstance(value, list) else [value]
    return found


def _said(settings: Mapping[str, Sequence[float]], short: bool = False) -> str:
    """Return the settings in words."""
    words = []
    for key, values in settings.items():
        if key == "window":
            words.append(f"{'' if short else 'window '}{shown(values)} HU")
        else:
            words.append(f"{key} {' '.join(f'{value:g}' for value in values)}")
    return ", ".join(words)
