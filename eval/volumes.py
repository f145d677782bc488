"""Drawn slices put together to volumes again, and compared with the true ones patient by patient, in mm."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from data_prep.settings import SettingsError
from eval import images, surfaces
from eval.config import DrawingConfig
from eval.examples import Examples
from eval.parts import Part
from eval.predictions import Tabled

Draw = Callable[[Part, np.ndarray], torch.Tensor]  # rows of a part → (n, O, R, R) in 0…1 on the encoder's squares
_ROWS = 32  # slices at a time


def score(draw: Draw, thresholds: np.ndarray, test: Part, config: DrawingConfig) -> Tabled:
    """Dice, IoU and, if wanted, HD95 and normalised surface distance of every patient and structure.

    Slices of one study are a volume, in the pictures' own pixels; a structure that is unlabelled in a study has no
    figure there. A patient's figure is the mean over his studies.
    """
    examples = test.examples
    patients = np.unique(examples.subjects)
    kept: dict[str, list[np.ndarray]] = {patient: [] for patient in patients}
    for rows in studies(examples):
        drawn, true = _volumes(draw, thresholds, test, rows)
        found = surfaces.compare(drawn, true, spacing(examples, rows), config.tolerance_mm, config.surfaces)
        kept[examples.subjects[rows[0]]].append(np.where(examples.annotated[rows].any(axis=0), found, np.nan))
    values = np.stack([_mean(np.stack(kept[patient])) for patient in patients], axis=1)  # (metrics, K, O)
    names = surfaces.METRICS if config.surfaces else surfaces.METRICS[:2]
    return Tabled({name: each[None] for name, each in zip(names, values)}, patients, test.names)


def studies(examples: Examples) -> Iterator[np.ndarray]:
    """Rows of each study, in the order of its slices."""
    order = np.lexsort((examples.orders, examples.studies))
    yield from np.split(order, np.flatnonzero(np.diff(np.unique(examples.studies[order], return_inverse=True)[1])) + 1)


def spacing(examples: Examples, rows: np.ndarray) -> tuple[float, float, float]:
    """(slice, row, column) in mm; the first is the median step between the slices there are, 1 for a single one."""
    steps = np.abs(np.diff(examples.positions[rows]))
    step = float(np.median(steps)) if len(steps) and np.isfinite(steps).all() and np.median(steps) > 0 else 1.0
    return step, *(float(value) for value in examples.read(rows[0]).spacing)


def _volumes(draw: Draw, thresholds: np.ndarray, test: Part, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(O, Z, H, W) bool of what was drawn and what is true. Raises SettingsError where slices differ in shape."""
    examples, drawn, true = test.examples, [], []
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        for row, maps in zip(some, draw(test, some)):
            picture = examples.read(row)
            above = images.to_picture(maps, picture).numpy() > thresholds[:, None, None]
            truth = picture.labelmap if picture.labelmap is not None else np.zeros(above.shape[1:], np.uint8)
            if truth.shape != above.shape[1:]:
                raise SettingsError(
                    f"{examples.keys[row]}: label map of {truth.shape} pixels on an image of {above.shape[1:]}"
                )
            drawn.append(above)
            true.append(np.stack([truth == value for value in examples.values]))
    if len({each.shape for each in drawn}) > 1:
        raise SettingsError(f"study {examples.studies[rows[0]]}: its slices differ in shape; they are no volume")
    return np.stack(drawn, axis=1), np.stack(true, axis=1)


def _mean(table: np.ndarray) -> np.ndarray:
    """Mean over the first axis, NaN left out; NaN where nothing is left."""
    known = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        return np.where(known, table, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
