"""Examples from our shards: their label maps say which structures a slice holds, or their class labels whose it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.schema import Slice, Split, content_digest, read_dataset
from eval.config import TaskConfig
from eval.data import files
from eval.data.examples import Examples, Picture, Scale
from meddap.settings import SettingsError
from pretrain.data import labels

_COLUMNS = (
    *("keys", "subjects", "studies", "sites", "splits", "orders", "positions", "digests"),
    *("targets", "annotated"),
)


def load(task: TaskConfig, cache: Path) -> Examples:
    """Return every `stride`-th slice of each series, with what its label map shows, or its class in column `label`."""
    dataset = read_dataset(task.data)
    names = structures(task, dataset)
    ignored = tuple(value for value in dataset["ignore"] if value not in names.values())
    splits = {name: Split(task.data, name) for name in dataset["splits"]}
    chosen = [
        (name, int(number)) for name, split in splits.items() for number in _every(split, getattr(task.stride, name))
    ]
    columns = _columns(task, dataset, names, ignored, splits, chosen, cache)
    examples = Examples(
        names=tuple(names),
        values=tuple(names.values()),
        ignored=ignored,
        reader=lambda place: picture(splits[chosen[place][0]][chosen[place][1]]),
        version=dataset["digest"],
        **columns,
    )
    return _labelled(examples, task, dataset, splits, chosen) if task.label else for_kind(examples, task.kind)


def _labelled(examples: Examples, task: TaskConfig, dataset: dict, splits: dict[str, Split], chosen: list) -> Examples:
    """Return the examples with a column of class labels as targets, unknown where `labelled_share` hides it."""
    column = dataset["classes"].get(task.label)
    if column is None:
        has = f"it has {', '.join(dataset['classes'])}" if dataset["classes"] else "shard with --labels CSV"
        raise SettingsError(f"label={task.label}: no such column of labels in {task.data}; {has}")
    if task.kind not in ("multiclass", "binary"):
        raise SettingsError(f"kind={task.kind}: label={task.label} has classes; take multiclass or binary")
    names = column["names"]
    positive = task.positive or names[1:2]
    if strange := sorted(set(positive) - set(names)):
        raise SettingsError(f"positive={strange[0]}: no such class; there are {', '.join(names)}")
    if task.kind == "binary" and len(names) > 2 and not task.positive:
        raise SettingsError(f"kind=binary: {len(names)} classes; say which are 1, e.g. positive=[{names[0]}]")
    shares = {name: 1.0 if name == "test" else task.labelled_share for name in splits}
    shown = {name: labels.known(split, shares[name], [task.label]) for name, split in splits.items()}
    targets = np.full((len(chosen), 1), np.nan)
    for place, (name, number) in enumerate(chosen):
        if shown[name][number] and task.label in (said := splits[name].labels(number)):
            targets[place] = said[task.label]
    if task.kind == "binary":
        known = ~np.isnan(targets)
        targets[known] = np.isin(targets[known], [names.index(each) for each in positive])
        names = ["+".join(positive)]
    return replace(examples, names=tuple(names), values=(), targets=targets, annotated=examples.annotated[:, :0])


def for_kind(examples: Examples, kind: str) -> Examples:
    """Return examples with label maps (targets: presence of structures) as a task of `kind` sees them.

    segmentation as they are; multilabel without the maps' part; anomaly: a slice that holds any structure is abnormal.
    Raises SettingsError for another kind.
    """
    if kind == "segmentation":
        return examples
    bare = replace(examples, annotated=examples.annotated[:, :0])
    if kind == "multilabel":
        return bare
    if kind != "anomaly":
        raise SettingsError(f"kind={kind}: label maps cannot tell; take segmentation, multilabel or anomaly")
    unknown = np.isnan(examples.targets)
    any_there = np.where(unknown, 0, examples.targets).max(axis=1, initial=0)
    targets = np.where((any_there == 0) & unknown.any(axis=1), np.nan, any_there)
    return replace(bare, names=("abnormal",), targets=targets[:, None])


def structures(task: TaskConfig, dataset: dict) -> dict[str, int]:
    """Return names and values of the labels to probe: the task's, else all of `dataset.json`; empty without labels."""
    return dict(task.organs) or {name: int(value) for value, name in dataset["labels"].items()}


def picture(sample: Slice) -> Picture:
    """Return a slice of ours as a picture."""
    scale: Scale = "hu" if sample.pixels.dtype == np.int16 else "mr16"
    return Picture(
        pixels=sample.pixels,
        sequences=sample.sequences,
        scale=scale,
        box=sample.box,
        spacing=sample.spacing,
        labelmap=sample.labelmap,
        channels=sample.channels,
    )


def presence(
    labelmap: np.ndarray | None,
    values: list[int],
    annotated: list[bool],
    min_pixels: int,
    ignored: Sequence[int] = (),
) -> list[float]:
    """Return for each structure: 1 present, 0 absent, NaN where unlabelled in this series or only grazed here.

    A structure that is not seen may lie among pixels whose label is `ignored`, if there are any: NaN as well.
    """
    counts = np.bincount(labelmap.ravel(), minlength=256) if labelmap is not None else np.zeros(256)
    hidden = counts[list(ignored)].sum() > 0

    def state(value: int) -> float:
        if not counts[value]:
            return np.nan if hidden else 0.0
        return 1.0 if counts[value] >= min_pixels else np.nan

    return [state(value) if known else np.nan for value, known in zip(values, annotated)]


def _every(split: Split, stride: int) -> np.ndarray:
    numbers = np.flatnonzero(split.index["order"] % stride == 0)
    if len(split) and not len(numbers):
        raise SettingsError(f"{split.root}: stride.{split.name}={stride} leaves no slice; take a smaller one")
    return numbers


def _columns(
    task: TaskConfig,
    dataset: dict,
    names: dict[str, int],
    ignored: tuple[int, ...],
    splits: dict,
    chosen: list,
    cache: Path,
) -> dict[str, np.ndarray]:
    """Return the columns of Examples, from the cache where the same slices were looked at before."""
    parts: tuple = (dataset["digest"], vars(task.stride), sorted(names.items()), task.min_pixels)
    parts += (ignored,) if ignored else ()
    path = cache / f"examples-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.npz"
    if not path.is_file():
        rows = [
            _row(splits[name][number], name, list(names.values()), task.min_pixels, ignored)
            for name, number in tqdm(chosen, "labels", disable=None, leave=False)
        ]
        files.write_arrays(path, _stacked(rows, len(names)), compressed=False)
    remedy = "delete it and start again"
    stored = files.read_arrays(path, remedy)
    with files.reading(path, remedy):
        return {name: stored[name] for name in _COLUMNS}


def _row(sample: Slice, split: str, values: list[int], min_pixels: int, ignored: Sequence[int]) -> tuple:
    annotated = [value in sample.annotated for value in values]
    found = presence(sample.labelmap, values, annotated, min_pixels, ignored)
    site = str(sample.meta.get("manufacturer", ""))
    who = (sample.key, sample.subject, sample.series, site, split)
    return *who, sample.order, sample.position, content_digest(sample.pixels), found, annotated


def _stacked(rows: list[tuple], structures: int) -> dict[str, np.ndarray]:
    types = (str, str, str, str, str, np.int64, np.float64, np.uint64, np.float64, bool)
    columns = {}
    for name, kind, values in zip(_COLUMNS, types, zip(*rows)):
        columns[name] = np.array(values, dtype=kind)
    for name in ("targets", "annotated"):
        columns[name] = columns[name].reshape(len(rows), structures)
    return columns
