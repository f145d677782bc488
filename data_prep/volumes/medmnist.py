"""MedMNIST files: train_images, train_labels, val_…, test_… in one .npz, 8 bits: grey, colour or volumes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep.schema import SPLITS
from data_prep.volumes import zips
from data_prep.volumes.errors import unless_trouble
from data_prep.volumes.volume import RejectedSeries

_EXPECTED = "(N, H, W) or (N, H, W, 3) uint8"
_CHANNELS = 4  # a volume of no more slices, rows or columns is taken for a picture with channels or alpha


def grey(images: np.ndarray) -> np.ndarray:
    """Return (N, H, W) uint8 luma by ITU-R BT.601 of (N, H, W, 3) colours; grey images as they are."""
    if images.ndim == 3:
        return images
    return np.rint(images @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)


def is_volume(images: np.ndarray) -> bool:
    """Return whether the images of a split are volumes, (N, D, H, W), and not coloured, (N, H, W, 3)."""
    return images.ndim == 4 and images.shape[3] != 3


def problem(stored: Mapping[str, np.ndarray], volumes: bool = False) -> str:
    """Return what is wrong with the arrays of a file, or "" where each split has images and a label for each.

    volumes  (N, D, H, W) images will do too
    """
    wanted = [f"{split}_{what}" for split in SPLITS for what in ("images", "labels")]
    if missing := [name for name in wanted if name not in stored]:
        return f"lacks {', '.join(missing)}; expected a MedMNIST file"
    for split in SPLITS:
        images, labels = stored[f"{split}_images"], stored[f"{split}_labels"]
        if images.ndim not in (3, 4) or images.dtype != np.uint8:
            return f"images of shape {images.shape} {images.dtype}; expected {_EXPECTED}"
        if not len(images):
            return f"no {split} images; expected a MedMNIST file, with images in every split"
        if images.ndim == 4 and min(images.shape[1:]) <= _CHANNELS and images.shape[3] != 3:
            return f"images of shape {images.shape}: channels where none are expected; save them as {_EXPECTED}"
        if is_volume(images) and not volumes:
            return f"volumes of shape {images.shape[1:]}, which are no pictures; probes take them, source=medmnist"
        if images.shape[1:] != stored["train_images"].shape[1:]:
            return f"{split} images of shape {images.shape[1:]}, but train {stored['train_images'].shape[1:]}"
        if labels.ndim not in (1, 2):
            return f"{split} labels of shape {labels.shape}; expected (N,) or (N, number of labels)"
        if len(labels) != len(images):
            return f"{len(images)} {split} images, but {len(labels)} labels; copy it again"
        if labels.shape[1:] != stored["train_labels"].shape[1:]:
            return f"{split} labels of shape {labels.shape}, but train {stored['train_labels'].shape}; copy it again"
    return ""


def read_labels(path: str | Path) -> dict[str, np.ndarray]:
    """Return by split the (N, C) labels, whole numbers. Raises RejectedSeries, UnreadableError."""
    names = [f"{split}_labels" for split in SPLITS]
    labels = {split: each.reshape(len(each), -1) for split, each in zip(SPLITS, _arrays(path, names, np.inf).values())}
    if not all(each.dtype.kind in "iub" for each in labels.values()):
        raise RejectedSeries("its labels are not whole numbers, so no classes")
    return labels


def read_image(path: str | Path, split: str, number: int, limit_gb: float) -> np.ndarray:
    """Return image `number` of a split, (H, W) or (H, W, 3) uint8. Raises RejectedSeries, UnreadableError.

    limit_gb  of the images of a split, which are in memory at once
    """
    return _split(str(path), split, limit_gb)[number]


@lru_cache(maxsize=1)  # of a worker: the images of a split follow each other
def _split(path: str, split: str, limit_gb: float) -> np.ndarray:
    name = f"{split}_images"
    return _arrays(path, [name], limit_gb)[name]


def heads(path: str | Path) -> dict[str, np.ndarray]:
    """Return arrays of the shapes and types that a file states, which take no memory. Raises what hostile bytes do."""
    with zips.local(path) as local, zipfile.ZipFile(local) as archive:
        return {name.removesuffix(".npy"): _head(archive, name) for name in archive.namelist()}


def _arrays(path: str | Path, names: list[str], limit_gb: float) -> dict[str, np.ndarray]:
    try:
        known = heads(path)
        if what := problem(known):
            raise RejectedSeries(what)
        if (size := max(known[name].size for name in names)) > limit_gb * 1e9:
            raise RejectedSeries(f"{size / 1e9:.1f} GB of images, more than limits.volume_gb={limit_gb}")
        with zips.local(path) as local, np.load(local, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except RejectedSeries:
        raise
    except Exception as error:  # hostile bytes raise anything
        unless_trouble(error)
        raise RejectedSeries(f"cannot be read as an .npz of plain arrays ({type(error).__name__})") from error


def _head(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return an array of the shape and type that a member of an .npz states, which takes no memory."""
    with archive.open(name) as file:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return np.broadcast_to(np.zeros((), dtype), shape)
