"""How many channels of a task's pictures an encoder gets, and what to say where the two disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.schema import channels_of, read_dataset
from eval.config import TaskConfig

_FILES, _SHARDS = ("folders", "medmnist"), ("shards", "table")  # sources of examples


def in_colour(task: TaskConfig) -> bool:
    """Return whether some examples of a task may have three channels. Raises SchemaError for damaged shards."""
    if task.source in _FILES:
        return task.files.colour == "keep"
    there = task.source in _SHARDS and (Path(task.data) / "dataset.json").is_file()
    return there and channels_of(read_dataset(task.data)) == 3


def of_images(encoder: Any, task: TaskConfig) -> int:
    """Return C of the images that networks are trained on: what an encoder of ours takes; 3 of colours it can see."""
    takes_three = getattr(encoder, "channels", 1) == 3
    return 3 if takes_three and (hasattr(encoder, "model") or in_colour(task)) else 1


def said(encoder: Any, task: TaskConfig) -> str:
    """Return a line for the console where colours are lost between the pictures and an encoder, else ""."""
    takes, given = getattr(encoder, "channels", 1), in_colour(task)
    if given and takes == 1:
        return f"{encoder.source}: takes grey images; it sees the luma (BT.601) of pictures in colour"
    if takes == 3 and not given and task.source in _FILES and task.files.colour == "grey":
        return (
            f"{encoder.source}: takes colours, and files.colour=grey makes pictures grey; files.colour=keep keeps them"
        )
    return ""
