"""Frozen features of the slices of a split: extracted once, cached, memory-mapped.

CACHE/<hash>/pooled.npy    (N, 2·D) float32: cls token and mean patch of the last block
CACHE/<hash>/patches.npy   (N, P, blocks · D) float16
CACHE/<hash>/labels.npy    (N, R, R) uint8 label maps on the segmentation head's grid
CACHE/<hash>/present.npy   (N, O) int8: 1 present, 0 absent, −1 unlabelled or too small to tell
CACHE/<hash>/annotated.npy (N, O) bool: the organ is labelled in this series
CACHE/<hash>/slices.json   numbers in the split, subjects
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from tqdm import tqdm

from data_prep.schema import Slice, Split
from data_prep.settings import SettingsError
from eval import images
from eval.config import TaskConfig
from eval.encoder import FrozenEncoder


@dataclass(frozen=True)
class Features:
    """Features of N slices; the arrays are as the module says, `patches` not yet in memory."""

    pooled: np.ndarray
    patches: np.ndarray
    labels: np.ndarray
    present: np.ndarray
    annotated: np.ndarray
    numbers: np.ndarray
    subjects: np.ndarray


def organs_of(task: TaskConfig, dataset: dict) -> dict[str, int]:
    """Names and label values that are probed: the task's, else all of `dataset.json`; empty where it has none."""
    return dict(task.organs) or {name: int(value) for value, name in dataset["labels"].items()}


def chosen(split: Split, stride: int) -> np.ndarray:
    """Numbers of every `stride`-th slice of each series. Raises SettingsError for a split without patients."""
    numbers = np.flatnonzero(split.index["order"] % stride == 0)
    if not len(numbers):
        raise SettingsError(
            f"{split.root}: split {split.name!r} holds no slices; shard more patients, or with another split or salt"
        )
    return numbers


def extract(encoder: FrozenEncoder, split: Split, task: TaskConfig, organs: dict[str, int], cache: Path) -> Features:
    """Features of a split's chosen slices, from the cache where they are there."""
    if task.size % encoder.patch_size:
        raise SettingsError(f"size={task.size}: no multiple of the encoder's patch size {encoder.patch_size}")
    numbers = chosen(split, getattr(task.stride, split.name))
    folder = cache / _key(encoder, split, task, organs)
    if not (folder / "slices.json").is_file():
        temporary = cache / f".{folder.name}"  # a former start may have been killed in it
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(temporary, encoder, split, numbers, task, organs)
        os.replace(temporary, folder)
    return _open(folder)


def _key(encoder: FrozenEncoder, split: Split, task: TaskConfig, organs: dict[str, int]) -> str:
    """Hash over all that the features and labels depend on."""
    parts = (
        encoder.digest,
        split.dataset["digest"],
        split.name,
        getattr(task.stride, split.name),
        task.size,
        list(task.blocks),
        sorted(organs.items()),
        task.min_pixels,
        task.segmentation.cells,
        task.bf16,
    )
    return f"{split.name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def _write(
    folder: Path, encoder: FrozenEncoder, split: Split, numbers: np.ndarray, task: TaskConfig, organs: dict[str, int]
) -> None:
    count, grid = len(numbers), task.size // encoder.patch_size
    fine, width = grid * task.segmentation.cells, encoder.embed_dim

    def array(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        return open_memmap(folder / f"{name}.npy", "w+", dtype, shape)

    pooled, patches = (
        array("pooled", (count, 2 * width), np.float32),
        array("patches", (count, grid * grid, len(task.blocks) * width), np.float16),
    )
    labels, present = array("labels", (count, fine, fine), np.uint8), array("present", (count, len(organs)), np.int8)
    annotated = array("annotated", (count, len(organs)), bool)
    subjects = []
    for start in tqdm(range(0, count, task.batch_size), f"features {split.name}", disable=None, leave=False):
        rows = slice(start, start + task.batch_size)
        samples = [split[int(number)] for number in numbers[rows]]
        inputs = encoder.prepare(torch.stack([images.image(sample, task.size) for sample in samples]))
        found = encoder.features(inputs, [*task.blocks, -1])
        cls, last = found[-1]
        pooled[rows] = torch.cat([cls, last.mean(dim=1)], dim=1).numpy()
        patches[rows] = torch.cat([tokens for _, tokens in found[:-1]], dim=2).half().numpy()
        labels[rows] = np.stack([images.labels(sample, fine) for sample in samples])
        present[rows] = [presence(sample, organs, task.min_pixels) for sample in samples]
        annotated[rows] = [[value in sample.annotated for value in organs.values()] for sample in samples]
        subjects += [sample.subject for sample in samples]
    if not np.isfinite(pooled).all():
        raise SettingsError(f"{encoder.source}: its features hold NaN or infinite values; take another checkpoint")
    (folder / "slices.json").write_text(json.dumps({"numbers": numbers.tolist(), "subjects": subjects}))


def presence(sample: Slice, organs: dict[str, int], min_pixels: int) -> list[int]:
    """Of each organ: 1 present, 0 absent, −1 where it is unlabelled in this series or only grazed by the slice."""
    counts = np.bincount(sample.labelmap.ravel(), minlength=256) if sample.labelmap is not None else np.zeros(256)
    found = []
    for value in organs.values():
        grazed = 0 < counts[value] < min_pixels
        found.append(-1 if value not in sample.annotated or grazed else int(counts[value] > 0))
    return found


def _open(folder: Path) -> Features:
    slices = json.loads((folder / "slices.json").read_text())
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("pooled", "labels", "present", "annotated")}
    patches = np.load(folder / "patches.npy", mmap_mode="r")
    return Features(
        patches=patches, numbers=np.array(slices["numbers"]), subjects=np.array(slices["subjects"]), **arrays
    )
