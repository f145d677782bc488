"""Where examples come from: one module per source, each with `load(task, cache) -> Examples`.

    shards    our shards with label maps (kind segmentation, or multilabel: which structures a slice holds)
    table     the same shards with a CSV of labels by patient, study or slice
    folders   a folder of images per class
    nnunet    NIfTI pairs in nnU-Net's layout (imagesTr, labelsTr, imagesTs, labelsTs, dataset.json)
    medmnist  a MedMNIST .npz, of images or volumes
    vectors   vectors that were written before, with a CSV as of `table`

A new source is a file here with `load`, a row of LOADERS and a word of `eval.config.TaskConfig.source`. `cache` is a
folder for what is slow to find out again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from eval.config import TaskConfig
from eval.data.examples import Examples, states
from eval.data.sources import folders, medmnist, nnunet, shards, table, vectors
from meddap.settings import SettingsError

LOADERS: dict[str, Callable[[TaskConfig, Path], Examples]] = {
    "shards": shards.load,
    "table": table.load,
    "folders": folders.load,
    "nnunet": nnunet.load,
    "medmnist": medmnist.load,
    "vectors": vectors.load,
}


def load(task: TaskConfig, cache: Path) -> Examples:
    """Return the examples of a task. Raises MeddapError (one line: file, value, what to do)."""
    examples = LOADERS[task.source](task, cache)
    if not len(examples):
        raise SettingsError(f"{task.data}: has no examples of this task")
    keys, counts = np.unique(examples.keys, return_counts=True)
    if (counts > 1).any():
        raise SettingsError(f"{task.data}: {(counts > 1).sum()} duplicate keys, the first {keys[counts > 1][0]}")
    _check_values(examples, task)
    if task.kind in ("binary", "multiclass"):
        _check_classes(examples, task)
    return examples


def _check_values(examples: Examples, task: TaskConfig) -> None:
    """Raise SettingsError for a target that the kind of the task does not have; NaN is one that nobody knows."""
    if task.kind in ("binary", "anomaly", "multilabel"):
        allowed, what = np.isin(examples.targets, (0, 1)), "0 or 1"
    elif task.kind in ("multiclass", "retrieval"):
        allowed = np.isin(examples.targets, np.arange(len(examples.names)))
        what = "whole numbers of classes, from 0"
    else:
        allowed, what = np.isfinite(examples.targets), "finite"
    if (strange := ~(allowed | np.isnan(examples.targets))).any():
        raise SettingsError(
            f"{task.table.file or task.data}: {strange.sum()} labels are not {what}, e.g. "
            f"{examples.targets[strange][0]:g}; mend them, leave those images out, or take another kind"
        )


def _check_classes(examples: Examples, task: TaskConfig) -> None:
    """Raise SettingsError for a class of one patient: it can be learned from, or tested on, but not both."""
    found = states(examples.targets, task.kind, len(examples.names))
    for column, name in enumerate(examples.names):
        for state in (0, 1) if task.kind == "binary" else (1,):
            members = np.unique(examples.subjects[found[:, column] == state])
            if len(members) < 2:
                word = f"class {name!r}" if task.kind != "binary" else f"{'yes' if state else 'no'} of {name!r}"
                few = "one patient only" if len(members) else "no patients"
                raise SettingsError(f"{task.table.file or task.data}: {word} has {few}; leave it out or merge it")
