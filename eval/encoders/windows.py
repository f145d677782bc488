"""Which windows in HU an encoder sees a task's images in, and what results say of it.

A window decides what an encoder can tell: in one of soft tissue all of the lung is black. So a comparison is fair where
both encoders have the same choice, and each row of results says what its encoder saw.
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
    """Return the task with the window of its images where that is not the encoder's, and what to tell the user, or "".

    Sources of a training may have windows of their own: the shards of one are probed as training read them.
    Raises SchemaError for shards that are damaged.
    """
    if task.window is not None or task.windows:
        return task, ""
    try:
        sources = encoder.find(Path(checkpoint)).state.get("sources", {})
    except CheckpointError:  # no run of ours
        return task, ""
    own = {name: source["window"] for name, source in sources.items() if source["window"]}
    if not own:
        return task, ""
    digest = read_dataset(task.data)["digest"] if task.source in _SHARDS and task.data else ""
    for name, source in sources.items():
        if source["digest"] == digest:
            text = f"window {shown(own[name])} HU, as training read {name}" if name in own else ""
            return (replace(task, window=list(own[name])) if name in own else task), text
    others = ", ".join(f"{name} {shown(pair)}" for name, pair in own.items())
    return (
        task,
        f"window: the encoder's; training read some sources in others ({others} HU), which window=[LOW,HIGH] sets",
    )
