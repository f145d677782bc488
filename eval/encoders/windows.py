"""Which window in HU a task's images have: the task's own, that of the source that they are, or the encoder's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data_prep.schema import read_dataset
from eval.config import TaskConfig
from pretrain.runtime.checkpoint import CheckpointError
from pretrain.weights import encoder

_SHARDS = ("shards", "table")  # sources of examples that read shards


def chosen(checkpoint: str, task: TaskConfig) -> tuple[TaskConfig, str]:
    """Return the task with the window of its images where that is not the encoder's, and what to tell the user, or "".

    Sources of a training may have windows of their own: the shards of one are probed as training read them.
    Raises SchemaError for shards that are damaged.
    """
    if task.window is not None:
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
            text = f"window {own[name][0]:g} to {own[name][1]:g} HU, as training read {name}" if name in own else ""
            return (replace(task, window=list(own[name])) if name in own else task), text
    others = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in own.items())
    return (
        task,
        f"window: the encoder's; training read some sources in others ({others} HU), which window=[LOW,HIGH] sets",
    )
