"""How the images of a data set were prepared, kept so that those of new patients are prepared alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_prep.schema import read_dataset
from eval.config import TaskConfig

SHARDS = ("shards", "table")  # sources of examples that read shards


@dataclass(frozen=True)
class Preparation:
    """How images became examples.

    source      of the examples, as in a task
    modality    "CT" or "MR" of the sharding command; "" where no shards were read
    settings    of sharding, as dataset.json has them
    dataset     digest of the data set
    salt_check  of the salt of its hashed ids: another one means that ids cannot be compared
    """

    source: str
    modality: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""
    salt_check: str = ""


def of_task(task: TaskConfig) -> Preparation:
    """Return how the examples of a task were prepared. Raises SchemaError for shards that are damaged."""
    return of_shards(task.data, task.source) if task.source in SHARDS else Preparation(task.source)


def of_shards(root: str, source: str = "shards") -> Preparation:
    """Return how a data set of shards was made. Raises SchemaError where there is none."""
    dataset = read_dataset(root)
    made = dataset["made_with"]
    words = {name: str(made.get(name, "")) for name in ("modality", "salt_check")}
    return Preparation(source, settings=made.get("settings", {}), dataset=dataset["digest"], **words)
