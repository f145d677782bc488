"""What the report shows of a probe: test slices with truth, prediction and a map of their patch features."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from data_prep.disk import write_atomic
from data_prep.schema import Split
from eval import images
from eval.config import TaskConfig
from eval.features import Features
from eval.segmentation import Fitted

_BODY_HU = -300


def save(
    path: Path, test: Features, split: Split, organs: dict[str, int], fitted: Fitted | None, task: TaskConfig
) -> None:
    """Write `pictures.npz`: images (n, s, s) HU, truth and predicted (n, s, s) uint8 (place of the organ
    in `organs` plus 1, 0 for none), components (n, g, g, 3) in 0…1."""
    rows = choose(test, list(organs.values()), task.pictures)
    slices = [split[int(test.numbers[row])] for row in rows]
    shown = torch.stack([images.image(each, task.size) for each in slices])
    truth = np.stack([_renumbered(images.labels(each, task.size), organs) for each in slices])
    predicted = np.zeros_like(truth)
    if fitted is not None:
        with torch.inference_mode():
            logits = fitted.head(torch.from_numpy(test.patches[rows].astype(np.float32)))
        fine = torch.stack([images.to_native(each, task.size) for each in logits]).sigmoid().numpy()
        beyond = fine - fitted.thresholds[None, :, None, None]
        predicted = np.where(beyond.max(axis=1) > 0, beyond.argmax(axis=1) + 1, 0).astype(np.uint8)
    memory = io.BytesIO()
    np.savez_compressed(
        memory,
        images=shown[:, 0].numpy().astype(np.int16),
        truth=truth,
        predicted=predicted,
        components=components(test.patches[rows], shown),
        organs=np.array(list(organs)),
    )
    write_atomic(path, memory.getvalue())


def choose(test: Features, values: list[int], count: int) -> np.ndarray:
    """Rows of `count` slices, each of another patient: where most organs are seen, ties by the larger area."""
    seen = np.zeros((len(test.numbers), len(values)), np.int64)
    for place, value in enumerate(values):
        seen[:, place] = (test.labels == value).sum(axis=(1, 2))
    rank = (seen > 0).sum(axis=1) + seen.sum(axis=1) / (1 + seen.sum())
    best: dict[str, int] = {}
    for row in np.argsort(-rank, kind="stable"):
        best.setdefault(str(test.subjects[row]), int(row))
    return np.array(sorted(best[subject] for subject in list(best)[:count]))


def components(patches: np.ndarray, shown: torch.Tensor) -> np.ndarray:
    """(n, g, g, 3): the first three principal components of the body's patches over all pictures, air black."""
    count, tokens, width = patches.shape
    grid = round(tokens**0.5)
    body = torch.nn.functional.adaptive_avg_pool2d((shown > _BODY_HU).float(), grid).numpy().reshape(-1) > 0.5
    flat = patches.astype(np.float64).reshape(-1, width)
    inside = flat[body] if body.sum() > 3 else flat
    centred = inside - inside.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    # of the two directions of an axis, the one whose largest entry is positive
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1))
    places = (flat - inside.mean(axis=0)) @ axes.T
    low, high = np.percentile(places[body] if body.sum() > 3 else places, (2, 98), axis=0)
    coloured = np.clip((places - low) / np.maximum(high - low, 1e-9), 0, 1) * body[:, None]
    return coloured.reshape(count, grid, grid, 3).astype(np.float32)


def _renumbered(labels: np.ndarray, organs: dict[str, int]) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    table[list(organs.values())] = np.arange(1, len(organs) + 1)
    return table[labels]
