"""How the images of a data set were prepared, kept so that those of new patients are prepared alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.schema import SchemaError, read_dataset
from eval.config import FilesConfig, TaskConfig
from meddap.settings import SettingsError
from pretrain.config import load, sources_of
from pretrain.runtime.checkpoint import CheckpointError
from pretrain.weights import encoder

SHARDS = ("shards", "table")  # sources of examples that read shards


@dataclass(frozen=True)
class Preparation:
    """How images became examples.

    source      of the examples, as in a task
    modality    "CT", "MR" or "IMAGE" of the sharding command; "" where no shards were read
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
    if task.source in SHARDS:
        return of_shards(task.data, task.source)
    if task.source == "nnunet" and task.files.modality == "CT":
        return Preparation("nnunet", "CT", _as_nnunet_cases(task.files))
    if task.source == "medmnist":
        return Preparation(task.source, "IMAGE", {"colour": task.files.colour})
    if task.source == "folders" and task.files.range != "hu":  # sharding of pictures knows no HU
        own = {name: getattr(task.files, name) for name in ("range", "alpha", "colour")}
        return Preparation(task.source, "IMAGE", {**own, "patient": task.files.patient or ""})
    return Preparation(task.source)


def _as_nnunet_cases(files: FilesConfig) -> dict[str, Any]:
    """Return the settings with which sharding reads a CT as eval.data.nnunet_cases does."""
    one = files.geometry
    geometry: dict[str, str] = {"units": one.units, "disagreeing": one.disagreeing, "unoriented": one.unoriented}
    geometry |= {"planes": "reformat", "oblique": "reformat"}
    return {"geometry": geometry, "values": files.values, "min_slices": 1}


def of_shards(root: str, source: str = "shards") -> Preparation:
    """Return how a data set of shards was made. Raises SchemaError where there is none."""
    dataset = read_dataset(root)
    made = dataset["made_with"]
    words = {name: str(made.get(name, "")) for name in ("modality", "salt_check")}
    return Preparation(source, settings=made.get("settings", {}), dataset=dataset["digest"], **words)


def of_checkpoint(checkpoint: str, like: str | None, modality: str | None) -> Preparation:
    """Return how raw images are prepared for an encoder: as those of the data set that a run was trained on.

    like      another data set, whose preparation is taken
    modality  "CT", "MR" or "IMAGE": the default settings of its sharding command
    Raises SettingsError where nothing says how.
    """
    if like:
        return _with_modality(like, of_shards(like))
    if modality:
        return Preparation("shards", modality)
    remedy = "give --like SHARDS, a data set that was made alike, or --modality CT|MR|IMAGE for default settings"
    try:
        roots = sources_of(load(encoder.find(Path(checkpoint)).path / "config.yaml").data)
    except CheckpointError:
        raise SettingsError(f"{checkpoint}: does not say how raw images are prepared; {remedy}") from None
    if len(roots) > 1:
        each = ", ".join(f"{name} ({source.root})" for name, source in roots.items())
        raise SettingsError(f"{checkpoint}: was trained on several data sets, {each}; {remedy}")
    root = next(iter(roots.values())).root
    try:
        return _with_modality(root, of_shards(root))
    except SchemaError as error:
        raise SettingsError(f"{checkpoint}: its data set cannot be read ({error}); {remedy}") from error


def _with_modality(root: str, found: Preparation) -> Preparation:
    if not found.modality:
        raise SettingsError(f"{root}: dataset.json does not say how it was made; give another --like, or --modality")
    return found
