"""Examples from a MedMNIST file: train_images, train_labels, val_…, test_… in one .npz, without patients.

Images are examples. A volume (OrganMNIST3D, NoduleMNIST3D …) is a patient, and its slices along the first axis are
examples; slices of one value say nothing and are left out.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.schema import SPLITS, content_digest
from data_prep.volumes import medmnist, pictures
from eval.config import TaskConfig
from eval.data import files
from eval.data.examples import Examples, Picture, flat
from meddap.settings import SettingsError

_WHAT = "give data=FILE.npz, an .npz of plain arrays; copy it again if it was one"


def load(task: TaskConfig, cache: Path) -> Examples:
    """Return all images or slices in the official splits. Colours are as `files.colour` says."""
    stacks, columns = _read(Path(task.data), task, cache)
    volumes_there = medmnist.is_volume(stacks[0])
    if stacks[0].ndim == 4 and not volumes_there and task.files.colour == "refuse":
        raise SettingsError(f"{task.data}: in colour; files.colour=grey or keep takes it")
    shown = _grey if task.files.colour == "grey" else (lambda image: image)
    labels = np.concatenate([each.reshape(len(each), -1) for each in columns]).astype(np.float64)
    names, targets = _targets(task, labels)
    counts = [len(each) for each in stacks]
    splits, starts = np.repeat(SPLITS, counts), np.r_[0, np.cumsum(counts)]
    own = [f"{split}-{number:06d}" for number, split in enumerate(splits)]

    def stored(number: int) -> np.ndarray:
        part = int(np.searchsorted(starts, number, "right")) - 1
        return np.asarray(stacks[part][number - starts[part]])

    if not volumes_there:
        if task.level == "volume":
            raise SettingsError(f"{task.data}: holds images, no volumes; take level=slice")
        images = range(len(own))
        digests = [_digest(shown(stored(number))) for number in images]
        return flat(np.array(own), targets, digests, lambda n: picture(shown(stored(n))), names=names, splits=splits)
    rows = [(number, place) for number in range(len(own)) for place in _varied(stored(number))]
    of = np.array([number for number, _ in rows])
    orders = np.array([place for _, place in rows])
    volumes = np.array(own)[of]
    return flat(
        np.array([f"{name}-{place:03d}" for name, place in zip(volumes, orders)]),
        targets[of],
        [_digest(stored(number)[place]) for number, place in rows],
        lambda n: picture(stored(rows[n][0])[rows[n][1]]),
        names=names,
        splits=splits[of],
        subjects=volumes,
        studies=volumes,
        orders=orders,
        positions=orders.astype(np.float64),
    )


def picture(image: np.ndarray) -> Picture:
    """Return an (H, W) or (H, W, 3) uint8 image as a picture."""
    planes = _planes(image)
    return Picture(planes, ("image",), "unit8", (0, image.shape[0], 0, image.shape[1]), channels=len(planes))


def _planes(image: np.ndarray) -> np.ndarray:
    """Return (C, H, W), as shards hold it: of a picture whose three channels are equal one."""
    if image.ndim == 2:
        return image[None]
    if (image[..., :1] == image[..., 1:]).all():
        return image[None, ..., 0]
    return np.ascontiguousarray(np.moveaxis(image, -1, 0))


def _grey(image: np.ndarray) -> np.ndarray:
    return medmnist.grey(image[None])[0] if image.ndim == 3 else image


def _digest(image: np.ndarray) -> int:
    """Return the digest of what shards hold of an image."""
    return content_digest(pictures.encode(_planes(image), pictures.Rules())[0])


def _varied(volume: np.ndarray) -> Sequence[int]:
    """Return the slices of a (D, H, W) volume that hold more than one value; the middle one where none does."""
    flattened = volume.reshape(len(volume), -1)
    return np.flatnonzero(flattened.min(axis=1) < flattened.max(axis=1)).tolist() or [len(volume) // 2]


def _read(path: Path, task: TaskConfig, cache: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return images and labels of train, val and test.

    Images of a split beyond `files.limits.volume_gb` are unpacked into the cache and memory-mapped: at 224 pixels a set
    takes up to 36 GB.
    """
    with files.reading(path, _WHAT):
        heads = medmnist.heads(path)
    if what := medmnist.problem(heads, volumes=True):
        raise SettingsError(f"{path}: {what}")
    arrays = {}
    with files.reading(path, _WHAT), np.load(path, allow_pickle=False) as packed:
        for name in (f"{split}_{what}" for what in ("images", "labels") for split in SPLITS):
            large = heads[name].size > task.files.limits.volume_gb * 1e9
            arrays[name] = _unpacked(path, name, cache) if large else packed[name]
    labels = [arrays[f"{split}_labels"] for split in SPLITS]
    if strange := [each.dtype for each in labels if each.dtype.kind not in "iubf"]:
        raise SettingsError(f"{path}: labels of type {strange[0]}; expected numbers")
    return [arrays[f"{split}_images"] for split in SPLITS], labels


def _unpacked(path: Path, name: str, cache: Path) -> np.ndarray:
    """Return an array of a file, memory-mapped from a copy in the cache."""
    state = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {name}".encode()).hexdigest()[:16]
    place = cache / f"medmnist-{key}.npy"
    if not place.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.stem}.{os.getpid()}.npy")
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as packed, part.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        os.replace(part, place)
    return files.mapped(place, "delete it and start again")


def _targets(task: TaskConfig, labels: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    columns = labels.shape[1]
    if task.kind in ("multilabel", "regression"):
        return _named(task, [f"label {number}" for number in range(columns)]), labels
    if columns > 1:
        raise SettingsError(f"{task.data}: {columns} labels for each image; take kind=multilabel or kind=regression")
    given = labels[~np.isnan(labels)]
    if (strange := given[~np.isfinite(given) | (given < 0) | (given != np.floor(given))]).size:
        raise SettingsError(
            f"{task.data}: label {strange[0]:g}, and kind={task.kind} takes numbers of classes, 0 or more; mend the "
            "labels, or take kind=regression"
        )
    classes = int(given.max(initial=0)) + 1
    if task.kind in ("multiclass", "retrieval"):
        return _named(task, [f"class {number}" for number in range(classes)]), labels
    if task.kind not in ("binary", "anomaly"):
        raise SettingsError(f"kind={task.kind}: a MedMNIST file has labels of images only")
    if classes > 2 and not task.positive:
        raise SettingsError(f"{task.data}: classes up to {classes - 1}; kind={task.kind} needs positive=[NUMBER, …]")
    known = _named(task, [str(number) for number in range(classes)]) if task.names else ()
    numbers = [float(known.index(word) if word in known else _number(word)) for word in task.positive] or [1.0]
    name = "+".join(known[int(number)] for number in numbers if number < len(known)) or "positive"
    return (name,), np.where(np.isnan(labels), np.nan, np.isin(labels, numbers))


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise SettingsError(f"positive={word}: give the number of a class, or one of names") from None


def _named(task: TaskConfig, otherwise: list[str]) -> tuple[str, ...]:
    """Return the names that the task gives, or others. Raises SettingsError where their number is not the file's."""
    if not task.names:
        return tuple(otherwise)
    if len(task.names) != len(otherwise):
        what = "labels" if task.kind in ("multilabel", "regression") else "classes"
        raise SettingsError(
            f"{task.data}: has {len(otherwise)} {what}, but names gives {len(task.names)}; is it {task.name}?"
        )
    return tuple(task.names)
