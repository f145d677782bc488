"""Examples from a MedMNIST file: train_images, train_labels, val_…, test_… in one .npz, without patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.schema import SPLITS, content_digest
from eval.config import TaskConfig
from eval.data import files
from eval.data.examples import Examples, Picture, flat
from meddap.settings import SettingsError


def load(task: TaskConfig, cache: Path) -> Examples:
    """Return all images, each a patient of its own, for the file has no ids. Colour becomes grey."""
    arrays = _read(Path(task.data))
    images = np.concatenate([_grey(arrays[f"{split}_images"]) for split in SPLITS])
    labels = np.concatenate([_columns(arrays[f"{split}_labels"]) for split in SPLITS]).astype(np.float64)
    splits = np.repeat(SPLITS, [len(arrays[f"{split}_images"]) for split in SPLITS])
    names, targets = _targets(task, labels)
    digests = [content_digest(image[None]) for image in images]
    keys = np.array([f"{split}-{number:06d}" for number, split in enumerate(splits)])
    return flat(keys, targets, digests, lambda number: picture(images[number]), names=names, splits=splits)


def picture(image: np.ndarray) -> Picture:
    """Return an (H, W) uint8 image as a picture."""
    return Picture(image[None], ("image",), "unit8", (0, image.shape[0], 0, image.shape[1]))


def _read(path: Path) -> dict[str, np.ndarray]:
    wanted = [f"{split}_{what}" for split in SPLITS for what in ("images", "labels")]
    stored = files.read_arrays(path, "give data=FILE.npz, an .npz of plain arrays; copy it again if it was one")
    if missing := [name for name in wanted if name not in stored]:
        raise SettingsError(f"{path}: lacks {', '.join(missing)}; expected a MedMNIST file")
    for split in SPLITS:
        images, labels = stored[f"{split}_images"], stored[f"{split}_labels"]
        if images.ndim not in (3, 4) or images.dtype != np.uint8 or (images.ndim == 4 and images.shape[3] != 3):
            raise SettingsError(
                f"{path}: images of shape {images.shape} {images.dtype}; expected (N, H, W) or (N, H, W, 3) uint8"
            )
        if len(labels) != len(images):
            raise SettingsError(f"{path}: {len(images)} {split} images, but {len(labels)} labels; copy it again")
    return {name: stored[name] for name in wanted}


def _grey(images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        return images
    return np.rint(images @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)  # luma of ITU-R BT.601


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
