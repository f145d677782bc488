"""Examples from a MedMNIST file: train_images, train_labels, val_…, test_… in one .npz, without patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.schema import SPLITS, content_digest
from data_prep.volumes import medmnist, pictures
from eval.config import TaskConfig
from eval.data import files
from eval.data.examples import Examples, Picture, flat
from meddap.settings import SettingsError


def load(task: TaskConfig, cache: Path) -> Examples:
    """Return all images, each a patient of its own, for the file has no ids. Colour becomes grey."""
    arrays = _read(Path(task.data))
    images = np.concatenate([medmnist.grey(arrays[f"{split}_images"]) for split in SPLITS])
    labels = np.concatenate([_columns(arrays[f"{split}_labels"]) for split in SPLITS]).astype(np.float64)
    splits = np.repeat(SPLITS, [len(arrays[f"{split}_images"]) for split in SPLITS])
    names, targets = _targets(task, labels)
    # of what shards hold of them
    digests = [content_digest(pictures.encode(image, pictures.Rules())[0][None]) for image in images]
    keys = np.array([f"{split}-{number:06d}" for number, split in enumerate(splits)])
    return flat(keys, targets, digests, lambda number: picture(images[number]), names=names, splits=splits)


def picture(image: np.ndarray) -> Picture:
    """Return an (H, W) uint8 image as a picture."""
    return Picture(image[None], ("image",), "unit8", (0, image.shape[0], 0, image.shape[1]))


def _read(path: Path) -> dict[str, np.ndarray]:
    stored = files.read_arrays(path, "give data=FILE.npz, an .npz of plain arrays; copy it again if it was one")
    if what := medmnist.problem(stored):
        raise SettingsError(f"{path}: {what}")
    return stored


def _columns(labels: np.ndarray) -> np.ndarray:
    return labels.reshape(len(labels), -1)


def _targets(task: TaskConfig, labels: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    columns = labels.shape[1]
    if task.kind in ("multilabel", "regression"):
        return tuple(f"label {number}" for number in range(columns)), labels
    if columns > 1:
        raise SettingsError(f"{task.data}: {columns} labels for each image; take kind=multilabel or kind=regression")
    if task.kind in ("multiclass", "retrieval"):
        return tuple(f"class {number}" for number in range(int(labels.max()) + 1)), labels
    if task.kind not in ("binary", "anomaly"):
        raise SettingsError(f"kind={task.kind}: a MedMNIST file has labels of images only")
    positive = [float(word) for word in task.positive] or [1.0]
    return ("positive",), np.isin(labels, positive).astype(np.float64)
