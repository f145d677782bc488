"""What the report shows of a probe: test slices with truth, prediction and a map of their patch features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from eval.config import TaskConfig
from eval.contract import Drawing
from eval.data import files, images
from eval.data.cohorts import Cohort
from eval.data.examples import Picture

WINDOW = (-250.0, 450.0)  # HU that are black and white
_AIR = 0.02  # of 0…1: darker is background
_SIDE = 32  # pixels of the maps by which slices are chosen


def save(path: Path, test: Cohort, drawings: Mapping[str, Drawing], task: TaskConfig) -> None:
    """Write `pictures.npz`: images (n, s, s) in 0…1, truth (n, s, s) uint8 (place of the structure in `names` plus 1, 0
    for none), `drawn.<probe>` the same of every probe that draws, components (n, g, g, 3) in 0…1, similarity
    (n, g, g) of the patches to the one at anchors (n, 2) row and column, names, subjects."""
    rows = choose(test, task.pictures)
    pictures = [test.examples.read(row) for row in rows]
    shown = torch.stack([images.shown(each, task.size, WINDOW)[0] for each in pictures])
    drawn = {f"drawn.{name}": each.draw(test, rows) for name, each in drawings.items()}
    values, patches = test.examples.values, test.patches(rows, (-1,)).numpy()
    near, anchors = similarities(patches, shown)
    arrays = {
        "images": shown.numpy().astype(np.float16),
        "truth": np.stack([truth(each, task.size, values) for each in pictures]),
        "components": components(patches, shown),
        "similarity": near,
        "anchors": anchors,
        "names": np.array(test.names),
        "subjects": test.examples.subjects[rows],
    }
    files.write_arrays(path, {**arrays, **drawn})


def choose(test: Cohort, count: int) -> np.ndarray:
    """Choose slices, each of another patient: where most structures are seen, ties by the larger area."""
    examples = test.examples
    seen = np.nan_to_num(examples.targets) if examples.annotated.shape[1] else np.zeros((len(examples), 1))
    rank = seen.sum(axis=1)
    if rank.any():
        maps = test.maps(_SIDE)
        rank = rank + np.array([(each > 0).mean() for each in maps[np.arange(len(maps))]])
    best: dict[str, int] = {}
    for row in np.argsort(-rank, kind="stable"):
        best.setdefault(str(examples.subjects[row]), int(row))
    return np.array(sorted(best[subject] for subject in list(best)[:count]))


def components(patches: np.ndarray, shown: torch.Tensor) -> np.ndarray:
    """Return (n, g, g, 3): the first three principal components of the body's patches over all pictures, air black."""
    count, tokens, width = patches.shape
    grid = round(tokens**0.5)
    body = _body(shown, grid).reshape(-1)
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


def similarities(patches: np.ndarray, shown: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, g, g) cosine of every patch to the one nearest to the body's middle, and its row and column (n, 2)."""
    count, tokens, _ = patches.shape
    grid = round(tokens**0.5)
    body, unit = _body(shown, grid), patches / np.maximum(np.linalg.norm(patches, axis=2, keepdims=True), 1e-12)
    maps, anchors = np.empty((count, grid, grid), np.float32), np.empty((count, 2), np.int64)
    for row in range(count):
        inside = np.argwhere(body[row]) if body[row].any() else np.argwhere(np.ones((grid, grid)))
        anchors[row] = inside[((inside - inside.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        maps[row] = (unit[row] @ unit[row][anchors[row, 0] * grid + anchors[row, 1]]).reshape(grid, grid)
    return maps, anchors


def _body(shown: torch.Tensor, grid: int) -> np.ndarray:
    """Return (n, grid, grid) bool: patches of which less than half is air."""
    inside = (shown > _AIR).float()[:, None]
    return torch.nn.functional.adaptive_avg_pool2d(inside, grid).numpy()[:, 0] > 0.5


def truth(picture: Picture, size: int, values: Sequence[int]) -> np.ndarray:
    """Return (size, size) uint8: the place of the structure in `values` plus 1, 0 for none, on the encoder's square."""
    table = np.zeros(256, np.uint8)
    table[list(values)] = np.arange(1, len(values) + 1)
    return table[images.labels(picture, size)]
